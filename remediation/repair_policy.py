"""How repairs are carried out and proven, as the policy says it: its `repair` and `verification`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated

import msgspec

from runtime.quantities import Duration

KNOWN_OPERANDS = (
    "nvidia.com/gpu.deploy.device-plugin",
    "nvidia.com/gpu.deploy.gpu-feature-discovery",
    "nvidia.com/gpu.deploy.dcgm",
    "nvidia.com/gpu.deploy.dcgm-exporter",
    "nvidia.com/gpu.deploy.nvsm",
)
"""Node labels by which NVIDIA's GPU Operator places what opens the devices; its MIG manager pauses the same ones."""

_TEMPLATE = r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$"
"""A name that leaves a Job's name room for an attempt and a hash within 63 characters."""

OperandKey = Annotated[
    str, msgspec.Meta(pattern=r"^nvidia\.com/gpu\.deploy\.[A-Za-z0-9]([-A-Za-z0-9_.]{0,50}[A-Za-z0-9])?$")
]
"""The admission policy lets us change no other labels, and a session remembers at most 32."""

TemplateName = Annotated[str, msgspec.Meta(pattern=_TEMPLATE)]
"""The name of a PodTemplate in the repair namespace."""


OperandLabel = Annotated[str, msgspec.Meta(max_length=128)]
"""A label's key, as long as a session can remember it."""


class Repeats(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """So often the same repair of the same device may have been carried out within a time; then it is a person's."""

    limit: Annotated[int, msgspec.Meta(ge=1)] = 2
    within: Duration = Duration.parse("24h")


class RepairPolicy(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Where repair Jobs run, what is paused for a reset, and how long each step may take.

    `proof`: how long after a repair the faults may still be reported, and how long after the faults are gone a node
    may still not be proven healthy. `maxAttempts` counts Jobs of one rung in one session; between two the pause is
    `backoff`, doubled each time. `diagnostics`: the PodTemplate of the rung `RunDiagnostics`.
    """

    namespace: str = "sickbay-repair"
    operands: Annotated[tuple[OperandKey, ...], msgspec.Meta(max_length=32)] = KNOWN_OPERANDS
    release_deadline: Duration = Duration.parse("5m")
    reset_deadline: Duration = Duration.parse("10m")
    reboot_deadline: Duration = Duration.parse("30m")
    service_deadline: Duration = Duration.parse("5m")
    diagnostics_deadline: Duration = Duration.parse("1h")
    diagnostics: TemplateName = "diagnostics"
    proof: Duration = Duration.parse("10m")
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=10)] = 1
    backoff: Duration = Duration.parse("2m")
    repeats: Repeats = Repeats()

    def pause_after(self, attempts: int) -> timedelta:
        """Between so many attempts of a rung and the next one."""
        return timedelta(seconds=self.backoff * 2 ** max(0, attempts - 1))


class Baseline(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What the figures of a verification Job must be on devices whose model name has `model` in it."""

    model: str
    minimum: Mapping[str, float] = {}
    maximum: Mapping[str, float] = {}


class VerificationPolicy(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A Job that proves a repaired node before it is given back; none where `template` is empty.

    Its container writes one JSON object of figures to its termination message. The first baseline whose model fits
    counts; where none does, it is enough that the container ends with 0. `unverified`: the same proof is asked of
    nodes that carry the taint `sickbay.dev/unverified`, which is then lifted.
    """

    template: Annotated[str, msgspec.Meta(pattern=_TEMPLATE + "|^$")] = ""
    deadline: Duration = Duration.parse("30m")
    baselines: tuple[Baseline, ...] = ()
    unverified: bool = False

    def baseline_for(self, model: str) -> Baseline | None:
        """The first that is about this model."""
        return next((one for one in self.baselines if one.model.lower() in model.lower()), None)
