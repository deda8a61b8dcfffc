"""The policy file, which rule decides, and what a plan and a limit come to."""

from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from health.vocabulary import Advice, Mode, Severity
from remediation.drain_policy import DrainMode, DrainPolicy, PodSelection, PreDrain
from remediation.plugin_policy import DevicePluginPolicy
from remediation.policy import (
    DEFAULT_POOL,
    LADDER,
    RUNG_STEPS,
    Fence,
    Match,
    NodeLimit,
    Policy,
    Rule,
    StepName,
    acts,
    advice_rank,
    load_policy,
    plan_for,
)
from remediation.repair_policy import VerificationPolicy
from remediation.steps.release import OPERAND_PREFIX
from runtime.config_error import ConfigError
from runtime.quantities import Duration
from tests.unit.builders import fault, policy

HEAD = "apiVersion: sickbay.dev/v1alpha1\nkind: Policy\n"
WHOLE = (
    HEAD
    + """
metadata: {name: fleet}
pools:
  - name: h100
    selector: {matchLabels: {pool: h100, zone: a}}
  - name: rest
    selector: {matchLabels: {pool: rest}}
rules:
  - name: lost
    match: {kinds: [DeviceLost], pools: [h100], severities: [Fatal]}
    mode: Auto
  - name: replace
    match: {advice: [ReplaceHardware]}
    mode: Approve
    plan: [RebootNode, ReplaceHardware]
  - name: everything
    mode: Observe
budgets:
  maxFenced: 25%
  maxDisrupted: 2
  floor: 0
  startRate: {perMinute: 3, burst: 4}
healthyDwell: 90s
"""
)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    return path


def test_a_whole_policy_is_read_as_it_is_written(tmp_path: Path) -> None:
    read = load_policy(written(tmp_path, WHOLE))
    assert read.metadata.name == "fleet"
    assert [pool.name for pool in read.pools] == ["h100", "rest"]
    assert [(rule.name, rule.mode) for rule in read.rules] == [
        ("lost", Mode.AUTO),
        ("replace", Mode.APPROVE),
        ("everything", Mode.OBSERVE),
    ]
    assert read.rules[1].plan == (Advice.REBOOT_NODE, Advice.REPLACE_HARDWARE)
    assert (str(read.budgets.max_fenced), str(read.budgets.max_disrupted), read.budgets.floor) == (
        "25%",
        "2",
        0,
    )
    assert (read.budgets.start_rate.per_minute, read.budgets.start_rate.burst) == (3, 4)
    assert read.dwell.total_seconds() == 90


def test_the_least_that_can_be_written_observes_everything_within_the_default_budgets(tmp_path: Path) -> None:
    read = load_policy(written(tmp_path, HEAD))
    assert read == Policy()
    rule = read.rule_for(fault(), DEFAULT_POOL)
    assert rule is not None and rule.mode is Mode.OBSERVE
    assert (str(read.budgets.max_fenced), str(read.budgets.max_disrupted), read.budgets.floor) == (
        "30%",
        "5%",
        1,
    )
    assert (read.budgets.start_rate.per_minute, read.budgets.start_rate.burst) == (5, 10)
    assert read.dwell.total_seconds() == 300


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rules: [{name: r, mode: auto}]", ["rules[0].mode", '"auto"', "Auto"]),
        (
            "rules: [{name: r, match: {kinds: [DeviceLsot]}}]",
            ["rules[0].match.kinds", "DeviceLsot", "DeviceLost"],
        ),
        ("rules: [{name: r, match: {advice: [Reboot]}}]", ["rules[0].match.advice", "RebootNode"]),
        ("rules: [{name: r, match: {pools: [h10]}}]", ["rules[0].match.pools", '"h10"', "default"]),
        ("rules: [{name: r, plan: [RestartWorkload]}]", ["rules[0].plan", "RestartWorkload", "RebootNode"]),
        (
            "rules: [{name: r, plan: [ResetDevice, RebootNode, ResetDevice]}]",
            ["rules[0].plan", "ResetDevice once at most"],
        ),
        ("rules: [{name: r, math: {}}]", ["math", "match"]),
        ("pools: [{name: a}, {name: a}]", ["pools[1].name", "no other pool"]),
        ("pools: [{name: default}]", ["pools[0].name", "no other pool"]),
        ("pools: [{name: ''}]", ["pools[0].name"]),
        ("budgets: {maxFenced: 30}", None),
        ("budgets: {maxFenced: 130%}", ["budgets.maxFenced", "130%", "percentage of the nodes"]),
        ("budgets: {maxFenced: -1}", ["budgets.maxFenced", "-1"]),
        ("budgets: {maxFenced: 0.3}", ["budgets.maxFenced", "0.3"]),
        ("budgets: {maxFenced: true}", ["budgets.maxFenced"]),
        ("budgets: {startRate: {burst: 0}}", ["budgets.startRate.burst"]),
        ("budgets: {startRate: {perMinute: -1}}", ["budgets.startRate.perMinute"]),
        ("healthyDwell: 300", ["healthyDwell", "300", "unit"]),
        ("kind: Polizei", ["kind", "Policy"]),
        (
            "rules: [{name: r, fence: Devices}]",
            ["rules[0].fence", '"Devices"', "Node, Device", 'mean "Device"'],
        ),
        (
            "rules: [{name: r, drain: {mode: Evcit}}]",
            ["rules[0].drain.mode", '"Evcit"', "EvictAfter", 'mean "Evict"'],
        ),
        ("rules: [{name: r, drain: {podz: All}}]", ["rules[0].drain.podz", "pods"]),
        ("rules: [{name: r, drain: {pods: Gpu}}]", ["rules[0].drain.pods", '"Gpu"', "Accelerator, All"]),
        ("rules: [{name: r, drain: {deadline: 1 day}}]", ["rules[0].drain.deadline", '"1 day"', "1h30m"]),
        ("rules: [{name: r, drain: {deadline: 0s}}]", ["rules[0].drain", "longer than 0s"]),
        ("rules: [{name: r, drain: {mode: EvictAfter}}]", ["rules[0].drain", "evictAfter", "how long"]),
        ("rules: [{name: r, drain: {evictAfter: 5m}}]", ["rules[0].drain", "only beside EvictAfter"]),
        (
            "rules: [{name: r, drain: {mode: EvictAfter, evictAfter: 2h}}]",
            ["rules[0].drain", "before the deadline of 1h"],
        ),
        (
            "rules: [{name: r, drain: {deadline: 1m, preDrain: {wait: 2m}}}]",
            ["rules[0].drain", "preDrain.wait", "1m"],
        ),
        ("rules: [{name: r, drain: {preDrain: {notice: ''}}}]", ["rules[0].drain.preDrain.notice"]),
        ("rules: [{name: r, drain: {concurrency: 0}}]", ["rules[0].drain.concurrency", "0", "1"]),
        ("rules: [{name: r, drain: {concurrency: 33}}]", ["rules[0].drain.concurrency", "33", "32"]),
        ("rules: [{name: r, drain: {force: 'yes'}}]", ["rules[0].drain.force", '"yes"']),
        ("rules: [{name: r, drain: [Evict]}]", ["rules[0].drain"]),
        ("devicePlugin: {selector: []}", ["devicePlugin.selector", "selectors"]),
        (
            "devicePlugin: {selectors: [{matchLabels: {}}]}",
            ["devicePlugin.selectors[0]", "at least one label"],
        ),
        ("devicePlugin: {selectors: [{namespace: gpu}]}", ["devicePlugin.selectors[0]", "matchLabels"]),
        (
            "devicePlugin: {selectors: [{matchLabels: {a: b}, namspace: x}]}",
            ["devicePlugin.selectors[0].namspace", "namespace"],
        ),
        ("devicePlugin: {deadline: 90}", ["devicePlugin.deadline", "90", "unit"]),
        ("devicePlugin: {healthyDwell: soon}", ["devicePlugin.healthyDwell", '"soon"']),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_key_value_and_what_was_expected(
    tmp_path: Path, text: str, told: list[str] | None
) -> None:
    path = written(tmp_path, text if text.startswith("kind") else HEAD + text)
    if told is None:
        load_policy(path)
        return
    with pytest.raises(ConfigError) as caught:
        load_policy(path)
    for part in [str(path), *told]:
        assert part in str(caught.value)


def test_the_first_rule_that_matches_decides() -> None:
    rules = (
        Rule(name="kind", match=Match(kinds=("DeviceLost",), pools=("a",))),
        Rule(name="code", match=Match(codes=("xid:79", "xid:119"))),
        Rule(name="severe", match=Match(severities=(Severity.FATAL,), advice=("RebootNode",))),
    )
    made = policy(Mode.AUTO, *rules)

    def decided(pool: str, **about: object) -> str | None:
        found = made.rule_for(fault(**about), pool)
        return found.name if found else None

    assert decided("a") == "kind"
    assert decided("b") == "code"
    assert decided("b", code="xid:1") == "severe"
    assert decided("b", code="xid:1", severity=Severity.DEGRADED) is None
    assert decided("a", kind="EngineHung", code="", advice="ResetDevice") is None


def test_a_node_is_in_the_first_pool_that_all_labels_fit_else_in_the_default_one(tmp_path: Path) -> None:
    read = load_policy(written(tmp_path, WHOLE))
    assert read.pool_of({"pool": "h100", "zone": "a", "more": "x"}) == "h100"
    assert read.pool_of({"pool": "h100"}) == DEFAULT_POOL
    assert read.pool_of({"pool": "rest"}) == "rest"
    assert read.pool_of({}) == DEFAULT_POOL


@pytest.mark.parametrize("advice", Advice)
def test_advice_that_has_a_ladder_acts_and_its_plan_begins_with_the_cordon(advice: Advice) -> None:
    plan = plan_for(Rule(name="r"), advice.value)
    assert acts(fault(advice=advice.value)) == (advice in LADDER) == bool(plan)
    for rung in plan:
        assert rung.steps[0] == StepName.CORDON
        assert rung.steps == tuple(RUNG_STEPS[Advice(rung.rung)])
    assert [rung.rung for rung in plan] == [rung.value for rung in LADDER.get(advice, ())]


@pytest.mark.parametrize("advice", ["", "None", "RunDiagnostics", "RestartWorkload", "ContactSupport"])
def test_advice_that_is_unknown_or_not_for_nodes_never_acts(advice: str) -> None:
    assert not acts(fault(advice=advice))
    assert plan_for(Rule(name="r", plan=(Advice.REBOOT_NODE,)), advice) == ()


def test_a_rule_may_name_the_rungs_itself() -> None:
    plan = plan_for(Rule(name="r", plan=(Advice.RESTART_PLUGIN, Advice.REPLACE_HARDWARE)), "RebootNode")
    assert [rung.rung for rung in plan] == ["RestartPlugin", "ReplaceHardware"]
    assert plan_for(Rule(name="r", plan=()), "RebootNode") == ()


def test_ranks_grow_with_what_a_repair_costs_and_words_nobody_knows_are_below_all() -> None:
    assert advice_rank("SomethingNew") < advice_rank("None") < advice_rank("RestartPlugin")
    assert advice_rank("ResetDevice") < advice_rank("RebootNode") < advice_rank("ReplaceHardware")


@pytest.mark.parametrize(
    ("limit", "population", "floor", "expected"),
    [
        ("30%", 10, 1, 3),
        ("30%", 9, 1, 2),
        ("30%", 2, 1, 1),
        ("30%", 2, 0, 0),
        ("30%", 1, 1, 1),
        ("30%", 0, 1, 0),
        ("0%", 10, 0, 0),
        ("100%", 10, 1, 10),
        ("5%", 5000, 1, 250),
        (3, 10, 1, 3),
        (3, 2, 1, 2),
        (0, 10, 1, 0),
    ],
)
def test_a_percentage_rounds_down_to_the_floor_and_nothing_is_more_than_all(
    limit: str | int, population: int, floor: int, expected: int
) -> None:
    assert NodeLimit.parse(limit).of(population, floor=floor) == expected


@given(st.integers(0, 100), st.integers(0, 6000), st.integers(0, 3))
def test_a_limit_is_never_above_its_share_but_for_the_floor(
    percent: int, population: int, floor: int
) -> None:
    found = NodeLimit.parse(f"{percent}%").of(population, floor=floor)
    assert 0 <= found <= population
    assert found * 100 <= percent * population or found <= floor


def test_the_hash_tells_policies_apart_and_is_the_same_for_the_same(tmp_path: Path) -> None:
    one, same = (load_policy(written(tmp_path, WHOLE)).reference for _ in range(2))
    other = load_policy(written(tmp_path, WHOLE.replace("90s", "91s"))).reference
    third = load_policy(written(tmp_path, WHOLE.replace("25%", "26%"))).reference
    assert one == same and one.name == "fleet" and len(one.hash) == 12
    assert len({one.hash, other.hash, third.hash}) == 3
    assert msgspec.json.decode(msgspec.json.encode(one), type=type(one)) == one


# Drains and device plugins.

WITH_DRAIN = (
    HEAD
    + """
rules:
  - name: gently
    match: {kinds: [DeviceLost]}
    mode: Auto
    drain:
      mode: EvictAfter
      evictAfter: 30m
      deadline: 2h
      pods: All
      preDrain: {wait: 5m, notice: checkpoint now}
      deleteEmptyDirData: true
      force: true
      concurrency: 4
      oneNodePerGang: false
  - name: device
    mode: Auto
    fence: Device
devicePlugin:
  selectors:
    - matchLabels: {app: my-plugin}
      namespace: gpu
  deadline: 90s
  healthyDwell: 20s
"""
)


def test_a_drain_a_fence_and_a_device_plugin_are_read_as_they_are_written(tmp_path: Path) -> None:
    read = load_policy(written(tmp_path, WITH_DRAIN))
    gently, device = read.rules
    drain = gently.drain_for("RebootNode")
    assert (drain.mode, drain.evict_after, drain.time_limit) == (
        DrainMode.EVICT_AFTER,
        1800,
        timedelta(hours=2),
    )
    assert (drain.pods, drain.concurrency, drain.one_node_per_gang) == (PodSelection.ALL, 4, False)
    assert (drain.delete_empty_dir_data, drain.force) == (True, True)
    assert drain.pre_drain == PreDrain(wait=Duration.parse("5m"), notice="checkpoint now")
    assert (gently.fence, device.fence) == (Fence.NODE, Fence.DEVICE)
    plugin = read.device_plugin
    assert (plugin.time_limit, plugin.healthy_dwell) == (timedelta(seconds=90), 20)
    assert plugin.selects("gpu", {"app": "my-plugin", "more": "labels"})
    assert not plugin.selects("other", {"app": "my-plugin"}) and not plugin.selects("gpu", {"app": "another"})


def test_without_a_word_about_it_only_a_replacement_gives_jobs_their_time() -> None:
    rule = Rule(name="r")
    assert rule.drain_for("RebootNode") == rule.drain_for("ResetDevice") == DrainPolicy()
    patient = rule.drain_for("ReplaceHardware")
    assert (patient.mode, patient.evict_after, patient.time_limit) == (
        DrainMode.EVICT_AFTER,
        3600,
        timedelta(hours=2),
    )


@pytest.mark.parametrize(
    ("namespace", "labels", "known"),
    [
        ("gpu", {"app.kubernetes.io/name": "nvidia-device-plugin"}, True),
        ("gpu-operator", {"app": "nvidia-device-plugin-daemonset"}, True),
        ("kube-system", {"name": "nvidia-device-plugin-ds"}, True),
        ("kube-system", {"k8s-app": "nvidia-gpu-device-plugin"}, True),
        ("default", {"k8s-app": "nvidia-gpu-device-plugin"}, False),
        ("kube-system", {"name": "amdgpu-dp-ds"}, True),
        ("kube-system", {"app": "node-exporter"}, False),
        ("kube-system", {}, False),
    ],
)
def test_the_plugins_that_everybody_runs_are_known_by_their_labels(
    namespace: str, labels: dict[str, str], known: bool
) -> None:
    assert DevicePluginPolicy().selects(namespace, labels) is known


# Repairs and verifications.

WITH_REPAIRS = (
    HEAD
    + """
repair:
  namespace: repairs
  operands: [nvidia.com/gpu.deploy.dcgm]
  releaseDeadline: 2m
  resetDeadline: 3m
  rebootDeadline: 45m
  serviceDeadline: 4m
  diagnosticsDeadline: 2h
  diagnostics: dcgmi-diag
  proof: 6m
  maxAttempts: 3
  backoff: 1m
  repeats: {limit: 4, within: 12h}
verification:
  template: nccl
  deadline: 20m
  unverified: true
  baselines:
    - model: H100
      minimum: {busbw: 400, gpus: 8}
      maximum: {errors: 0}
    - model: ""
      minimum: {busbw: 1.5}
"""
)


def test_repairs_and_a_verification_are_read_as_they_are_written(tmp_path: Path) -> None:
    read = load_policy(written(tmp_path, WITH_REPAIRS))
    repair, verification = read.repair, read.verification
    assert (repair.namespace, repair.operands, repair.diagnostics) == (
        "repairs",
        ("nvidia.com/gpu.deploy.dcgm",),
        "dcgmi-diag",
    )
    seconds = (
        repair.release_deadline,
        repair.reset_deadline,
        repair.reboot_deadline,
        repair.service_deadline,
        repair.diagnostics_deadline,
        repair.proof,
    )
    assert seconds == (120, 180, 2700, 240, 7200, 360)
    assert (repair.max_attempts, repair.repeats.limit, repair.repeats.within) == (3, 4, 12 * 3600)
    assert [repair.pause_after(tried).total_seconds() for tried in (0, 1, 2, 3)] == [60, 60, 120, 240]
    assert (verification.template, verification.deadline, verification.unverified) == ("nccl", 1200, True)


def test_the_first_baseline_whose_model_is_in_the_devices_model_name_counts(tmp_path: Path) -> None:
    verification = load_policy(written(tmp_path, WITH_REPAIRS)).verification
    found = verification.baseline_for("NVIDIA h100 80GB HBM3")
    assert found is not None
    assert (found.minimum, found.maximum) == ({"busbw": 400, "gpus": 8}, {"errors": 0})
    other = verification.baseline_for("NVIDIA L40S")
    assert other is not None and other.minimum == {"busbw": 1.5}
    assert VerificationPolicy().baseline_for("NVIDIA H100") is None


def test_without_a_word_about_it_nothing_is_verified_and_each_rung_is_tried_once() -> None:
    plain = Policy()
    assert (plain.verification.template, plain.verification.unverified) == ("", False)
    assert (plain.repair.max_attempts, plain.repair.repeats.limit, plain.repair.repeats.within) == (
        1,
        2,
        86400,
    )
    assert all(key.startswith(OPERAND_PREFIX) for key in plain.repair.operands)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("repair: {resetDeadlin: 5m}", ["repair.resetDeadlin", "resetDeadline"]),
        ("repair: {resetDeadline: 300}", ["repair.resetDeadline", "300", "unit"]),
        ("repair: {resetDeadline: soon}", ["repair.resetDeadline", '"soon"']),
        ("repair: {maxAttempts: 0}", ["repair.maxAttempts", "0", "1"]),
        ("repair: {maxAttempts: 11}", ["repair.maxAttempts", "11", "10"]),
        ("repair: {maxAttempts: '2'}", ["repair.maxAttempts", '"2"']),
        ("repair: {repeats: {limit: 0}}", ["repair.repeats.limit", "0"]),
        ("repair: {repeats: {limits: 2}}", ["repair.repeats.limits", "limit"]),
        ("repair: {repeats: {within: 1}}", ["repair.repeats.within", "1", "unit"]),
        ("repair: {diagnostics: Dcgmi_Diag}", ["repair.diagnostics", '"Dcgmi_Diag"']),
        ("repair: {diagnostics: ''}", ["repair.diagnostics"]),
        ("repair: {operands: nvidia.com/gpu.deploy.dcgm}", ["repair.operands"]),
        ("repair: {operands: [gpu.deploy.dcgm]}", ["repair.operands[0]", '"gpu.deploy.dcgm"']),
        (
            f"repair: {{operands: [{', '.join(f'nvidia.com/gpu.deploy.x{n}' for n in range(33))}]}}",
            ["repair.operands", "32"],
        ),
        ("repair: [reset]", ["repair"]),
        ("verification: {templat: nccl}", ["verification.templat", "template"]),
        ("verification: {template: -nccl}", ["verification.template", '"-nccl"']),
        (f"verification: {{template: {'n' * 41}}}", ["verification.template"]),
        ("verification: {deadline: 20}", ["verification.deadline", "20", "unit"]),
        ("verification: {unverified: 'yes'}", ["verification.unverified", '"yes"']),
        ("verification: {baselines: [{minimum: {a: 1}}]}", ["verification.baselines[0]", "model"]),
        (
            "verification: {baselines: [{model: H100, minimun: {a: 1}}]}",
            ["verification.baselines[0].minimun", "minimum"],
        ),
        ("verification: {baselines: [{model: H100, minimum: {busbw: fast}}]}", ["minimum", "fast"]),
        (
            "verification: {baselines: [{model: H100, minimum: {busbw: .nan}}]}",
            ["verification.baselines[0]", "busbw"],
        ),
        (
            "verification: {baselines: [{model: H100, maximum: {busbw: .inf}}]}",
            ["verification.baselines[0]", "busbw"],
        ),
        ("verfication: {template: nccl}", ["verfication", "verification"]),
    ],
)
def test_what_is_wrong_about_repairs_is_named_with_key_value_and_the_nearest_right_name(
    tmp_path: Path, text: str, told: list[str]
) -> None:
    path = written(tmp_path, HEAD + text)
    with pytest.raises(ConfigError) as caught:
        load_policy(path)
    for part in [str(path), *told]:
        assert part in str(caught.value)
