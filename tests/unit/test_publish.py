"""The report's way to the API server: when it is created, written, renewed, refused, and taken up again."""

import threading
import time

import msgspec.structs
import pytest

from exporter import cadence
from exporter.cadence import Write
from exporter.publish import Publisher
from exporter.reporting import report_status
from health.receipt import Receipt, RepairResult
from health.report import ReportSpec
from runtime.clock import ManualClock
from tests.lab.processes import wait_until
from tests.unit.agent_samples import BOOT, NOW, full_sample, known_state, later, xid
from tests.unit.report_server import ReportServer, refusal

SAMPLES = {device.uuid: device for device in (full_sample(0), full_sample(1))}


def status(*messages):
    state = known_state()
    for message in messages:
        state = state.with_message(message)
    return report_status(state, now=NOW, samples=SAMPLES, node_uid="uid-1", agent_version="1")


CALM = status()
DEGRADED = status(xid(94))
FATAL = status(xid(79))


class Publishing:
    """A publisher and what it said."""

    def __init__(self, server, *, offer=CALM, **options):
        self.server = server
        self.met = []
        self.specs = []
        self.written = []
        self.publisher = Publisher(
            server.api.session(),
            node="n1",
            on_met=self._meet,
            on_spec=self.specs.append,
            on_written=lambda *write: self.written.append(write),
            **{"node_uid": "uid-1", **options},
        )
        self._first = offer
        self.publisher.start()

    def _meet(self, own):
        self.met.append(own)
        if self._first is not None:
            self.publisher.offer(self._first)

    def await_failures(self, count):
        wait_until(lambda: self.publisher.failures.total() >= count, 5, f"{count} failures", every=0.002)


@pytest.fixture
def server(api):
    return ReportServer(api)


@pytest.fixture
def publish(server, monkeypatch):
    monkeypatch.setattr(cadence, "FIRST_PAUSE", 0.02)
    running = []

    def start(**options):
        running.append(Publishing(server, **options))
        return running[-1]

    yield start
    server.always = server.always and refusal(503, "ServiceUnavailable")
    for publishing in running:
        assert publishing.publisher.stop(6)


def existing(**changes):
    return {
        "metadata": {"name": "n1", "uid": "report-uid"},
        "status": {"nodeUID": "uid-1", "bootID": BOOT, "sequence": 41, **changes},
    }


def test_a_report_that_is_not_there_is_created_under_its_node_and_then_written(server, publish):
    publishing = publish()
    (written,) = server.await_patches(1)
    assert publishing.met == [None]
    assert server.posts == [
        {
            "apiVersion": "sickbay.dev/v1alpha1",
            "kind": "AcceleratorReport",
            "metadata": {
                "name": "n1",
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "uid-1"}],
            },
        }
    ]
    assert (written["sequence"], written["nodeUID"], written["bootID"]) == (1, "uid-1", BOOT)
    assert [device["health"] for device in server.status["devices"]] == ["Healthy", "Healthy"]


def test_a_report_that_is_there_is_taken_up_and_its_sequence_goes_on(server, publish):
    server.stored = existing(faults=[])
    publishing = publish(sequence=7)
    (written,) = server.await_patches(1)
    assert written["sequence"] == 42
    assert server.posts == []
    assert publishing.met[0].boot_id == BOOT


def test_a_sequence_that_the_state_file_knows_better_goes_on_from_there(server, publish):
    server.stored = existing()
    publish(sequence=100)
    assert server.await_patches(1)[0]["sequence"] == 101


def test_the_report_of_another_node_of_this_name_is_not_taken_up_but_written_over(server, publish, caplog):
    server.stored = existing(nodeUID="uid-of-an-earlier-node")
    publishing = publish()
    assert server.await_patches(1)[0]["sequence"] == 42
    assert publishing.met == [None]
    assert server.status["nodeUID"] == "uid-1"
    assert "another node of this name" in caplog.text


def test_nothing_is_written_before_the_own_report_was_read(server, publish):
    server.always = refusal(503, "ServiceUnavailable")
    server.stored = existing()
    publishing = publish()
    publishing.await_failures(2)
    assert publishing.met == []
    server.always = None
    server.await_patches(1)
    assert len(publishing.met) == 1


def test_a_fatal_fault_is_written_at_once_though_the_bucket_is_empty(server, publish):
    publishing = publish()
    server.await_patches(1)
    for count, offered in enumerate((DEGRADED, CALM), start=2):
        publishing.publisher.offer(offered)
        server.await_patches(count)
    publishing.publisher.offer(DEGRADED)
    begun = time.monotonic()
    publishing.publisher.offer(FATAL)
    server.await_fault("DeviceLost")
    assert server.times[-1] - begun < 0.5
    wait_until(lambda: len(publishing.written) >= 4, 5, "the answer to be taken in", every=0.002)
    assert [kind for _, kind, _ in publishing.written[:3]] == [Write.CHANGE] * 3
    assert publishing.written[3][1] is Write.FATAL


def test_what_a_repair_waits_for_is_written_at_once_and_leaves_the_tokens_to_others(server, publish):
    clock = ManualClock()
    publishing = publish(clock=clock)
    server.await_patches(1)
    for count, offered in enumerate((DEGRADED, CALM), start=2):
        publishing.publisher.offer(offered)
        server.await_patches(count)
    for count in range(1, 4):
        receipt = Receipt("session", "Reset", count, BOOT, RepairResult.DONE, later(count))
        publishing.publisher.offer(msgspec.structs.replace(CALM, receipts=(receipt,)))
        server.await_patches(3 + count)
        assert [one["attempt"] for one in server.status["receipts"]] == [count]
    wait_until(lambda: publishing.publisher.writes["repair"] == 3, 5, "the count", every=0.002)
    assert publishing.publisher.writes["change"] == 3


def test_other_changes_are_written_three_at_once_and_then_one_in_five_seconds(server, publish):
    clock = ManualClock()
    publishing = publish(clock=clock)
    server.await_patches(1)
    for count, offered in enumerate((DEGRADED, CALM), start=2):
        publishing.publisher.offer(offered)
        server.await_patches(count)
    wait_until(lambda: len(publishing.written) == 3, 5, "the third write to be over", every=0.002)
    publishing.publisher.offer(DEGRADED)
    clock.advance(4.9)
    publishing.publisher.offer(DEGRADED)
    assert len(server.patches) == 3
    clock.advance(0.2)
    publishing.publisher.offer(DEGRADED)
    server.await_patches(4)
    assert server.status["faults"][0]["kind"] == "ContainedMemory"


def test_a_renewal_advances_the_sequence(server, publish):
    publish(renew_interval=0.05)
    writes = server.await_patches(4)
    assert [write["sequence"] for write in writes] == [1, 2, 3, 4]
    assert len(server.status["devices"]) == 2


def test_what_we_know_is_replaced_and_what_we_do_not_is_patched(server, publish):
    publishing = publish(renew_interval=0.05)
    server.await_patches(3)
    assert server.methods[:3] == ["PATCH", "PUT", "PUT"]
    assert publishing.publisher.failures.total() == 0


def test_what_the_controller_or_a_person_writes_is_kept_and_is_no_failure(server, publish):
    publishing = publish(renew_interval=0.05)
    server.await_patches(2)
    server.stored = {**server.stored, "spec": {"drillUntil": later(600).isoformat().replace("+00:00", "Z")}}
    server.stored["metadata"] = {**server.stored["metadata"], "labels": {"a": "1"}}
    server.changed()
    wait_until(
        lambda: "PATCH" in server.methods[1:], 5, "a patch of the version that we do not know", every=0.002
    )
    count = len(server.patches)
    server.await_patches(count + 2)
    assert server.methods[count:][:2] == ["PUT", "PUT"]
    assert server.stored["metadata"]["labels"] == {"a": "1"} and server.stored["spec"]
    sequences = [write["sequence"] for write in server.patches]
    assert sequences == list(range(1, len(sequences) + 1))
    assert publishing.publisher.failures.total() == 0


def test_what_somebody_has_done_to_the_status_is_put_right_by_the_next_renewal(server, publish):
    publish(renew_interval=0.05)
    server.await_patches(2)
    server.stored = {
        **server.stored,
        "status": {**server.status, "devices": [], "plugin": {"reachable": False}},
    }
    server.changed()
    wait_until(lambda: len(server.status["devices"]) == 2, 5, "the devices in the report", every=0.002)
    assert "plugin" not in server.status


def test_a_renewal_carries_counts(server, publish):
    publishing = publish(offer=FATAL, renew_interval=0.3)
    server.await_patches(1)
    publishing.publisher.offer(status(xid(79), xid(79, sequence=2, at=later(9))))
    assert server.await_patches(2)[1]["faults"][0]["count"] == 2


def test_an_emptied_list_is_written_as_an_empty_list(server, publish):
    publishing = publish(offer=FATAL)
    server.await_fault("DeviceLost")
    publishing.publisher.offer(CALM)
    assert server.await_patches(2)[1]["faults"] == []


def test_the_controllers_part_comes_back_with_every_answer_and_is_told_when_it_changes(server, publish):
    publishing = publish(renew_interval=0.05)
    server.await_patches(2)
    assert publishing.specs == [ReportSpec()]
    server.stored["spec"] = {
        "pool": "a100",
        "deviceRelease": {"session": "s", "until": "2026-03-01T13:00:00Z"},
    }
    wait_until(lambda: len(publishing.specs) == 2, 5, "the new spec", every=0.002)
    assert publishing.specs[1].device_release.session == "s"
    server.await_patches(len(server.patches) + 2)
    assert len(publishing.specs) == 2
    del server.stored["spec"]
    wait_until(lambda: len(publishing.specs) == 3, 5, "the spec to be empty again", every=0.002)
    assert publishing.specs[2] == ReportSpec()


def test_the_controllers_part_of_a_report_that_was_there_is_told_before_the_first_write(server, publish):
    server.stored = {**existing(), "spec": {"pool": "a100"}}
    publishing = publish(offer=None)
    wait_until(lambda: publishing.specs, 5, "the spec", every=0.002)
    assert publishing.specs == [ReportSpec(pool="a100")]
    assert server.patches == []


def test_a_spec_that_cannot_be_read_changes_nothing_and_writing_goes_on(server, publish, caplog):
    publishing = publish(renew_interval=0.05)
    server.await_patches(1)
    server.stored["spec"] = {"deviceRelease": "yes please"}
    server.await_patches(len(server.patches) + 2)
    assert publishing.specs == [ReportSpec()]
    assert "cannot be read" in caplog.text


def test_a_report_that_was_deleted_is_created_again_and_written_whole(server, publish, caplog):
    publish(offer=FATAL, renew_interval=0.05)
    server.await_patches(2)
    server.stored = None
    wait_until(lambda: len(server.posts) == 2, 5, "the report to be created again", every=0.002)
    server.await_fault("DeviceLost")
    assert "was deleted" in caplog.text


def test_a_report_that_somebody_else_created_meanwhile_is_written(server, publish):
    server.refusals = [refusal(404, "NotFound")]
    server.stored = existing()
    publish()
    server.await_patches(1)
    assert len(server.posts) == 1


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (refusal(403, "Forbidden", "no"), "forbids the report"),
        (refusal(401, "Unauthorized", "no"), "does not accept our credentials"),
        (refusal(409, "Conflict", "no"), "changed by somebody else"),
        (refusal(422, "Invalid", "no"), "finds the report invalid"),
        (refusal(500, "InternalError", "no"), "cannot be had"),
        (refusal(429, "TooManyRequests", "no"), "cannot be had"),
    ],
)
def test_a_refusal_is_said_once_in_words_and_tried_again_with_pauses(server, publish, caplog, reply, words):
    publishing = publish()
    server.await_patches(1)
    caplog.set_level("INFO")
    server.always = reply
    publishing.publisher.offer(DEGRADED)
    publishing.await_failures(2)
    server.always = None
    server.await_patches(2)
    wait_until(lambda: "can be written again" in caplog.text, 5, "the end of the trouble", every=0.002)
    messages = [record.getMessage() for record in caplog.records]
    assert sum(words in message for message in messages) == 1
    assert server.status["faults"][0]["kind"] == "ContainedMemory"
    assert publishing.publisher.failures.total() <= 5


def test_a_cluster_without_the_custom_resources_is_told_apart(server, publish, caplog):
    server.always = refusal(404, "NotFound", "the server could not find the requested resource")
    publish()
    told = "are the custom resource definitions installed?"
    wait_until(lambda: told in caplog.text, 5, "the complaint", every=0.002)
    server.always = None
    server.await_patches(1)


def test_while_the_api_server_is_down_only_the_newest_content_is_kept(server, publish):
    publishing = publish()
    server.await_patches(1)
    server.always = refusal(503, "ServiceUnavailable")
    for offered in (DEGRADED, CALM, DEGRADED, CALM, FATAL):
        publishing.publisher.offer(offered)
    publishing.await_failures(1)
    server.always = None
    written = server.await_patches(2)[1]
    assert [fault["kind"] for fault in written["faults"]] == ["DeviceLost"]


def test_a_fatal_fault_does_not_wait_for_the_pause_of_an_earlier_failure(server, publish):
    publishing = publish()
    server.await_patches(1)
    server.always = refusal(429, "TooManyRequests", headers={"Retry-After": "10"})
    publishing.publisher.offer(DEGRADED)
    publishing.await_failures(1)
    server.always = None
    publishing.publisher.offer(FATAL)
    server.await_fault("DeviceLost", deadline=2)


def test_a_fault_before_the_report_was_read_hurries_the_reading(server, publish, monkeypatch):
    monkeypatch.setattr(cadence, "FIRST_PAUSE", 10)
    server.always = refusal(503, "ServiceUnavailable")
    publishing = publish(offer=FATAL)
    publishing.await_failures(1)
    server.always = None
    publishing.publisher.hurry()
    server.await_fault("DeviceLost", deadline=1)


def test_a_write_whose_answer_was_lost_is_written_whole_with_a_new_sequence(server, publish):
    publishing = publish(renew_interval=0.05)
    server.await_patches(1)
    server.refusals = [refusal(504, "Timeout")]
    wait_until(publishing.publisher.failures.total, 5, "the lost answer", every=0.002)
    before = len(server.patches)
    first = server.await_patches(before + 1)[before]
    assert "devices" in first
    assert first["sequence"] == server.patches[before - 1]["sequence"] + 2


def test_a_connection_that_breaks_is_made_again(server, publish):
    publishing = publish(renew_interval=0.05)
    server.await_patches(1)
    server.api._server.cut_all()
    server.await_patches(len(server.patches) + 2)
    assert publishing.publisher.failures.total() <= 1


def test_a_slow_api_server_gets_the_fatal_fault_as_soon_as_it_has_answered(server, publish):
    answer, asked = threading.Event(), threading.Event()

    def slowly(request):
        asked.set()
        assert answer.wait(5)
        return server.answer(request)

    publishing = publish()
    server.await_patches(1)
    server.api.route = slowly
    publishing.publisher.offer(DEGRADED)
    assert asked.wait(5)
    publishing.publisher.offer(FATAL)
    answer.set()
    server.await_fault("DeviceLost", deadline=1)
    assert len(server.patches) == 3


def test_a_wall_clock_that_is_set_back_does_not_stop_renewals(server, publish):
    clock = ManualClock()
    publishing = publish(clock=clock)
    wait_until(lambda: publishing.written, 5, "the first write to be over", every=0.002)
    clock.step_wall(-86_400)
    clock.advance(31)
    publishing.publisher.offer(CALM)
    assert server.await_patches(2)[1]["sequence"] == 2


def test_what_the_publisher_did_is_counted(server, publish):
    publishing = publish(renew_interval=0.05)
    server.await_patches(2)
    publishing.publisher.offer(FATAL)
    server.await_fault("DeviceLost")
    wait_until(lambda: publishing.publisher.writes["fatal"], 5, "the count", every=0.002)
    writes = publishing.publisher.writes
    assert (writes["change"], writes["fatal"]) == (1, 1)
    assert writes["renewal"] >= 1
    assert publishing.publisher.last_written is not None
    sequences = [sequence for sequence, _, _ in publishing.written]
    assert sequences == list(range(1, len(sequences) + 1))
    assert all(seconds < 5 for _, _, seconds in publishing.written)


def test_a_callback_that_fails_does_not_end_the_thread(server):
    calls = []

    def fail(*_):
        calls.append(1)
        raise ValueError("a bug")

    publisher = Publisher(
        server.api.session(),
        node="n1",
        node_uid="uid-1",
        on_met=lambda own: publisher.offer(CALM),
        on_spec=lambda spec: None,
        on_written=fail,
        renew_interval=0.05,
    )
    publisher.start()
    wait_until(lambda: len(calls) > 1, 5, "a write after the failure", every=0.01)
    assert publisher.stop(5)


def test_the_publisher_stops_at_once_while_it_waits(server):
    ready = threading.Event()
    publisher = Publisher(
        server.api.session(),
        node="n1",
        node_uid="uid-1",
        on_met=lambda own: ready.set(),
        on_spec=lambda spec: None,
        on_written=lambda *write: None,
    )
    publisher.start()
    assert ready.wait(5)
    begun = time.monotonic()
    assert publisher.stop(5)
    assert time.monotonic() - begun < 0.5
