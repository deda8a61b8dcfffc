"""The three custom resources: where each lives, its schema, its structs, and a sample of it."""

from dataclasses import dataclass

import msgspec

from health.report import AcceleratorReport, ReportSpec, ReportStatus
from remediation.objects import (
    AcceleratorControl,
    AcceleratorRemediation,
    ControlSpec,
    ControlStatus,
    RemediationSpec,
    RemediationStatus,
)
from tests.crds import Schema, schema_of
from tests.lab.api import Object
from tests.lab.manifests import CONTROLS, REPORTS, SESSIONS
from tests.lab.schema_samples import sample

ADMIN = "sickbay-lab-admin"
VALUES = {"user": ADMIN, "nodeUID": "uid-of-n1", "nodeName": "n1"}


@dataclass(frozen=True, slots=True)
class Contract:
    """One custom resource: where it lives and how Python sees it."""

    kind: str
    path: str
    name: str
    whole: type[msgspec.Struct]
    spec: type[msgspec.Struct]
    status: type[msgspec.Struct]

    @property
    def schema(self) -> Schema:
        """The schemas of `spec` and `status`."""
        return dict(schema_of(self.kind)["properties"])

    @property
    def url(self) -> str:
        return f"{self.path}/{self.name}"

    def body(self, *, largest: bool = False) -> Object:
        return {
            "apiVersion": "sickbay.dev/v1alpha1",
            "kind": self.kind,
            "metadata": {"name": self.name, "labels": {"sickbay.dev/node-uid": VALUES["nodeUID"]}},
            "spec": sample(self.schema["spec"], VALUES, largest=largest),
            "status": sample(self.schema["status"], VALUES, largest=largest),
        }


REPORT = Contract("AcceleratorReport", REPORTS, "contract-n1", AcceleratorReport, ReportSpec, ReportStatus)
SESSION = Contract(
    "AcceleratorRemediation",
    SESSIONS,
    "contract-n1-0123456789",
    AcceleratorRemediation,
    RemediationSpec,
    RemediationStatus,
)
CONTROL = Contract("AcceleratorControl", CONTROLS, "default", AcceleratorControl, ControlSpec, ControlStatus)
