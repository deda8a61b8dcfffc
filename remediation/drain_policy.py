"""How a node is drained, as the policy says it: the `drain` of a rule."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated

import msgspec

from runtime.quantities import Duration

DEFAULT_NOTICE = "this node is about to be drained for a repair: save your work now"


class DrainMode(StrEnum):
    """`Evict` at once, `Wait` until the pods end by themselves, or `EvictAfter` they had time to."""

    EVICT = "Evict"
    WAIT = "Wait"
    EVICT_AFTER = "EvictAfter"


class PodSelection(StrEnum):
    """Whose end the drain waits for: pods that hold accelerators, or all."""

    ACCELERATOR = "Accelerator"
    ALL = "All"


class PreDrain(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Tell each pod before it is evicted, then wait. `notice` is what the Event on the pod says.

    The annotation `sickbay.dev/drain-notice` carries the time by which the pod should be done.
    """

    wait: Duration = Duration.parse("2m")
    notice: Annotated[str, msgspec.Meta(min_length=1, max_length=512)] = DEFAULT_NOTICE


class DrainPolicy(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """How to drain. Times count from the drain's first look at the node.

    `deadline`: what is left then is a person's affair. `evictAfter`: in mode EvictAfter, how long pods may run
    on. `deleteEmptyDirData` and `force` (pods without a controller) allow what cannot be undone: as for
    `kubectl drain`, a pod that needs leave and has none stops the whole drain. `concurrency`: evictions that
    are under way at once, and in one pass. `oneNodePerGang`: while another node of a gang (a JobSet, a Job, a
    PodGroup and the like) is being disrupted, the gang's pods here are left alone.
    """

    mode: DrainMode = DrainMode.EVICT
    deadline: Duration = Duration.parse("1h")
    evict_after: Duration | None = None
    pods: PodSelection = PodSelection.ACCELERATOR
    pre_drain: PreDrain | None = None
    delete_empty_dir_data: bool = False
    force: bool = False
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=32)] = 8
    one_node_per_gang: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError where the durations do not fit together."""
        if self.deadline <= 0:
            raise ValueError("a drain's deadline longer than 0s")
        if self.mode is DrainMode.EVICT_AFTER and self.evict_after is None:
            raise ValueError("evictAfter beside mode EvictAfter: how long the pods may run on")
        if self.mode is not DrainMode.EVICT_AFTER and self.evict_after is not None:
            raise ValueError(f"no evictAfter beside mode {self.mode.value}, only beside EvictAfter")
        if self.mode is not DrainMode.WAIT and self.patience >= self.time_limit:
            raise ValueError(
                f"evictAfter and preDrain.wait that end before the deadline of {self.deadline}, "
                "or nothing would ever be evicted"
            )

    @property
    def terms(self) -> str:
        """The policy as JSON, which a session keeps of the drain that it began."""
        return msgspec.json.encode(self, order="deterministic", enc_hook=str).decode()

    def tightened_by(self, other: DrainPolicy) -> DrainPolicy:
        """This policy, in each respect in which the other one is more careful with the pods as that one has it.

        The longer deadline holds: what is left then is a person's affair, and nothing is evicted for it.
        """
        mode = max(self.mode, other.mode, key=_MORE_CAREFUL.index)
        patience = [one.evict_after for one in (self, other) if one.evict_after is not None]
        notices = [one.pre_drain for one in (self, other) if one.pre_drain is not None]
        return DrainPolicy(
            mode=mode,
            deadline=max(self.deadline, other.deadline),
            evict_after=max(patience) if mode is DrainMode.EVICT_AFTER else None,
            pods=self.pods if self.pods is PodSelection.ACCELERATOR else other.pods,
            pre_drain=max(notices, key=lambda notice: notice.wait, default=None),
            delete_empty_dir_data=self.delete_empty_dir_data and other.delete_empty_dir_data,
            force=self.force and other.force,
            concurrency=min(self.concurrency, other.concurrency),
            one_node_per_gang=self.one_node_per_gang or other.one_node_per_gang,
        )

    @property
    def time_limit(self) -> timedelta:
        """`deadline` as a time span."""
        return timedelta(seconds=self.deadline)

    @property
    def warning(self) -> timedelta:
        """How long before its eviction a pod is told."""
        return timedelta(seconds=self.pre_drain.wait if self.pre_drain is not None else 0)

    @property
    def patience(self) -> timedelta:
        """How long the pods that were there at the start are left alone at least. Meaningless in mode Wait."""
        return max(timedelta(seconds=self.evict_after or 0), self.warning)


_MORE_CAREFUL = (DrainMode.EVICT, DrainMode.EVICT_AFTER, DrainMode.WAIT)


def policy_of(terms: str) -> DrainPolicy | None:
    """The policy whose terms these are; None where they cannot be read (edited by hand, of another version)."""
    try:
        return msgspec.json.decode(terms, type=DrainPolicy, dec_hook=_quantity)
    except (msgspec.MsgspecError, ValueError):
        return None


def _quantity(type_: type[Duration], value: object) -> Duration:
    return type_.parse(value)
