"""Which pods belong together, and what is left of a reason to touch them."""

import pytest
from msgspec.structs import replace

from health.report import AcceleratorReport
from health.vocabulary import Phase
from remediation.evidence import lacking, lacking_live
from remediation.gangs import gang_of, gangs_of
from remediation.pod import Pod
from tests.fake_pods import make_pod
from tests.unit.builders import NOON, fault, node, report, session


@pytest.mark.parametrize(
    ("pod", "gang"),
    [
        (make_pod(owner="Job"), "Job/team/owner"),
        (make_pod(owner="ReplicaSet"), ""),
        (make_pod(owner="StatefulSet"), ""),
        (make_pod(owner=""), ""),
    ],
)
def test_a_job_is_a_gang_and_pods_that_replace_each_other_are_none(pod: Pod, gang: str) -> None:
    assert gang_of(pod) == gang


@pytest.mark.parametrize(
    ("key", "gang"),
    [
        ("jobset.sigs.k8s.io/jobset-name", "JobSet/team/x"),
        ("leaderworkerset.sigs.k8s.io/name", "LeaderWorkerSet/team/x"),
        ("training.kubeflow.org/job-name", "TrainingJob/team/x"),
        ("ray.io/cluster", "RayCluster/team/x"),
        ("scheduling.x-k8s.io/pod-group", "PodGroup/team/x"),
        ("pod-group.scheduling.sigs.k8s.io", "PodGroup/team/x"),
    ],
)
def test_the_workload_as_a_whole_counts_before_the_job_that_is_part_of_it(key: str, gang: str) -> None:
    pod = make_pod(owner="Job")
    assert gang_of(replace(pod, metadata=replace(pod.metadata, labels={key: "x"}))) == gang
    assert gang_of(replace(pod, metadata=replace(pod.metadata, labels={key: ""}))) == "Job/team/owner"


def test_a_pod_group_may_be_named_by_an_annotation() -> None:
    pod = make_pod(owner="")
    grouped = replace(pod.metadata, annotations={"scheduling.k8s.io/group-name": "x"})
    assert gang_of(replace(pod, metadata=grouped)) == "PodGroup/team/x"


def test_a_name_that_is_longer_than_any_label_is_cut_to_what_the_schema_stores() -> None:
    pod = make_pod(owner="")
    grouped = replace(pod.metadata, annotations={"scheduling.k8s.io/group-name": "x" * 1000})
    assert len(gang_of(replace(pod, metadata=grouped))) == 256


def test_each_group_of_leader_and_workers_is_a_gang_of_its_own() -> None:
    pod = make_pod(owner="StatefulSet")
    labels = {"leaderworkerset.sigs.k8s.io/name": "x", "leaderworkerset.sigs.k8s.io/group-index": "3"}
    assert gang_of(replace(pod, metadata=replace(pod.metadata, labels=labels))) == "LeaderWorkerSet/team/x/3"


def test_gangs_of_a_node_are_sorted_unique_and_bounded() -> None:
    pods = [make_pod(namespace=f"team-{number:03}", owner="Job") for number in range(130)]
    found = gangs_of([*pods, *pods, make_pod(owner="")])
    assert len(found) == 128 and found[0] == "Job/team-000/owner" and list(found) == sorted(set(found))


RESET = fault("EngineHung", advice="ResetDevice", clears_on="DeviceReset")
ABOUT_RESET = session(RESET, phase=Phase.FENCED).current
ABOUT_BOOT = session(fault(), phase=Phase.FENCED).current


def test_evidence_is_a_fresh_report_or_a_fault_that_only_a_boot_clears() -> None:
    assert lacking(ABOUT_RESET, node(), report("n1", RESET)) == ""
    assert "no fresh report" in lacking(ABOUT_RESET, node(), None)
    assert lacking(ABOUT_BOOT, node(), None) == ""
    assert "no fresh report" in lacking(ABOUT_BOOT, node(boot="boot-2"), None)


def test_of_faults_that_are_over_nothing_is_left() -> None:
    over = tuple(replace(item, cleared_time=NOON) for item in ABOUT_BOOT.incidents)
    gone = replace(ABOUT_BOOT, incidents=over)
    assert "nothing is left" in lacking(gone, node(), report("n1", fault()))
    assert "does not find" in lacking_live(gone, node(), report("n1", fault()))


@pytest.mark.parametrize(
    ("found", "there"),
    [
        (report("n1", RESET), True),
        (report("n1"), False),
        (None, False),
        (report("n1", RESET, boot="boot-0"), False),
        (report("n1", RESET, uid="another"), False),
        (report("n1", fault("EngineHung", device="GPU-other")), False),
    ],
)
def test_a_live_look_wants_the_same_fault_of_this_node_and_boot(
    found: AcceleratorReport | None, there: bool
) -> None:
    assert (lacking_live(ABOUT_RESET, node(), found) == "") is there


def test_a_live_look_finds_a_fault_that_only_a_boot_clears_though_its_agent_is_silent() -> None:
    assert lacking_live(ABOUT_BOOT, node(), None) == ""
    assert "does not find" in lacking_live(ABOUT_BOOT, node(boot="boot-2"), None)
