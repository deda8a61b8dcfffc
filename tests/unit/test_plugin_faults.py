"""Faults of device plugins: what is seen for long enough is a fault, what is not known is none."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from health.plugin_faults import CLEAR_SECONDS, PLUGIN_FAULTS, Look, PluginWatch, resource_of, uuid_of
from health.report import Fault
from health.vocabulary import FaultKind, Scope, Severity

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
GPU = "nvidia.com/gpu"
UUIDS = frozenset(f"GPU-{number}" for number in range(8))


@dataclass(frozen=True)
class Seen:
    """A plugin as a probe shows it."""

    state: str
    present: bool = True
    resource: str = GPU
    socket: str = "nvidia-gpu.sock"


@dataclass
class Ward:
    """A watch over time, and the faults that are open."""

    watch: PluginWatch = field(default_factory=PluginWatch)
    faults: dict[tuple[str, str], Fault] = field(default_factory=dict)
    now: float = 0.0

    def see(
        self,
        *plugins: Seen,
        healthy: Iterable[str] | None = UUIDS,
        sound: Iterable[str] = UUIDS,
        bad: Iterable[str] = (),
        failed: Mapping[str, float] | None = None,
        probed: bool = True,
        seconds: float = 0.5,
    ) -> "Ward":
        self.now += seconds
        look = Look(
            plugins=plugins if probed else None,
            healthy=None if healthy is None else {GPU: frozenset(healthy)},
            sound=frozenset(sound),
            bad=frozenset(bad),
            failed=failed or {},
        )
        wall = NOON + timedelta(seconds=self.now)
        self.watch, raised, over = self.watch.seen(
            look, self.faults.keys(), now=self.now, wall=wall, boot_id="boot"
        )
        self.faults.update({fault.identity: fault for fault in raised})
        for key in over:
            del self.faults[key]
        return self

    def see_for(self, seconds: float, *plugins: Seen, **known: object) -> "Ward":
        for _ in range(int(seconds / 0.5)):
            self.see(*plugins, **known)  # type: ignore[arg-type]
        return self

    @property
    def kinds(self) -> list[str]:
        return sorted(kind for kind, _ in self.faults)


SERVING, HUNG, DEAD, LOST = Seen("Serving"), Seen("Hung"), Seen("Dead"), Seen("SocketLost", present=False)
NEVER = Seen("Unknown", present=False)


def test_a_plugin_that_serves_all_devices_has_no_fault() -> None:
    assert Ward().see_for(60, SERVING).kinds == []


@pytest.mark.parametrize(
    ("plugin", "healthy", "kind", "advice"),
    [
        (DEAD, (), FaultKind.PLUGIN_DEAD, "RestartPlugin"),
        (DEAD, UUIDS, FaultKind.PLUGIN_WEDGED, "RestartService"),
        (NEVER, UUIDS, FaultKind.PLUGIN_WEDGED, "RestartService"),
        (HUNG, UUIDS, FaultKind.PLUGIN_HUNG, "RestartPlugin"),
        (LOST, UUIDS, FaultKind.PLUGIN_SOCKET_LOST, "None"),
    ],
)
def test_what_a_plugin_does_is_a_fault_once_it_has_lasted_and_over_once_it_serves(
    plugin: Seen, healthy: Iterable[str], kind: FaultKind, advice: str
) -> None:
    dwell = PLUGIN_FAULTS[kind][2]
    ward = Ward().see_for(dwell, plugin, healthy=healthy)
    assert ward.kinds == []
    (fault,) = ward.see_for(1, plugin, healthy=healthy).faults.values()
    assert (fault.kind, fault.advice, fault.scope) == (kind, advice, Scope.NODE)
    assert fault.code == "plugin:nvidia.com/gpu" and resource_of(fault.code) == GPU
    assert fault.first_seen == NOON + timedelta(seconds=0.5), "when it began, not when it was believed"
    assert ward.see_for(CLEAR_SECONDS, SERVING).kinds == [kind]
    assert ward.see_for(1, SERVING).kinds == []


def test_a_hung_plugin_is_found_within_ten_seconds_of_a_probe_every_two_that_waits_two() -> None:
    assert 2 + 2 + PLUGIN_FAULTS[FaultKind.PLUGIN_HUNG][2] + 0.5 < 10


def test_a_node_that_never_had_a_plugin_has_no_fault() -> None:
    assert Ward().see_for(60, NEVER, healthy=()).kinds == []


def test_a_lost_socket_is_a_wedge_as_soon_as_an_allocation_fails() -> None:
    ward = Ward().see_for(8, LOST)
    assert ward.kinds == ["PluginSocketLost"]
    ward.see_for(20, LOST, failed={GPU: ward.now})
    assert ward.kinds == ["PluginWedged"]


def test_one_device_that_is_not_offered_is_a_fault_of_that_device() -> None:
    ward = Ward().see_for(20, SERVING, healthy=UUIDS - {"GPU-3"})
    (fault,) = ward.faults.values()
    assert (fault.kind, fault.device_uuid, fault.scope) == ("DeviceNotOffered", "GPU-3", Scope.DEVICE)
    assert fault.severity is Severity.DEGRADED


def test_a_device_with_a_fault_of_its_own_need_not_be_offered() -> None:
    rest = UUIDS - {"GPU-3"}
    assert Ward().see_for(60, SERVING, healthy=rest, sound=rest, bad={"GPU-3"}).kinds == []
    assert Ward().see_for(60, SERVING, healthy=rest, sound=rest).kinds == []


def test_a_plugin_that_serves_and_offers_nothing_is_one_fault_of_the_node() -> None:
    (fault,) = Ward().see_for(20, SERVING, healthy=()).faults.values()
    assert (fault.kind, fault.device_uuid, fault.scope) == ("DeviceNotOffered", "", Scope.NODE)


def test_a_bad_device_that_is_offered_is_a_fault_that_does_not_act_by_itself() -> None:
    ward = Ward().see_for(8, SERVING, sound=UUIDS - {"GPU-3"}, bad={"GPU-3"})
    (fault,) = ward.faults.values()
    assert (fault.kind, fault.device_uuid, fault.advice) == ("DeviceOfferedThoughBad", "GPU-3", "None")


def test_ids_that_are_none_of_our_devices_say_nothing_about_them() -> None:
    assert Ward().see_for(60, SERVING, healthy={"MIG-1", "MIG-2"}).kinds == []


def test_a_device_that_is_shared_is_offered_by_each_of_its_parts() -> None:
    shared = {f"{uuid}::{part}" for uuid in UUIDS for part in range(4)}
    assert {uuid_of(one) for one in shared} == UUIDS
    assert Ward().see_for(60, SERVING, healthy=shared).kinds == []


def test_two_plugins_with_the_same_fault_are_one_fault_that_names_both() -> None:
    other = Seen("Dead", resource="nvidia.com/mig-1g.5gb", socket="nvidia-mig.sock")
    (fault,) = Ward().see_for(8, DEAD, other, healthy=()).faults.values()
    assert fault.evidence is not None
    assert "nvidia-gpu.sock" in fault.evidence.excerpt and "nvidia-mig.sock" in fault.evidence.excerpt


@pytest.mark.parametrize("blind", [{"probed": False}, {"healthy": None}, {"probed": False, "healthy": None}])
def test_while_nothing_is_known_no_fault_begins_and_none_ends(blind: dict[str, object]) -> None:
    ward = Ward().see_for(8, DEAD, healthy=())
    assert ward.kinds == ["PluginDead"]
    assert ward.see_for(60, SERVING, **blind).kinds == ["PluginDead"]
    fresh = Ward().see_for(60, SERVING, **{"healthy": (), **blind})
    assert fresh.kinds == []


def test_a_probe_that_begins_anew_does_not_end_the_fault_of_a_plugin_that_is_gone_with_its_socket() -> None:
    ward = Ward().see_for(8, DEAD, healthy=())
    ward.watch = PluginWatch()
    assert ward.see_for(60, NEVER, healthy=()).kinds == ["PluginDead"]
    assert ward.see_for(6, SERVING).kinds == []


states = st.sampled_from([SERVING, HUNG, DEAD, LOST, NEVER])


@given(st.lists(st.tuples(states, st.sampled_from([None, (), tuple(UUIDS)]), st.booleans())))
def test_nothing_is_raised_that_did_not_last_and_nothing_ends_before_it_was_good_for_long_enough(
    looks: list[tuple[Seen, tuple[str, ...] | None, bool]],
) -> None:
    ward = Ward()
    since: dict[str, float] = {}
    for plugin, healthy, probed in looks:
        before = set(ward.kinds)
        ward.see(plugin, healthy=healthy, probed=probed)
        shown = {key[0] for key in ward.watch.rising}
        since = {kind: since.get(kind, ward.now) for kind in shown}
        for kind in set(ward.kinds) - before:
            assert ward.now - since[kind] >= PLUGIN_FAULTS[kind][2]
        for kind in before - set(ward.kinds):
            assert probed and kind not in shown


@given(st.lists(st.sampled_from([(SERVING, HUNG), (HUNG, SERVING)]), max_size=40))
def test_states_that_alternate_faster_than_the_dwell_raise_nothing(pairs: list[tuple[Seen, Seen]]) -> None:
    ward = Ward()
    for pair in pairs:
        for plugin in pair:
            ward.see(plugin, seconds=1.0)
    assert ward.kinds == []
