"""Who holds which device: how far an answer of the kubelet is believed."""

from hypothesis import given
from hypothesis import strategies as st

from exporter.holdings import CONFIRM_SECONDS, Holding, Holdings, Ledger, healthy_devices, held_devices
from runtime.kubelet_messages import (
    AllocatableResourcesResponse,
    ContainerDevices,
    ContainerResources,
    ListPodResourcesResponse,
    PodResources,
)

GPU = "nvidia.com/gpu"


def holding(device: str, pod: str = "p", container: str = "main", resource: str = GPU) -> Holding:
    return Holding(resource, device, "ns", pod, container)


def view(*held: Holding, healthy: tuple[str, ...] = ()) -> Holdings:
    return Holdings(tuple(sorted(held)), {GPU: frozenset(healthy)} if healthy else {})


def test_a_list_is_one_holding_for_each_device_of_each_container() -> None:
    def devices(resource: str, *ids: str) -> ContainerDevices:
        return ContainerDevices(resource_name=resource, device_ids=ids)

    containers = [
        ContainerResources(name="b", devices=[devices(GPU, "GPU-2"), devices(GPU, "GPU-1")]),
        ContainerResources(name="a", devices=[devices("example.com/nic", "nic-0")]),
        ContainerResources(name="none"),
    ]
    answer = ListPodResourcesResponse(
        pod_resources=[
            PodResources(namespace="ns", name="p", containers=containers),
            PodResources(namespace="ns", name="without"),
        ]
    )
    assert held_devices(answer) == (
        Holding("example.com/nic", "nic-0", "ns", "p", "a"),
        Holding(GPU, "GPU-1", "ns", "p", "b"),
        Holding(GPU, "GPU-2", "ns", "p", "b"),
    )
    offered = AllocatableResourcesResponse(devices=[devices(GPU, "GPU-1"), devices(GPU, "GPU-2")])
    assert healthy_devices(offered) == {GPU: {"GPU-1", "GPU-2"}}


def test_a_shared_device_has_its_own_uuid() -> None:
    assert holding("GPU-1::3").uuid == "GPU-1"
    assert holding("GPU-1").uuid == "GPU-1"


def test_one_answer_without_a_device_does_not_free_it() -> None:
    ledger = Ledger().with_answer(view(holding("GPU-1")), 10.0)
    ledger = ledger.with_answer(view(), 11.0)
    assert ledger.shown.held == (holding("GPU-1"),)
    assert ledger.with_answer(view(), 11.0 + CONFIRM_SECONDS).shown.held == ()


def test_answers_in_quick_succession_count_as_one() -> None:
    ledger = Ledger().with_answer(view(holding("GPU-1")), 10.0)
    for step in range(5):
        ledger = ledger.with_answer(view(), 11.0 + step * 0.05)
    assert ledger.shown.held == (holding("GPU-1"),)


def test_a_device_that_comes_back_has_to_be_missing_anew() -> None:
    ledger = Ledger().with_answer(view(holding("GPU-1")), 10.0).with_answer(view(), 11.0)
    ledger = ledger.with_answer(view(holding("GPU-1")), 12.0).with_answer(view(), 13.0)
    assert ledger.shown.held == (holding("GPU-1"),)


def test_a_device_that_somebody_else_holds_changes_hands_at_once() -> None:
    ledger = Ledger().with_answer(view(holding("GPU-1", "old")), 10.0)
    ledger = ledger.with_answer(view(holding("GPU-1", "new")), 10.1)
    assert ledger.shown.held == (holding("GPU-1", "new"),)


def test_the_same_name_of_another_resource_is_another_device() -> None:
    ledger = Ledger().with_answer(view(holding("0")), 10.0)
    ledger = ledger.with_answer(view(holding("0", resource="example.com/nic")), 10.1)
    assert len(ledger.shown.held) == 2


def test_what_is_missing_before_a_pause_has_to_be_missing_after_it_too() -> None:
    ledger = Ledger().with_answer(view(holding("GPU-1")), 10.0).with_answer(view(), 11.0)
    ledger = ledger.undecided().with_answer(view(), 20.0)
    assert ledger.shown.held == (holding("GPU-1"),)


def test_what_is_healthy_is_believed_at_once() -> None:
    ledger = (
        Ledger()
        .with_answer(view(healthy=("GPU-1", "GPU-2")), 10.0)
        .with_answer(view(healthy=("GPU-1",)), 10.1)
    )
    assert ledger.shown.healthy == {GPU: {"GPU-1"}}


ANSWERS = st.lists(
    st.tuples(
        st.floats(0, 2),
        st.dictionaries(st.sampled_from(["GPU-1", "GPU-2"]), st.sampled_from(["a", "b"]), max_size=2),
    ),
    max_size=12,
)


@given(ANSWERS)
def test_a_device_has_one_holder_and_is_free_only_after_two_answers(
    answers: list[tuple[float, dict]],
) -> None:
    ledger, now, lacking = Ledger(), 0.0, {}
    for pause, pods in answers:
        now += pause
        ledger = ledger.with_answer(view(*(holding(*pair) for pair in pods.items())), now)
        shown = {one.device_id: one.pod for one in ledger.shown.held}
        assert len(shown) == len(ledger.shown.held)
        assert {name: pod for name, pod in shown.items() if name in pods} == pods
        for device in ("GPU-1", "GPU-2"):
            lacking[device] = [] if device in pods else [*lacking.get(device, []), now]
            if lacking[device] and lacking[device][-1] - lacking[device][0] >= CONFIRM_SECONDS:
                assert len(lacking[device]) < 2 or device not in shown
        assert set(ledger.missing) <= set(ledger.shown.held)
