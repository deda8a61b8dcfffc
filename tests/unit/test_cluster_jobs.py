"""Jobs of the embedded control plane."""

from __future__ import annotations

from typing import Any

import pytest

from simulation.cluster.job_pods import completed_indexes, written_indexes
from tests.unit.cluster_rig import Object, Rig, job, template


def timed(seconds: float, code: int = 0, *, policy: str = "Never", **more: str) -> Object:
    notes = {"sickbay.dev/simulate-seconds": str(seconds), "sickbay.dev/simulate-exit": str(code), **more}
    return template("j", annotations=notes, restartPolicy=policy)


def status(rig: Rig) -> dict[str, Any]:
    found: dict[str, Any] = rig.get("jobs.batch", "j")["status"]
    return found


def ended(rig: Rig) -> dict[str, str]:
    return {one["type"]: one["reason"] for one in status(rig).get("conditions") or ()}


def test_a_job_runs_as_many_pods_at_once_as_it_may_until_enough_have_succeeded() -> None:
    rig = Rig(nodes=2)
    rig.create("jobs.batch", job("j", made_of=timed(10), parallelism=2, completions=3))
    assert status(rig)["active"] == 2
    rig.advance(10)
    assert (status(rig)["active"], status(rig)["succeeded"]) == (1, 2)
    rig.advance(10)
    assert (status(rig).get("active"), status(rig)["succeeded"]) == (None, 3)
    assert ended(rig) == {"SuccessCriteriaMet": "CompletionsReached", "Complete": "CompletionsReached"}
    assert status(rig)["completionTime"] == "2026-01-01T00:00:20Z"
    assert len(rig.pods("Succeeded")) == 3


def test_a_failure_with_no_retries_left_fails_the_job() -> None:
    rig = Rig(nodes=1)
    rig.create("jobs.batch", job("j", made_of=timed(3, 1), backoffLimit=0))
    rig.advance(3)
    assert ended(rig) == {"FailureTarget": "BackoffLimitExceeded", "Failed": "BackoffLimitExceeded"}
    assert status(rig)["failed"] == 1
    rig.advance(3600)
    assert len(rig.pods()) == 1


def test_retries_come_after_a_back_off_that_doubles() -> None:
    rig = Rig(nodes=1)
    rig.create("jobs.batch", job("j", made_of=timed(0, 1), backoffLimit=2))
    born = []
    for _ in range(60):
        born.append(len(rig.pods()))
        rig.advance(1)
    assert born.index(2) == 10
    assert born.index(3) == 30
    assert ended(rig)["Failed"] == "BackoffLimitExceeded"
    assert status(rig)["failed"] == 3


def test_a_running_pod_that_is_deleted_counts_as_failed_and_is_replaced() -> None:
    rig = Rig(nodes=1)
    rig.create("jobs.batch", job("j", made_of=timed(100)))
    (first,) = rig.names()
    rig.delete("pods", first)
    rig.advance(1)
    assert status(rig)["failed"] == 1
    rig.advance(10)
    (second,) = rig.names("Running")
    assert second != first
    rig.advance(100)
    assert ended(rig)["Complete"] == "CompletionsReached"


def test_deleting_a_pod_of_a_job_without_retries_fails_it() -> None:
    rig = Rig(nodes=1)
    rig.create("jobs.batch", job("j", made_of=timed(100), backoffLimit=0))
    rig.delete("pods", rig.names()[0])
    assert ended(rig)["Failed"] == "BackoffLimitExceeded"


def test_a_job_has_failed_only_when_its_last_pod_has_ended() -> None:
    rig = Rig(nodes=1)
    slow = timed(100, 0, **{"sickbay.dev/simulate-stop-seconds": "8"})
    rig.create("jobs.batch", job("j", made_of=slow, parallelism=2, completions=2, backoffLimit=0))
    first, _ = rig.names()
    rig.delete("pods", first, grace_seconds=0)
    assert set(ended(rig)) == {"FailureTarget"}
    rig.advance(9)
    assert ended(rig)["Failed"] == "BackoffLimitExceeded"


def test_on_failure_restarts_the_container_in_its_pod() -> None:
    rig = Rig(nodes=1)
    rig.create("jobs.batch", job("j", made_of=timed(1, 1, policy="OnFailure"), backoffLimit=3))
    rig.advance(5)
    (one,) = rig.pods("Running")
    assert one["status"]["containerStatuses"][0]["restartCount"] == 1
    waiting = one["status"]["containerStatuses"][0]["state"]["waiting"]
    assert waiting["reason"] == "CrashLoopBackOff"
    rig.advance(60)
    assert ended(rig)["Failed"] == "BackoffLimitExceeded"


def test_a_job_that_is_active_for_too_long_fails() -> None:
    rig = Rig(nodes=1)
    rig.create("jobs.batch", job("j", made_of=timed(1000), activeDeadlineSeconds=30))
    rig.advance(29)
    assert ended(rig) == {}
    rig.advance(2)
    assert ended(rig)["Failed"] == "DeadlineExceeded"
    assert rig.pods("Running") == []


def test_a_finished_job_goes_with_its_pods_when_its_time_to_live_is_over() -> None:
    rig = Rig(nodes=1)
    rig.create("jobs.batch", job("j", made_of=timed(1), ttlSecondsAfterFinished=60))
    rig.advance(60)
    assert len(rig.store.list("jobs.batch")) == 1
    rig.advance(2)
    assert rig.store.list("jobs.batch") == []
    assert rig.pods() == []


def test_an_indexed_job_runs_each_index_again_until_it_has_succeeded() -> None:
    rig = Rig(nodes=1)
    body = job("j", made_of=timed(50), completionMode="Indexed", completions=3, parallelism=3)
    rig.create("jobs.batch", body)
    indexes = {
        one["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]: one["metadata"]["name"]
        for one in rig.pods()
    }
    assert set(indexes) == {"0", "1", "2"}
    rig.delete("pods", indexes["1"])
    rig.advance(51)
    assert status(rig)["completedIndexes"] == "0,2"
    rig.advance(51)
    assert status(rig)["completedIndexes"] == "0-2"
    assert ended(rig)["Complete"] == "CompletionsReached"


def test_a_suspended_job_has_no_pods_and_goes_on_when_it_is_resumed() -> None:
    rig = Rig(nodes=1)
    rig.create("jobs.batch", job("j", made_of=timed(5)))
    rig.patch("jobs.batch", "j", {"spec": {"suspend": True}})
    rig.advance(2)
    assert rig.pods("Running") == []
    assert ended(rig) == {"Suspended": "JobSuspended"}
    rig.patch("jobs.batch", "j", {"spec": {"suspend": False}})
    rig.advance(30)
    assert ended(rig)["Complete"] == "CompletionsReached"


def test_deleting_a_job_lets_its_pods_go() -> None:
    rig = Rig(nodes=1)
    rig.create("jobs.batch", job("j", made_of=timed(1000)))
    rig.delete("jobs.batch", "j")
    rig.advance(2)
    assert rig.pods() == []


def test_a_count_that_was_written_is_not_taken_twice_by_a_new_control_plane() -> None:
    rig = Rig(nodes=1)
    rig.create("jobs.batch", job("j", made_of=timed(1), completions=2, parallelism=1))
    rig.advance(1)
    held = {"metadata": {"finalizers": ["batch.kubernetes.io/job-tracking"]}}
    uid = rig.pods("Succeeded")[0]["metadata"]["uid"]
    before = status(rig)["succeeded"]
    rig.store.patch("pods", rig.names("Succeeded")[0], held, namespace="default")
    told = {"status": {"succeeded": before - 1, "uncountedTerminatedPods": {"succeeded": [uid]}}}
    rig.patch("jobs.batch", "j", told, subresource="status")
    assert status(rig)["succeeded"] == before


@pytest.mark.parametrize(
    ("indexes", "text"), [([], ""), ([3], "3"), ([0, 1], "0,1"), ([0, 1, 2, 5, 7, 8], "0-2,5,7,8")]
)
def test_indexes_are_written_as_runs_and_read_back(indexes: list[int], text: str) -> None:
    assert written_indexes(indexes) == text
    written = {"spec": {"completions": 10}, "status": {"completedIndexes": text}}
    assert completed_indexes(written, []) == set(indexes)
