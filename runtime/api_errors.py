# ruff: noqa: N818 - these names are the API's own words

"""What can go wrong at the Kubernetes API, one class for each thing that callers tell apart.

    ApiError
    |-- Invalid             400, 422: the request is wrong, and stays wrong
    |-- Unauthorized        401: no such user, or an expired token
    |-- Forbidden           403: RBAC, or an admission policy
    |-- NotFound            404
    |-- Conflict            409: a resourceVersion or UID precondition, or the object exists already
    |-- Gone                410: a resourceVersion or continue token that is too old
    |-- TooManyRequests     429: a disruption budget (`is_disruption_budget`), or API priority and fairness
    |-- ResponseTooLarge    more than the client is willing to hold
    `-- Unavailable         5xx
        `-- ConnectionFailed    no answer at all

Shapes: `metav1.Status`, staging/src/k8s.io/apimachinery/pkg/apis/meta/v1/types.go.
"""

from collections.abc import Mapping

import msgspec

_EXCERPT = 200


class Cause(msgspec.Struct, frozen=True):
    """One entry of a Status' `details.causes`."""

    reason: str = ""
    message: str = ""
    field: str = ""


class _Details(msgspec.Struct, frozen=True, rename="camel"):
    causes: tuple[Cause, ...] = ()
    retry_after_seconds: int = 0


class _Status(msgspec.Struct, frozen=True):
    reason: str = ""
    message: str = ""
    code: int = 0
    details: _Details | None = None


class ApiError(Exception):
    """An answer that is not a success. `str()` is one line with method, path, status and message.

    `status` is the HTTP status (0: none), `reason` the API's CamelCase word, `retry_after` seconds or None.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        causes: tuple[Cause, ...] = (),
        retry_after: float | None = None,
        request: str = "",
    ) -> None:
        self.message = message
        self.status = status
        self.reason = reason
        self.causes = causes
        self.retry_after = retry_after
        self.request = request
        super().__init__(str(self))

    def __str__(self) -> str:
        head = " ".join(part for part in (self.request, str(self.status or ""), self.reason) if part)
        return f"{head}: {self.message}" if head else self.message

    @property
    def maybe_applied(self) -> bool:
        """Whether a mutation may have been carried out although this error came back."""
        return False


class Invalid(ApiError):
    """The request itself is wrong: a schema, a validation rule, malformed JSON."""


class Unauthorized(ApiError):
    """The API server does not know who is asking."""


class Forbidden(ApiError):
    """The API server knows who is asking, and says no."""


class NotFound(ApiError):
    """There is no such object."""


class Conflict(ApiError):
    """Somebody else was first."""

    @property
    def already_exists(self) -> bool:
        """A create met an object of that name; otherwise a precondition did not hold."""
        return self.reason == "AlreadyExists"


class Gone(ApiError):
    """What the request refers to has been compacted away: list again."""


class TooManyRequests(ApiError):
    """Not now. Both a PodDisruptionBudget and the API server's own load say so."""

    @property
    def is_disruption_budget(self) -> bool:
        """An eviction that a PodDisruptionBudget holds back (pkg/registry/core/pod/storage/eviction.go)."""
        return any(cause.reason == "DisruptionBudget" for cause in self.causes)


class ResponseTooLarge(ApiError):
    """An answer, or one line of a watch, longer than the client's bound."""

    @property
    def maybe_applied(self) -> bool:
        return True


class Unavailable(ApiError):
    """The API server, or something between, is in trouble; a 504 may follow a write that went through."""

    @property
    def maybe_applied(self) -> bool:
        return True


class ConnectionFailed(Unavailable):
    """No answer: refused, timed out, reset, or a certificate that does not verify.

    `sent` is False when the request certainly did not leave this machine.
    """

    def __init__(self, message: str, *, sent: bool, request: str = "") -> None:
        self.sent = sent
        super().__init__(message, request=request)

    @property
    def maybe_applied(self) -> bool:
        return self.sent


_CLASSES: dict[int, type[ApiError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
}
_decode_status = msgspec.json.Decoder(_Status).decode


def api_error(status: int, headers: Mapping[str, str], body: bytes, *, request: str = "") -> ApiError:
    """The error that an answer with `status` (not 2xx) stands for; any body will do."""
    try:
        told = _decode_status(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        told = _Status(message=_excerpt(body))
    details = told.details or _Details()
    kind = _CLASSES.get(status) or (Unavailable if status >= 500 else ApiError)
    return kind(
        told.message or "no message",
        status=status,
        reason=told.reason,
        causes=details.causes,
        retry_after=_retry_after(headers, details),
        request=request,
    )


def watch_error(status_object: bytes, *, request: str = "") -> ApiError:
    """The error that the object of a watch's ERROR event stands for."""
    try:
        code = _decode_status(status_object).code
    except (msgspec.DecodeError, UnicodeDecodeError):
        code = 0
    return api_error(code or 500, {}, status_object, request=request)


def _retry_after(headers: Mapping[str, str], details: _Details) -> float | None:
    """Seconds, from the header (the API server sends no dates there) or the Status."""
    text = headers.get("retry-after", "")
    if text.isascii() and text.isdigit() and len(text) < 7:
        return float(text)
    return float(details.retry_after_seconds) or None


def _excerpt(body: bytes) -> str:
    text = " ".join(body[: 4 * _EXCERPT].decode("utf-8", "replace").split())
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return printable[:_EXCERPT] or "an empty answer"
