"""The controller's configuration; each field's origin is flag, environment, file or default, in this order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from runtime.quantities import Duration, ListenAddress

ENVIRONMENT_PREFIX = "SICKBAY_CONTROLLER_"


class ControllerConfiguration(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """`sickbay controller`; keys of the file are the same words in camelCase."""

    kubeconfig: Path | None = None
    """Kubeconfig to use; without it the ServiceAccount of the pod."""

    policy: Path | None = None
    """The policy file, read again when it changes; without it everything is only observed."""

    listen: ListenAddress = ListenAddress.parse("0.0.0.0:9401")
    """Where /metrics, /healthz and /readyz are served."""

    log_format: Literal["json", "text"] = "json"
    """JSON lines for machines, or text for people; on standard error."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """The least severe messages that are written."""

    lease_namespace: str = "sickbay-system"
    """Namespace of the Lease by which one of several controllers leads."""

    lease_name: str = "sickbay-controller"
    """The Lease's name."""

    identity: str = ""
    """The name in the Lease; by default host name and a random suffix."""

    lease_duration: Duration = Duration.parse("15s")
    """How long a leader that is not heard of keeps its Lease."""

    renew_deadline: Duration = Duration.parse("10s")
    """A leader that could not renew for this long stops writing."""

    retry_period: Duration = Duration.parse("2s")
    """How often the Lease is renewed or tried."""

    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    """Steps that are carried out at the same time, of different nodes."""
