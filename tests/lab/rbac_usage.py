"""Which permissions that `deploy` grants our programs use, as the API servers' audit logs tell it.

Each lab leaves what its programs were allowed and refused in a folder, when the environment names one; after a run of
all lab tests that is held against the manifests. A call counts where account and User-Agent are a program's: a test
that acts with a program's token calls itself something else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from tests.lab.api import Object

FOLDER_VARIABLE = "SICKBAY_LAB_RBAC_USAGE"
"""Names the folder; labs of child processes inherit it."""

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = DEPLOY / "manifests" / "rbac.yaml"
REPAIR = DEPLOY / "repair" / "rbac.yaml"

ACCOUNTS = {
    "system:serviceaccount:sickbay-agent:sickbay-agent": "sickbay-agent",
    "system:serviceaccount:sickbay-system:sickbay-controller": "sickbay-controller",
    "system:serviceaccount:sickbay-repair:sickbay-repair": "sickbay-repair",
}
"""What the API server calls a program's account, and what the program calls itself in its User-Agent."""

_MARK = b"system:serviceaccount:sickbay-"
_DECISION = "authorization.k8s.io/decision"


class Permission(NamedTuple):
    """A verb on a resource (`pods/eviction`) of an API group; in every namespace and on cluster objects where empty."""

    program: str
    verb: str
    group: str
    resource: str
    namespace: str = ""

    def __str__(self) -> str:
        where = f" in {self.namespace}" if self.namespace else ""
        return f"{self.program}: {self.verb} {self.resource}{'.' + self.group if self.group else ''}{where}"


class Refusal(NamedTuple):
    """What a program was refused: by RBAC, or by an admission policy; and the API server's message."""

    permission: Permission
    by_policy: bool
    message: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What the programs asked for and got, and what they were refused."""

    used: frozenset[Permission] = frozenset()
    refused: frozenset[Refusal] = frozenset()

    def __or__(self, other: Usage) -> Usage:
        return Usage(self.used | other.used, self.refused | other.refused)


def collect(lab_folder: Path) -> None:
    """Leave a lab's usage in the session's folder; nothing where there is none, or no audit log. Raises OSError."""
    folder = os.environ.get(FOLDER_VARIABLE)
    # The API server rotates its log at 100 MB: audit-TIME.log is older.
    logs = sorted(lab_folder.glob("audit*.log"))
    if not folder or not logs:
        return
    usage = Usage()
    for log in logs:
        with log.open("rb") as lines:
            usage |= read_audit(lines)
    document = {"used": sorted(usage.used), "refused": sorted(usage.refused)}
    (Path(folder) / f"{lab_folder.name}.json").write_text(json.dumps(document))


def load(folder: Path) -> Usage | None:
    """Return what all labs of a session have left; None where no lab ran."""
    usage: Usage | None = None
    for file in folder.glob("*.json"):
        document = json.loads(file.read_text())
        refused = (Refusal(Permission(*row), *rest) for row, *rest in document["refused"])
        found = Usage(frozenset(Permission(*row) for row in document["used"]), frozenset(refused))
        usage = found if usage is None else usage | found
    return usage


def read_audit(lines: Iterable[bytes]) -> Usage:
    """Return what an audit log (a JSON event a line) tells of our programs; half a line at its end is left out."""
    used, refused = set(), set()
    for line in lines:
        if _MARK not in line or not line.endswith(b"\n"):
            continue
        event = json.loads(line)
        if asked := _asked_of_a_kubelet(event):
            used.add(asked)
        elif (program := _program(event)) and "objectRef" in event:
            permission = _permission(program, event)
            decision = event.get("annotations", {}).get(_DECISION)
            if _by_policy(event) or decision == "forbid":
                message = event.get("responseStatus", {}).get("message", "")
                refused.add(Refusal(permission, _by_policy(event), message))
            elif decision == "allow":
                used.add(permission)
    return Usage(frozenset(used), frozenset(refused))


def refusals(events: Iterable[Object]) -> list[Object]:
    """Return the events in which a program of ours was not known (401), or refused by RBAC or an admission policy.

    Left out is what RBAC refuses because the repair switch is off.
    """
    switched = granted_by(REPAIR)
    return [event for event in events if _by_a_program(event) and _is_refused(event, switched)]


def _by_a_program(event: Object) -> bool:
    return event.get("userAgent", "").partition("/")[0] in ACCOUNTS.values()


def _is_refused(event: Object, switched: frozenset[Permission]) -> bool:
    if event.get("responseStatus", {}).get("code") == 401 or _by_policy(event):
        return True
    if event.get("annotations", {}).get(_DECISION) != "forbid":
        return False
    program = event["userAgent"].partition("/")[0]
    return "objectRef" not in event or not any(
        _covers(grant, _permission(program, event)) for grant in switched
    )


def _by_policy(event: Object) -> bool:
    # What is made in a namespace that is going meets a 403 as well, and is no fault of ours.
    return "ValidatingAdmissionPolicy" in event.get("responseStatus", {}).get("message", "")


def _program(event: Object) -> str | None:
    program = ACCOUNTS.get(event.get("user", {}).get("username", ""))
    return program if program and event.get("userAgent", "").startswith(f"{program}/") else None


def _permission(program: str, event: Object) -> Permission:
    about = event["objectRef"]
    resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
    return Permission(program, event["verb"], about.get("apiGroup", ""), resource, about.get("namespace", ""))


def _asked_of_a_kubelet(event: Object) -> Permission | None:
    """A kubelet asks the API server who may see its pages, and its question is in the log whole."""
    if event.get("objectRef", {}).get("resource") != "subjectaccessreviews":
        return None
    if not event.get("user", {}).get("username", "").startswith("system:node:"):
        return None
    asked = event.get("requestObject", {}).get("spec", {})
    attributes = asked.get("resourceAttributes", {})
    program = ACCOUNTS.get(asked.get("user", ""))
    allowed = event.get("responseObject", {}).get("status", {}).get("allowed", False)
    if program is None or not attributes or not allowed:
        return None
    resource = "/".join(filter(None, (attributes["resource"], attributes.get("subresource"))))
    return Permission(program, attributes["verb"], attributes.get("group", ""), resource)


def granted(manifests: Iterable[Object]) -> frozenset[Permission]:
    """Return what Roles and ClusterRoles grant our accounts. Raises KeyError for a role that is bound and not there."""
    objects = list(manifests)
    roles = {
        (one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]): one.get("rules") or []
        for one in objects
        if one["kind"] in ("Role", "ClusterRole")
    }
    return frozenset(
        Permission(program, verb, group, resource, binding["metadata"].get("namespace", ""))
        for binding in objects
        if binding["kind"] in ("RoleBinding", "ClusterRoleBinding")
        for program in _programs_of(binding)
        for rule in roles[_role_of(binding)]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    )


def _programs_of(binding: Object) -> Iterator[str]:
    for subject in binding.get("subjects") or []:
        user = f"system:serviceaccount:{subject.get('namespace', '')}:{subject['name']}"
        if subject["kind"] == "ServiceAccount" and user in ACCOUNTS:
            yield ACCOUNTS[user]


def _role_of(binding: Object) -> tuple[str, str, str]:
    kind = binding["roleRef"]["kind"]
    namespace = binding["metadata"].get("namespace", "") if kind == "Role" else ""
    return kind, namespace, binding["roleRef"]["name"]


def granted_by(path: Path) -> frozenset[Permission]:
    """Return what a file of the project's grants."""
    return granted(document for document in yaml.safe_load_all(path.read_text()) if document)


def complaints(usage: Usage, *, always: frozenset[Permission], switched: frozenset[Permission]) -> list[str]:
    """Return what is granted and was never used, used and not granted, and refused, each in a line.

    `always` is granted in every lab, `switched` in those with the repair switch on: RBAC refuses it in all others,
    which is how the controller learns that repairs are off.
    """
    grants = always | switched
    covered = {use: {grant for grant in grants if _covers(grant, use)} for use in usage.used}
    unused = grants.difference(*covered.values())
    refused = {
        f"refused: {refusal.permission}: {refusal.message}"
        for refusal in usage.refused
        if refusal.by_policy or not any(_covers(grant, refusal.permission) for grant in switched)
    }
    return [
        *(f"granted and never used: {grant}" for grant in sorted(unused)),
        *(f"used, and not granted by deploy: {use}" for use, found in sorted(covered.items()) if not found),
        *sorted(refused),
    ]


def _covers(grant: Permission, use: Permission) -> bool:
    return grant[:4] == use[:4] and grant.namespace in ("", use.namespace)


def is_whole(*, present: set[Path], selected: set[Path], left_out: set[Path], deep: set[Path]) -> bool:
    """Whether a run had every lab test but deep ones: only then a permission that nobody used says something.

    Test files: those there are, those of which tests were selected, those of which tests that are not deep were
    left out, and those of which deep tests were.
    """
    return not left_out and present <= selected | deep


def main(arguments: Sequence[str] | None = None) -> int:
    """After sessions that together were a run of all lab tests: 1 where permissions and use do not agree.

    `python -m tests.lab.rbac_usage FOLDER`, where FOLDER is what the environment named for those sessions.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.lab.rbac_usage", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    usage = load(parser.parse_args(arguments).folder)
    if usage is None:
        print("no lab ran, so nothing is known of the permissions that are used")
        return 0
    found = complaints(usage, always=granted_by(MANIFESTS), switched=granted_by(REPAIR))
    for complaint in found:
        print(complaint)
    print("permissions: deploy and the programs", "do not agree" if found else "agree")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
