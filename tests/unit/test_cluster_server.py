"""The embedded API over HTTP, with the project's own session and reflector as its clients."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import urllib3

from health.report import AcceleratorReport
from remediation.cluster import Cluster
from remediation.election import LeaseRecord
from remediation.lease import KubernetesLeaseApi
from remediation.pod_api import KubernetesPods
from remediation.reflector import Event, Kind, Reflector
from runtime.api_errors import ApiError, Conflict, Gone, Invalid, NotFound
from runtime.clock import ManualClock
from runtime.kubernetes import Session
from simulation.cluster.faults import Fault
from simulation.cluster.faults import Kind as FaultKind
from simulation.cluster.server import EmbeddedApi
from tests.unit.embedded_rig import REPORTS, eventually, pod, report, running, session

NODES = "/api/v1/nodes"
REPORT_PATH = "/apis/sickbay.dev/v1alpha1/acceleratorreports"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def api(clock: ManualClock) -> Iterator[EmbeddedApi]:
    with EmbeddedApi(clock=clock, window_changes=64) as running_api:
        yield running_api


@pytest.fixture
def client(api: EmbeddedApi) -> Session:
    return session(api)


def get(api: EmbeddedApi, path: str, accept: str = "application/json") -> Any:
    answer = urllib3.request("GET", api.url + path, headers={"Accept": accept}, retries=False, timeout=10)
    return answer.status, answer.data


def test_the_session_checks_reads_writes_and_deletes(api: EmbeddedApi, client: Session) -> None:
    assert client.check() == "v1.37.2"
    made = json.loads(client.post(NODES, b'{"metadata":{"name":"n1","labels":{"pool":"gpu"}}}').body)
    with pytest.raises(Conflict) as caught:
        client.post(NODES, b'{"metadata":{"name":"n1"}}')
    assert caught.value.already_exists
    stale = {"metadata": {"resourceVersion": "1"}, "spec": {"unschedulable": True}}
    with pytest.raises(Conflict):
        client.merge_patch(f"{NODES}/n1", msgspec.json.encode(stale))
    with pytest.raises(Invalid):
        client.json_patch(f"{NODES}/n1", b'[{"op":"test","path":"/metadata/name","value":"n2"}]')
    client.strategic_merge_patch(
        f"{NODES}/n1/status", b'{"status":{"conditions":[{"type":"A","status":"True"}]}}'
    )
    with pytest.raises(Conflict):
        client.delete(f"{NODES}/n1", uid="00000000-0000-4000-8000-000000000000")
    client.delete(f"{NODES}/n1", uid=made["metadata"]["uid"])
    with pytest.raises(NotFound):
        client.get(f"{NODES}/n1")


def test_a_list_comes_in_pages_and_410_when_it_took_too_long(api: EmbeddedApi, client: Session) -> None:
    for place in range(5):
        api.store.create("nodes", {"metadata": {"name": f"n{place}"}})
    pages = [json.loads(page.body) for page in client.list_pages(NODES, limit=2)]
    assert [len(page["items"]) for page in pages] == [2, 2, 1]
    assert [page["metadata"].get("remainingItemCount") for page in pages] == [3, 1, None]
    listing = client.list_pages(NODES, limit=2)
    next(listing)
    api.store.create("nodes", {"metadata": {"name": "n9"}})
    api.store.compact()
    with pytest.raises(Gone):
        next(listing)


def test_a_watch_delivers_ends_in_time_with_a_bookmark_and_resumes(
    api: EmbeddedApi, client: Session, clock: ManualClock
) -> None:
    began = str(api.store.version)
    stream = client.watch(NODES, query={}, resource_version=began, timeout_seconds=300, inactivity_seconds=10)
    lines = iter(stream)
    api.store.create("nodes", {"metadata": {"name": "n1"}})
    first = json.loads(next(lines))
    assert (first["type"], first["object"]["kind"]) == ("ADDED", "Node")
    clock.advance(60)
    bookmark = json.loads(next(lines))
    assert (bookmark["type"], bookmark["object"]["metadata"]["resourceVersion"]) == (
        "BOOKMARK",
        str(api.store.version),
    )
    api.store.create(REPORTS, report("n1"))
    clock.advance(300)
    assert [json.loads(line)["type"] for line in lines] == ["BOOKMARK", "BOOKMARK"]
    eventually(lambda: api.watches() == 0, "the watch is over")


def test_a_watch_from_too_long_ago_gets_410_as_an_event(api: EmbeddedApi, client: Session) -> None:
    began = str(api.store.version)
    api.store.create("nodes", {"metadata": {"name": "n1"}})
    api.store.compact()
    stream = client.watch(NODES, query={}, resource_version=began, timeout_seconds=60, inactivity_seconds=10)
    (line,) = [json.loads(line) for line in stream]
    assert (line["type"], line["object"]["code"], line["object"]["reason"]) == ("ERROR", 410, "Expired")


def test_a_reflector_follows_through_breaks_and_410(api: EmbeddedApi, client: Session) -> None:
    known: dict[str, AcceleratorReport] = {}

    def note(event: Event[AcceleratorReport]) -> None:
        if event.kind is Kind.DELETED:
            known.pop(event.key, None)
        elif event.object is not None:
            known[event.key] = event.object

    reflector = Reflector(
        client,
        REPORT_PATH,
        AcceleratorReport,
        key=lambda item: item.metadata.name,
        sink=note,
        page_size=2,
        backoff_seconds=(0.01, 0.05),
    )
    for place in range(5):
        api.store.create(REPORTS, report(f"n{place}"))
    reflector.start()
    assert reflector.synced.wait(10)
    api.faults.add(api_fault("Drop", established=True))
    for place in range(100):
        patch = {"status": {"sequence": place + 1}}
        api.store.patch(REPORTS, "n0", patch, subresource="status")
    api.store.delete(REPORTS, "n4")
    eventually(
        lambda: sorted(known) == ["n0", "n1", "n2", "n3"] and known["n0"].status.sequence == 100,
        "the reflector knows what there is",
        seconds=15,
    )
    reflector.stop()


def api_fault(kind: str, **more: Any) -> Any:
    return Fault(kind=FaultKind(kind), **more)


def test_the_controllers_calls_work_as_they_are(
    api: EmbeddedApi, client: Session, clock: ManualClock
) -> None:
    cluster = Cluster(client, may_write=lambda: True)
    api.store.create("nodes", {"metadata": {"name": "n1", "labels": {"a": "b"}}})
    cluster.patch_node("n1", b'{"spec":{"unschedulable":true}}')
    assert cluster.get_node("n1").cordoned_by == "sickbay-controller"
    assert cluster.report("n1") is None
    assert cluster.control().spec.pause is None
    pods = KubernetesPods(client, clock=clock, may_write=lambda: True)
    made = running(api.store, "p")
    api.store.create("pods", pod("elsewhere", node="n2"))
    assert [found.metadata.name for found in pods.pods_on("n1")] == ["p"]
    with pytest.raises(Conflict):
        pods.delete_pod("default", "p", "00000000-0000-4000-8000-000000000000")
    pods.delete_pod("default", "p", made["metadata"]["uid"])


def test_a_lease_is_created_taken_and_lost_by_its_version(api: EmbeddedApi, client: Session) -> None:
    lease = KubernetesLeaseApi(client, namespace="default", name="leader")
    assert lease.read(timeout=5) is None
    record = LeaseRecord(
        holder="one",
        transitions=0,
        duration_seconds=15,
        acquired="2026-01-01T00:00:00.000000Z",
        renewed="2026-01-01T00:00:00.000000Z",
        resource_version="",
        document=None,
    )
    made = lease.create(record, timeout=5)
    with pytest.raises(Conflict):
        lease.create(record, timeout=5)
    lease.replace(made, timeout=5)
    taken = lease.replace(replace(lease.read(timeout=5) or made, holder="two"), timeout=5)
    assert taken.holder == "two"
    with pytest.raises(Conflict):
        lease.replace(made, timeout=5)


def test_the_audit_names_user_agent_verb_and_object(api: EmbeddedApi) -> None:
    agent = session(api, user="system:node:n1", user_agent="sickbay-agent/1")
    with pytest.raises(NotFound):
        agent.merge_patch(f"{REPORT_PATH}/n1/status", b'{"status":{"sequence":1}}')
    eventually(lambda: api.audit.total == 1, "the request is in the audit")
    (entry,) = api.audit.entries()
    assert (entry.user, entry.user_agent, entry.verb, entry.code) == (
        "system:node:n1",
        "sickbay-agent/1",
        "patch",
        404,
    )
    assert (entry.resource, entry.subresource, entry.name, entry.mutates) == (REPORTS, "status", "n1", True)
    assert entry.body == b'{"status":{"sequence":1}}'


def test_discovery_names_every_resource_with_what_kubectl_calls_it(api: EmbeddedApi) -> None:
    groups = json.loads(get(api, "/apis")[1])["groups"]
    assert "sickbay.dev" in {group["name"] for group in groups}
    listed = json.loads(get(api, "/apis/sickbay.dev/v1alpha1")[1])["resources"]
    short = {item["name"]: item.get("shortNames") for item in listed}
    assert short["acceleratorreports"] == ["acr"]
    assert "acceleratorremediations/status" in short
    core = {item["name"]: item["kind"] for item in json.loads(get(api, "/api/v1")[1])["resources"]}
    assert core["pods/eviction"] == "Eviction"


def test_tables_have_the_columns_that_people_know(api: EmbeddedApi, clock: ManualClock) -> None:
    labels = {"node-role.kubernetes.io/worker": ""}
    status = {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1.37.2"}}
    api.store.create("nodes", {"metadata": {"name": "n1", "labels": labels}, "status": status})
    api.store.patch("nodes", "n1", {"spec": {"unschedulable": True}})
    api.store.create("pods", pod("p"))
    clock.advance(90)
    table = json.loads(get(api, NODES, TABLE)[1])
    assert [column["name"] for column in table["columnDefinitions"]][:5] == [
        "Name",
        "Status",
        "Roles",
        "Age",
        "Version",
    ]
    assert table["rows"][0]["cells"][:5] == ["n1", "Ready,SchedulingDisabled", "worker", "90s", "v1.37.2"]
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    pods = json.loads(get(api, "/api/v1/pods?includeObject=None", TABLE)[1])
    assert pods["rows"][0]["cells"][:5] == ["p", "0/1", "Pending", "0", "90s"]
    assert "object" not in pods["rows"][0]


def test_a_port_in_use_is_an_os_error(api: EmbeddedApi) -> None:
    port = int(api.url.rpartition(":")[2])
    with pytest.raises(OSError, match="address already in use"):
        EmbeddedApi(clock=ManualClock(), port=port).start()


def test_a_stopped_server_leaves_no_thread_and_no_connection(clock: ManualClock) -> None:
    api = EmbeddedApi(clock=clock, crds=False)
    api.start()
    stream = session(api).watch(
        NODES, query={}, resource_version="1", timeout_seconds=60, inactivity_seconds=10
    )
    lines = iter(stream)
    ended: list[Exception] = []

    def read() -> None:
        try:
            next(lines)
        except (ApiError, StopIteration) as error:
            ended.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    eventually(lambda: api.watches() == 1, "the watch is open")
    api.stop()
    reader.join(5)
    assert len(ended) == 1
    assert "embedded-api" not in {thread.name for thread in threading.enumerate()}


def test_the_program_says_how_to_reach_it_and_ends_at_ctrl_c() -> None:
    command = [sys.executable, "-m", "simulation.cluster", "--port", "0"]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    told = [program.stdout.readline() for _ in range(4)]
    assert "kubectl --server http://127.0.0.1:" in told[1]
    port = told[0].split()[2].rpartition(":")[2]
    refused = subprocess.run([*command[:-1], port], capture_output=True, text=True, timeout=30, check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"port {port} cannot be had")
    program.send_signal(signal.SIGINT)
    assert program.wait(10) == 0
