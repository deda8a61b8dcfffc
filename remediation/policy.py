"""The policy: which fault is met with which plan, in which mode, within which budgets.

One YAML file, `apiVersion: sickbay.dev/v1alpha1, kind: Policy`. The first rule that matches a fault decides.
Without a file everything is observed and nothing is changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec

from health.report import Fault
from health.vocabulary import Advice, FaultKind, Mode, Severity
from remediation.drain_policy import DrainMode, DrainPolicy
from remediation.objects import Incident, PolicyReference, Rung
from remediation.plugin_policy import DevicePluginPolicy
from remediation.repair_policy import RepairPolicy, VerificationPolicy
from runtime.config import load_yaml_document
from runtime.config_error import ConfigError, nearest
from runtime.quantities import Duration, Percentage

DEFAULT_POOL = "default"
"""The pool of nodes that no pool's selector matches."""


class StepName(StrEnum):
    """The steps that plans are made of."""

    CORDON = "Cordon"
    DRAIN = "Drain"
    RELEASE_DEVICES = "ReleaseDevices"
    RESET = "Reset"
    REBOOT = "Reboot"
    RESTART_PLUGIN = "RestartPlugin"
    RESTART_SERVICE = "RestartService"
    RUN_JOB = "RunJob"
    VERIFY = "Verify"
    RESTORE = "Restore"
    LIFT_TAINT = "LiftTaint"
    REMOVE_FAILED_PODS = "RemoveFailedPods"
    UNCORDON = "Uncordon"


class Fence(StrEnum):
    """What a fault takes out of scheduling: the whole node, or the device alone, which its plugin withholds."""

    NODE = "Node"
    DEVICE = "Device"


LADDER: Mapping[Advice, tuple[Advice, ...]] = {
    Advice.RESTART_PLUGIN: (Advice.RESTART_PLUGIN,),
    Advice.RESTART_SERVICE: (Advice.RESTART_SERVICE,),
    Advice.RESET_DEVICE: (Advice.RESET_DEVICE, Advice.REBOOT_NODE),
    Advice.REBOOT_NODE: (Advice.REBOOT_NODE,),
    Advice.REPLACE_HARDWARE: (Advice.REPLACE_HARDWARE,),
}
"""The rungs of the default plan for each advice that acts on a node; other advice counts and alerts only."""

RUNG_STEPS: Mapping[Advice, tuple[StepName, ...]] = {
    Advice.RESTART_PLUGIN: (
        StepName.CORDON,
        StepName.RESTART_PLUGIN,
        StepName.VERIFY,
        StepName.REMOVE_FAILED_PODS,
        StepName.UNCORDON,
    ),
    Advice.RESTART_SERVICE: (StepName.CORDON, StepName.RESTART_SERVICE, StepName.VERIFY, StepName.UNCORDON),
    Advice.RESET_DEVICE: (
        StepName.CORDON,
        StepName.DRAIN,
        StepName.RELEASE_DEVICES,
        StepName.RESET,
        StepName.RESTART_PLUGIN,
        StepName.VERIFY,
        StepName.UNCORDON,
    ),
    Advice.REBOOT_NODE: (
        StepName.CORDON,
        StepName.DRAIN,
        StepName.REBOOT,
        StepName.VERIFY,
        StepName.UNCORDON,
    ),
    Advice.RUN_DIAGNOSTICS: (
        StepName.CORDON,
        StepName.DRAIN,
        StepName.RUN_JOB,
        StepName.VERIFY,
        StepName.UNCORDON,
    ),
    Advice.REPLACE_HARDWARE: (StepName.CORDON, StepName.DRAIN),
}
"""What climbing onto each rung takes, in order."""


class Document(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Base of the policy's structs: a key that is not known is an error."""


class Metadata(Document, frozen=True):
    """The policy's name, which sessions record."""

    name: str = "default"


class Selector(Document, frozen=True):
    """Labels that a node must have, all of them."""

    match_labels: dict[str, str] = {}

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels is meant."""
        return all(labels.get(key) == value for key, value in self.match_labels.items())


class Pool(Document, frozen=True):
    """Nodes that are budgeted together."""

    name: str
    selector: Selector = Selector()


class Match(Document, frozen=True):
    """What a rule is about. A list that is empty matches everything."""

    kinds: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    severities: tuple[Severity, ...] = ()
    advice: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()

    def matches(self, fault: Fault | Incident, pool: str) -> bool:
        """Whether the rule is about this fault, or what a session knows of it, of a node in this pool."""
        return all(
            not wanted or have in wanted
            for wanted, have in (
                (self.kinds, fault.kind),
                (self.codes, fault.code),
                (self.severities, fault.severity),
                (self.advice, fault.advice),
                (self.pools, pool),
            )
        )


class Rule(Document, frozen=True):
    """What to do about the faults it matches. `plan` names the rungs; without it the advice's own ladder.

    `drain`: how the node is drained, where a rung drains; without it `DEFAULT_DRAIN` of the rung. `fence: Device`
    leaves the node open to jobs as long as the device plugin does not offer the bad device.
    """

    name: str
    match: Match = Match()
    mode: Mode = Mode.OBSERVE
    plan: tuple[Advice, ...] | None = None
    fence: Fence = Fence.NODE
    drain: DrainPolicy | None = None

    def drain_for(self, rung: str) -> DrainPolicy:
        """How to drain for this rung."""
        return self.drain or DEFAULT_DRAIN.get(rung, DrainPolicy())


DEFAULT_DRAIN: Mapping[str, DrainPolicy] = {
    Advice.REPLACE_HARDWARE: DrainPolicy(
        mode=DrainMode.EVICT_AFTER, evict_after=Duration.parse("1h"), deadline=Duration.parse("2h")
    ),
}
"""Who waits for a person with new hardware need not hurry: jobs may end by themselves first."""


class NodeLimit(str):
    """A budget's limit: a percentage of the nodes (`30%`) or a number of nodes (`3`)."""

    __slots__ = ("nodes", "percentage")
    percentage: Percentage | None
    nodes: int

    expected: ClassVar[str] = "a percentage of the nodes such as 30%, or a whole number of nodes such as 3"

    @classmethod
    def parse(cls, value: object) -> NodeLimit:
        """Read what the policy says. Raises ValueError with what is expected."""
        if isinstance(value, cls):
            return value
        limit = cls(value)
        limit.percentage, limit.nodes = None, 0
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            limit.nodes = value
            return limit
        try:
            limit.percentage = Percentage.parse(value)
        except ValueError:
            raise ValueError(cls.expected) from None
        return limit

    def of(self, population: int, *, floor: int) -> int:
        """How many of a population may be taken.

        Percentages round down; where that leaves less than the floor, the floor holds. Never more than all.
        """
        if self.percentage is None:
            return min(self.nodes, population)
        return min(max(self.percentage.of(population), floor), population)


class StartRate(Document, frozen=True):
    """A token bucket over all starts of the cluster."""

    per_minute: Annotated[int, msgspec.Meta(ge=0)] = 5
    burst: Annotated[int, msgspec.Meta(ge=1)] = 10


class Budgets(Document, frozen=True):
    """Upper bounds, for each pool and for the cluster: a percentage (`30%`, rounded down) or a number of nodes.

    `floor` is what a pool that is too small for the percentage may have all the same.
    """

    max_fenced: NodeLimit = NodeLimit.parse("30%")
    max_disrupted: NodeLimit = NodeLimit.parse("5%")
    floor: Annotated[int, msgspec.Meta(ge=0)] = 1
    start_rate: StartRate = StartRate()


class Policy(Document, frozen=True):
    """The whole policy. `healthyDwell` is how long a node must be without its faults before it is returned."""

    api_version: Literal["sickbay.dev/v1alpha1"] = "sickbay.dev/v1alpha1"
    kind: Literal["Policy"] = "Policy"
    metadata: Metadata = Metadata()
    pools: tuple[Pool, ...] = ()
    rules: tuple[Rule, ...] = (Rule(name="observe-everything"),)
    budgets: Budgets = Budgets()
    healthy_dwell: Duration = Duration.parse("5m")
    device_plugin: DevicePluginPolicy = DevicePluginPolicy()
    repair: RepairPolicy = RepairPolicy()
    verification: VerificationPolicy = VerificationPolicy()

    @property
    def dwell(self) -> timedelta:
        """`healthyDwell` as a time span."""
        return timedelta(seconds=self.healthy_dwell)

    @property
    def reference(self) -> PolicyReference:
        """Name and hash, for the sessions that are opened under it."""
        canonical = msgspec.json.encode(self, order="deterministic", enc_hook=str)
        return PolicyReference(name=self.metadata.name, hash=hashlib.sha256(canonical).hexdigest()[:12])

    def pool_of(self, labels: Mapping[str, str]) -> str:
        """The first pool whose selector matches the node's labels, else the default pool."""
        return next((pool.name for pool in self.pools if pool.selector.matches(labels)), DEFAULT_POOL)

    def rule_for(self, fault: Fault | Incident, pool: str) -> Rule | None:
        """The first rule that matches."""
        return next((rule for rule in self.rules if rule.match.matches(fault, pool)), None)


def plan_for(rule: Rule, advice: str, *, max_attempts: int = 1) -> tuple[Rung, ...]:
    """The rungs to climb for this advice under this rule, each with its steps; empty where nothing acts."""
    if advice not in _ACTING:
        return ()
    rungs = rule.plan if rule.plan is not None else LADDER[Advice(advice)]
    return tuple(
        Rung(rung=rung.value, steps=tuple(RUNG_STEPS[rung]), max_attempts=max_attempts) for rung in rungs
    )


_ACTING = frozenset(advice.value for advice in LADDER)


def advice_rank(advice: str) -> int:
    """How far up the ladder a piece of advice (or the rung of its name) is; -1 for words nobody knows."""
    return _RANKS.get(advice, -1)


_RANKS = {advice.value: advice.rank for advice in Advice}


def acts(fault: Fault) -> bool:
    """Whether a fault's advice is one that a plan exists for. Advice nobody knows never acts."""
    return fault.advice in _ACTING


def load_policy(path: Path) -> Policy:
    """Read and check the policy file. Raises ConfigError that names file, key, value and what was expected."""
    policy = load_yaml_document(path, Policy)
    taken = {DEFAULT_POOL, ""}
    for number, pool in enumerate(policy.pools):
        if pool.name in taken:
            expected = (
                f"a name that no other pool has; {DEFAULT_POOL} is the pool of nodes that no pool matches"
            )
            raise ConfigError(file=path, key=f"pools[{number}].name", value=pool.name, expected=expected)
        taken.add(pool.name)
    pools = [*(pool.name for pool in policy.pools), DEFAULT_POOL]
    for number, rule in enumerate(policy.rules):
        where = f"rules[{number}]"
        for key, found, words in (
            ("match.kinds", rule.match.kinds, list(FaultKind)),
            ("match.advice", rule.match.advice, list(Advice)),
            ("match.pools", rule.match.pools, pools),
            ("plan", rule.plan or (), list(RUNG_STEPS)),
        ):
            for word in found:
                _known(word, words, path, f"{where}.{key}")
        if twice := [word for word in RUNG_STEPS if (rule.plan or ()).count(word) > 1]:
            raise ConfigError(
                file=path,
                key=f"{where}.plan",
                value=list(rule.plan or ()),
                expected=f"{twice[0]} once at most",
            )
    return policy


def _known(word: str, words: Sequence[str], path: Path, key: str) -> None:
    if word not in words:
        expected = f"one of {', '.join(words)}"
        raise ConfigError(file=path, key=key, value=word, expected=expected, nearest=nearest(word, words))
