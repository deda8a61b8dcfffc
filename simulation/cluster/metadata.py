"""ObjectMeta: what a create sets, what an update may not change, and what is no name.

From staging/src/k8s.io/apiserver/pkg/registry/rest/{create,update,meta}.go and apimachinery's validation of ObjectMeta.
"""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from simulation.cluster.errors import MODIFIED_MEANWHILE, Cause, bad_request, conflict, invalid
from simulation.cluster.interface import Object, StoreError
from simulation.cluster.resources import ResourceType

_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_WORD = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_ANNOTATION_BYTES = 256 * 1024
_NAME_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start "
    "and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start "
    "and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation "
    "is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_KEY_RULE = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_KEPT = (
    "uid",
    "creationTimestamp",
    "generateName",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "namespace",
)
"""What an update neither sets nor drops. `selfLink` is gone from the API."""

_OTHER_NAMESPACE = "the namespace of the provided object does not match the namespace sent on the request"
_DIGITS = random.SystemRandom()


def timestamp(moment: datetime) -> str:
    """As metav1.Time is written: UTC, whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def generated(prefix: str) -> str:
    """A name made of a prefix (cut to 58 letters) and five letters or digits."""
    return prefix[:58] + "".join(_DIGITS.choices(_SUFFIX, k=5))


def at_birth(resource: ResourceType, given: Any, *, namespace: str, now: datetime) -> Object:
    """The metadata of a new object. Raises StoreError 400 where its namespace is another than the path's."""
    metadata: Object = dict(given) if isinstance(given, dict) else {}
    if resource.namespaced:
        if metadata.get("namespace") not in (None, "", namespace):
            raise bad_request(_OTHER_NAMESPACE)
        metadata["namespace"] = namespace
    elif metadata.get("namespace"):
        raise bad_request("namespace is not allowed on this type")
    for key in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "managedFields", "generation"):
        metadata.pop(key, None)
    metadata.pop("resourceVersion", None)
    metadata["uid"] = str(uuid.UUID(int=_DIGITS.getrandbits(128), version=4))
    metadata["creationTimestamp"] = timestamp(now)
    if resource.generation:
        metadata["generation"] = 1
    return metadata


def at_update(resource: ResourceType, new: Any, old: Object, *, name: str) -> Object:
    """The metadata after an update, with preconditions asked.

    Raises StoreError: 400 for another name or namespace, 422 for a new finalizer on what is being deleted.
    """
    metadata: Object = dict(new) if isinstance(new, dict) else {}
    check_place(metadata, name=name, namespace=old.get("namespace", ""))
    metadata["name"] = name
    for key in _KEPT:
        if key in old:
            metadata[key] = old[key]
        else:
            metadata.pop(key, None)
    for key in ("labels", "annotations", "finalizers", "ownerReferences"):
        if not metadata.get(key):
            metadata.pop(key, None)
    if old.get("deletionTimestamp"):
        known = old.get("finalizers", ())
        fresh = [item for item in metadata.get("finalizers", ()) if item not in known]
        if fresh:
            raise _no_new_finalizers(resource, name, fresh)
    return metadata


def check_place(given: Any, *, name: str, namespace: str) -> None:
    """Whether an object is what its path says. Raises StoreError 400."""
    metadata = given if isinstance(given, dict) else {}
    if metadata.get("name") not in (None, "", name):
        raise bad_request(
            f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
        )
    if metadata.get("namespace") not in (None, "", namespace):
        raise bad_request(_OTHER_NAMESPACE)


def check_preconditions(resource: ResourceType, given: Any, old: Object, *, name: str, replace: bool) -> None:
    """Ask the uid and the resourceVersion that an update brings.

    Raises StoreError: 409 for another resourceVersion; for another uid 409 to a replace and 422 to a patch.
    """
    metadata = given if isinstance(given, dict) else {}
    uid, version = metadata.get("uid"), metadata.get("resourceVersion")
    same_uid = uid in (None, "", old["uid"])
    if replace and not same_uid:
        key = f"{old['namespace']}/{name}" if resource.namespaced else name
        raise conflict(resource.plural, resource.group, name, wrong_uid(resource, key, uid, old["uid"]))
    if version not in (None, "", old["resourceVersion"]):
        raise conflict(resource.plural, resource.group, name, MODIFIED_MEANWHILE)
    if not same_uid:
        cause = Cause("FieldValueInvalid", f'Invalid value: "{uid}": field is immutable', "metadata.uid")
        raise invalid(resource.kind, resource.group, name, [cause])


def wrong_uid(resource: ResourceType, key: str, wanted: Any, found: str) -> str:
    """The storage's words, with its own name for Nodes."""
    place = {"nodes": "minions"}.get(resource.id, resource.plural)
    key = f"/registry/{resource.group}/{place}/{key}" if resource.custom else f"/registry/{place}/{key}"
    return (
        f"StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: "
        f"Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}"
    )


def _no_new_finalizers(resource: ResourceType, name: str, fresh: list[str]) -> StoreError:
    shown = ", ".join(f'"{item}"' for item in fresh)
    why = (
        "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers "
        f"[]string{{{shown}}}"
    )
    return invalid(
        resource.kind, resource.group, name, [Cause("FieldValueForbidden", why, "metadata.finalizers")]
    )


def problems(metadata: Object) -> Iterator[Cause]:
    """What is wrong with the metadata of an object that is created or updated."""
    name = metadata.get("name")
    if not isinstance(name, str) or not name:
        yield Cause("FieldValueRequired", "Required value: name or generateName is required", "metadata.name")
    elif len(name) > 253:
        yield Cause(
            "FieldValueInvalid", f'Invalid value: "{name}": must be no more than 253 bytes', "metadata.name"
        )
    elif not _NAME.fullmatch(name):
        yield Cause("FieldValueInvalid", f'Invalid value: "{name}": {_NAME_RULE}', "metadata.name")
    for place in ("labels", "annotations"):
        yield from _keys(metadata.get(place), f"metadata.{place}", values=place == "labels")
    yield from _lists(metadata)
    annotations = metadata.get("annotations")
    if isinstance(annotations, dict):
        size = sum(len(key) + len(value) for key, value in annotations.items() if isinstance(value, str))
        if size > _ANNOTATION_BYTES:
            message = f"Too long: may not be more than {_ANNOTATION_BYTES} bytes"
            yield Cause("FieldValueTooLong", message, "metadata.annotations")


def _lists(metadata: Object) -> Iterator[Cause]:
    finalizers, owners = metadata.get("finalizers") or [], metadata.get("ownerReferences") or []
    if not isinstance(finalizers, list) or any(not isinstance(item, str) for item in finalizers):
        raise bad_request("metadata.finalizers: a list of strings is expected")
    if not isinstance(owners, list) or any(not isinstance(item, dict) for item in owners):
        raise bad_request("metadata.ownerReferences: a list of objects is expected")
    for place, owner in enumerate(owners):
        for key in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(key):
                path = f"metadata.ownerReferences[{place}].{key}"
                yield Cause("FieldValueRequired", "Required value: must not be empty", path)
    controllers = [owner["name"] for owner in owners if owner.get("controller") and owner.get("name")]
    if len(controllers) > 1:
        message = (
            'Invalid value: Only one reference can have Controller set to true. Found "true" in references for '
            f"{controllers[0]} and {controllers[1]}"
        )
        yield Cause("FieldValueInvalid", message, "metadata.ownerReferences")


def _keys(entries: Any, path: str, *, values: bool) -> Iterator[Cause]:
    if entries is None:
        return
    if not isinstance(entries, dict) or any(not isinstance(value, str) for value in entries.values()):
        # What the decoder of the real server refuses before anybody validates.
        raise bad_request(f"{path}: a map of strings is expected")
    for key, value in entries.items():
        prefix, slash, word = key.rpartition("/")
        if not _WORD.fullmatch(word) or len(word) > 63 or (slash and not _NAME.fullmatch(prefix)):
            yield Cause("FieldValueInvalid", f'Invalid value: "{key}": {_KEY_RULE}', path)
        if values and len(value) > 63:
            yield Cause("FieldValueInvalid", f'Invalid value: "{value}": must be no more than 63 bytes', path)
        elif values and not _LABEL_VALUE.fullmatch(value):
            yield Cause("FieldValueInvalid", f'Invalid value: "{value}": {_VALUE_RULE}', path)
