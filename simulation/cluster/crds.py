"""The custom resources, from the definitions that are deployed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from simulation.cluster.resources import ResourceType, custom_fields

DEPLOYED = Path(__file__).resolve().parents[2] / "deploy" / "crds"


class DefinitionError(ValueError):
    """A definition that this server cannot serve; the text names the file and what is wrong with it."""


@cache
def load(folder: Path = DEPLOYED) -> tuple[ResourceType, ...]:
    """The resources of the definitions in a folder. Raises DefinitionError; OSError where it cannot be read."""
    found = tuple(resource for path in sorted(folder.glob("*.yaml")) for resource in _read(path))
    if not found:
        raise DefinitionError(f"{folder}: no CustomResourceDefinition is there")
    return found


def _read(path: Path) -> Iterable[ResourceType]:
    try:
        documents = list(yaml.safe_load_all(path.read_text()))
    except yaml.YAMLError as error:
        raise DefinitionError(f"{path}: not YAML: {error}") from error
    for document in documents:
        try:
            yield _resource(document)
        except (KeyError, TypeError, ValueError) as error:
            raise DefinitionError(
                f"{path}: not a CustomResourceDefinition with one version: {error!r}"
            ) from error


def _resource(definition: dict[str, Any]) -> ResourceType:
    spec, names = definition["spec"], definition["spec"]["names"]
    (version,) = spec["versions"]
    namespaced = spec["scope"] == "Namespaced"
    return ResourceType(
        group=spec["group"],
        version=version["name"],
        plural=names["plural"],
        kind=names["kind"],
        namespaced=namespaced,
        short_names=tuple(names.get("shortNames", ())),
        categories=tuple(names.get("categories", ())),
        subresources=tuple(version.get("subresources", {})),
        fields=custom_fields(version, namespaced=namespaced),
        definition=version,
        generation=True,
        unconditional_update=False,
    )
