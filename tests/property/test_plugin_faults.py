"""Whatever plugins and the kubelet do: no fault without data, none that did not last, none that changes its name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from health.plugin_faults import CLEAR_SECONDS, PLUGIN_FAULTS
from tests.unit.plugin_ward import DEAD, DOUBTFUL, GONE, GPU, HUNG, LOST, NEVER, SERVING, UUIDS, Ward

MOST, LEAST = sorted(UUIDS)[:6], sorted(UUIDS)[6:]
looks = st.fixed_dictionaries(
    {
        "plugin": st.sampled_from([SERVING, HUNG, DEAD, GONE, LOST, NEVER, DOUBTFUL]),
        "healthy": st.sampled_from([None, (), tuple(UUIDS), tuple(MOST), ("MIG-1",)]),
        "sound": st.sampled_from([(), tuple(UUIDS), tuple(MOST)]),
        "bad": st.sampled_from([(), tuple(LEAST)]),
        "failed": st.booleans(),
        "probed": st.booleans(),
        "repeats": st.integers(1, 40),
    }
)


def lead(ward, look):
    """Look in this way so often, and yield before each look what was open."""
    known = {name: look[name] for name in ("healthy", "sound", "bad", "probed")}
    failed = {GPU: ward.now} if look["failed"] else {}
    for _ in range(look["repeats"]):
        before = dict(ward.faults)
        ward.see(look["plugin"], failed=failed, **known)
        yield before


@given(st.lists(looks, max_size=12))
def test_a_fault_is_raised_after_its_dwell_and_ends_after_the_other(history):
    ward = Ward()
    steady: dict[tuple[str, str], float] = {}
    for look in history:
        for before in lead(ward, look):
            tracks = {
                (subject.kind, subject.device_uuid): track for subject, track in ward.watch.tracks.items()
            }
            for identity in ward.faults.keys() - before.keys():
                assert tracks[identity].holds is True
                assert ward.now - tracks[identity].since >= PLUGIN_FAULTS[identity[0]][2]
            for identity in before.keys() - ward.faults.keys():
                assert ward.now - steady[identity] >= CLEAR_SECONDS, (
                    "it was not seen to be over for long enough"
                )
            steady = {
                identity: track.since if track.holds is False else ward.now
                for identity, track in tracks.items()
            }


@given(st.lists(looks, max_size=12))
def test_without_data_no_fault_begins_and_none_ends(history):
    ward = Ward()
    for look in history:
        for before in lead(ward, look):
            new, over = ward.faults.keys() - before.keys(), before.keys() - ward.faults.keys()
            if not look["probed"]:
                assert {kind for kind, _ in new | over} <= {"DeviceOfferedThoughBad"}
            if look["healthy"] is None:
                kinds = {kind for kind, _ in new}
                assert not kinds & {"DeviceNotOffered", "DeviceOfferedThoughBad"}
                assert "PluginWedged" not in kinds or look["failed"]


@given(st.lists(looks, max_size=12))
def test_an_open_fault_keeps_its_identity_its_beginning_and_its_count(history):
    ward = Ward()
    for look in history:
        for before in lead(ward, look):
            for identity, fault in ward.faults.items():
                assert fault.identity == identity
                assert fault.first_seen <= fault.last_seen
                if identity in before:
                    same = before[identity]
                    assert (fault.first_seen, fault.count) == (same.first_seen, 1)
                    assert fault.last_seen >= same.last_seen


@given(st.lists(looks, max_size=8), st.integers(0, 8), looks)
def test_a_restart_of_the_agent_neither_raises_nor_ends_a_fault(history, moment, after):
    ward = Ward()
    for number, look in enumerate(history):
        if number == moment:
            ward.restart()
        for _ in lead(ward, look):
            pass
    open_before = dict(ward.faults)
    ward.restart()
    for _ in lead(ward, {**after, "repeats": 1}):
        pass
    assert {key: fault.first_seen for key, fault in ward.faults.items()} == {
        key: fault.first_seen for key, fault in open_before.items()
    }


@given(st.lists(st.sampled_from([(SERVING, HUNG), (HUNG, DEAD), (DEAD, LOST), (LOST, SERVING)]), max_size=60))
def test_states_that_alternate_faster_than_the_dwell_raise_nothing(pairs):
    ward = Ward()
    for pair in pairs:
        for plugin in pair:
            ward.see(plugin, healthy=() if plugin is DEAD else UUIDS, seconds=1.4)
    assert ward.kinds == []
