"""What a client asks before it asks for anything: version, groups, resources. The legacy form, no OpenAPI."""

from __future__ import annotations

from simulation.cluster.interface import Object
from simulation.cluster.resources import Catalogue, ResourceType

VERSION: Object = {
    "major": "1",
    "minor": "37",
    "gitVersion": "v1.37.2",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "2026-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "linux/amd64",
    "emulationMajor": "1",
    "emulationMinor": "37",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "36",
}
"""The release whose behaviour this server follows."""

_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_CUSTOM_VERBS = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"]
_SUBRESOURCE_KINDS: dict[str, tuple[str, str, str, list[str]]] = {
    "eviction": ("policy", "v1", "Eviction", ["create"]),
    "binding": ("", "v1", "Binding", ["create"]),
}


def answer(catalogue: Catalogue, path: str, *, address: str) -> Object | None:
    """What is at a discovery path; None for another path."""
    match path.strip("/").split("/"):
        case ["version"]:
            return VERSION
        case ["api"]:
            cidr = [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]
            return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": cidr}
        case ["apis"]:
            groups = [_group(group, version) for group, version in _groups(catalogue)]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        case ["api", "v1"]:
            return _resources(catalogue, "", "v1")
        case ["apis", group]:
            found = [version for name, version in _groups(catalogue) if name == group]
            return {"kind": "APIGroup", "apiVersion": "v1", **_group(group, found[0])} if found else None
        case ["apis", group, version] if (group, version) in _groups(catalogue):
            return _resources(catalogue, group, version)
    return None


def _groups(catalogue: Catalogue) -> list[tuple[str, str]]:
    return list(dict.fromkeys((item.group, item.version) for item in catalogue if item.group))


def _group(group: str, version: str) -> Object:
    named = {"groupVersion": f"{group}/{version}", "version": version}
    return {"name": group, "versions": [named], "preferredVersion": named}


def _resources(catalogue: Catalogue, group: str, version: str) -> Object:
    listed: list[Object] = []
    for resource in catalogue:
        if (resource.group, resource.version) == (group, version):
            listed.append(_resource(resource))
            listed += [_subresource(resource, name) for name in resource.subresources]
    if not group:
        return {"kind": "APIResourceList", "groupVersion": version, "resources": listed}
    whole = f"{group}/{version}"
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": whole, "resources": listed}


def _resource(resource: ResourceType) -> Object:
    entry: Object = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": _CUSTOM_VERBS if resource.custom else _VERBS,
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    return entry


def _subresource(resource: ResourceType, name: str) -> Object:
    entry: Object = {
        "name": f"{resource.plural}/{name}",
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": ["get", "patch", "update"],
    }
    if name in _SUBRESOURCE_KINDS:
        group, version, kind, verbs = _SUBRESOURCE_KINDS[name]
        entry |= {"kind": kind, "verbs": verbs}
        if group:
            entry |= {"group": group, "version": version}
    return entry
