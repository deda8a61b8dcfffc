"""Whatever befalls a small simulated fleet, the real controller does nothing that it never may, and comes to an end."""

from __future__ import annotations

import dataclasses

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from health.vocabulary import Phase
from simulation.fleet_rates import Rates, builtin
from simulation.fleet_run import COARSE, Simulation
from simulation.fleet_workloads import Load

_NODES = 4
_PROFILE = dataclasses.replace(
    COARSE,
    gpus=2,
    load=Load(training=0.5, inference=0.25, gang_nodes=2, replicas=2),
    lost_seconds=(600.0, 1200.0),
)
_RATES = Rates(
    tuple(
        dataclasses.replace(cause, reboot=1.0) if cause.name == "host-lost" else cause for cause in builtin()
    ),
    factor=0,
)
_CAUSES = st.sampled_from([cause.name for cause in _RATES])
_EVENTS = st.one_of(
    st.tuples(st.just("fault"), st.integers(0, _NODES - 1), _CAUSES),
    st.tuples(st.just("cordon"), st.integers(0, _NODES - 1), st.just("")),
    st.tuples(st.just("uncordon"), st.integers(0, _NODES - 1), st.just("")),
    st.tuples(st.just("fail over"), st.just(0), st.just("")),
)


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 1000),
    story=st.lists(st.tuples(st.sampled_from([1.0, 20.0, 300.0]), _EVENTS), min_size=1, max_size=8),
)
def test_no_story_makes_the_controller_do_wrong_or_leaves_a_cordon_behind(
    seed: int, story: list[tuple[float, tuple[str, int, str]]]
) -> None:
    run = Simulation.begin(nodes=_NODES, seed=seed, rates=_RATES, profile=_PROFILE)
    run.advance(150)
    for pause, (what, number, cause) in story:
        name = run.fleet.nodes[number].name
        match what:
            case "fault":
                run.fleet.inject(name, cause, gpu=seed % 2)
            case "cordon" if name not in run.monitor.cordoned_by_us:
                run.monitor.cordon(name)
            case "uncordon":
                run.monitor.uncordon(name)
            case "fail over":
                run.fail_over()
        run.advance(pause)
    run.advance(3 * 3600)
    assert run.monitor.wrong == []
    assert run.monitor.unsettled() == []
    held = {
        session["spec"]["nodeName"]
        for session in run.store.list("acceleratorremediations.sickbay.dev")
        if session["status"]["phase"] not in (Phase.RELEASED, Phase.CANCELLED)
    }
    assert set(run.monitor.cordoned_by_us) <= held
