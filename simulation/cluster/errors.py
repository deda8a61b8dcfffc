"""The refusals of the API server: StoreError with the code, reason, message and details that clients see.

Shapes from staging/src/k8s.io/apimachinery/pkg/api/errors/errors.go and pkg/util/validation/field/errors.go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simulation.cluster.interface import Object, StoreError

EXPIRED_CONTINUE = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list "
    "without the continue parameter, or use the continue token in this response to retrieve the remainder of the "
    "results. Continuing with the provided token results in an inconsistent list - objects that were created, "
    "modified, or deleted between the time the first chunk was returned and now may show up in the list."
)
MODIFIED_MEANWHILE = (
    "the object has been modified; please apply your changes to the latest version and try again"
)


_DETAILED = (404, 405, 422)
"""Codes whose Status has details, be they empty."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason of a 422: the API server's word for it, its message, and the field."""

    reason: str
    message: str
    field: str


class ExpiredListError(StoreError):
    """410 of a list that was being paged; `token` goes on from there, without consistency."""

    def __init__(self, token: str) -> None:
        super().__init__(410, "Expired", EXPIRED_CONTINUE)
        self.token = token


class SlowConflictError(StoreError):
    """A conflict that the real server tries to get over for `seconds` before it answers."""

    def __init__(self, conflict: StoreError, seconds: float) -> None:
        super().__init__(conflict.code, conflict.reason, conflict.message, details=conflict.details)
        self.seconds = seconds


def qualified(plural: str, group: str) -> str:
    """`pods`, `deployments.apps`."""
    return f"{plural}.{group}" if group else plural


def not_found(plural: str, group: str, name: str) -> StoreError:
    message = f'{qualified(plural, group)} "{name}" not found'
    return StoreError(404, "NotFound", message, details=_details(name, group, plural))


def already_exists(plural: str, group: str, name: str) -> StoreError:
    message = f'{qualified(plural, group)} "{name}" already exists'
    return StoreError(409, "AlreadyExists", message, details=_details(name, group, plural))


def conflict(plural: str, group: str, name: str, why: str) -> StoreError:
    message = f'Operation cannot be fulfilled on {qualified(plural, group)} "{name}": {why}'
    return StoreError(409, "Conflict", message, details=_details(name, group, plural))


def forbidden(plural: str, group: str, name: str, why: str, *, causes: Sequence[Cause] = ()) -> StoreError:
    message = f'{qualified(plural, group)} "{name}" is forbidden: {why}'
    details = _details(name, group, plural)
    if causes:
        details["causes"] = [_cause(cause) for cause in causes]
    return StoreError(403, "Forbidden", message, details=details)


def invalid(kind: str, group: str, name: str, causes: Sequence[Cause]) -> StoreError:
    """422; the message names one error, or all of them in brackets, each once."""
    told = list(dict.fromkeys(f"{cause.field}: {cause.message}" for cause in causes))
    text = told[0] if len(told) == 1 else f"[{', '.join(told)}]"
    details = {**_details(name, group, kind), "causes": [_cause(cause) for cause in causes]}
    return StoreError(
        422, "Invalid", f'{qualified(kind, group)} "{name}" is invalid: {text}', details=details
    )


def bad_request(message: str) -> StoreError:
    return StoreError(400, "BadRequest", message)


def unprocessable() -> StoreError:
    """What a JSON patch that cannot be applied is answered with (422, no details of ours)."""
    return StoreError(422, "Invalid", "the server rejected our request due to an error in our request")


def method_not_allowed() -> StoreError:
    return StoreError(
        405, "MethodNotAllowed", "the server does not allow this method on the requested resource"
    )


def unsupported_media_type(accepted: Sequence[str]) -> StoreError:
    message = (
        "the body of the request was in an unknown format - accepted media types include: "
        f"{', '.join(accepted)}"
    )
    return StoreError(415, "UnsupportedMediaType", message)


def expired(requested: int, oldest: int) -> StoreError:
    return StoreError(410, "Expired", f"too old resource version: {requested} ({oldest})")


def too_large_version(requested: int, current: int) -> StoreError:
    details = {
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    }
    message = f"Timeout: Too large resource version: {requested}, current: {current}"
    return StoreError(504, "Timeout", message, details=details)


def too_many_requests(message: str, *, retry_after: int, causes: Sequence[Object] = ()) -> StoreError:
    details: Object = {"causes": list(causes)} if causes else {}
    if retry_after:
        details["retryAfterSeconds"] = retry_after
    return StoreError(429, "TooManyRequests", message, details=details)


def status_of(error: StoreError) -> Object:
    """The Status object that a client is sent."""
    status: Object = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {"continue": error.token} if isinstance(error, ExpiredListError) else {},
        "status": "Failure",
        "message": error.message,
    }
    if error.reason:
        status["reason"] = error.reason
    if error.details or error.code in _DETAILED:
        status["details"] = error.details
    return {**status, "code": error.code}


def success(*, details: Object | None = None, code: int = 0) -> Object:
    """The Status object of a success."""
    status: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    if details:
        status["details"] = details
    return {**status, "code": code} if code else status


def _details(name: str, group: str, kind: str) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if name:
        details["name"] = name
    if group:
        details["group"] = group
    return {**details, "kind": kind} if kind else details


def _cause(cause: Cause) -> dict[str, str]:
    return {"reason": cause.reason, "message": cause.message, "field": cause.field}
