"""Who leads: the thread that holds the controller's Lease by the protocol of `remediation.election`.

It has connections of its own, so that a busy controller cannot lose the Lease to its own traffic. Nothing
that the API does ends it: an error is logged, and the term runs on to its deadline and no further.
"""

import logging
import random
import threading
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from remediation.election import Action, Election, LeaseRecord, Request
from runtime.api_errors import ApiError, Conflict, NotFound, Unavailable
from runtime.clock import Clock, SystemClock
from runtime.kubernetes import Response, Session

_REQUEST_SECONDS = 5.0
_CONFLICT_SECONDS = 0.2

log = logging.getLogger(__name__)


class LeaseApi(Protocol):
    """One Lease, as the API has it. Every method raises ApiError; `timeout` is in seconds."""

    def read(self, *, timeout: float) -> LeaseRecord | None:
        """None when there is no such Lease."""

    def create(self, record: LeaseRecord, *, timeout: float) -> LeaseRecord:
        """Raises Conflict when somebody was first."""

    def replace(self, record: LeaseRecord, *, timeout: float) -> LeaseRecord:
        """Raises Conflict unless the record's resourceVersion is the current one."""


class LeaseElector:
    """A candidate at work. `on_started` and `on_stopped` are called in its thread and must return soon.

    `on_started(transitions)` begins a term, whose number is larger than that of any term before it (the Lease
    must not be deleted); `on_stopped(reason)` ends it. `is_leader` is exact at any moment, whatever the thread
    is doing: it is false from the deadline on, also before `on_stopped` has been called.
    """

    def __init__(
        self,
        api: LeaseApi,
        *,
        identity: str,
        on_started: Callable[[int], None],
        on_stopped: Callable[[str], None],
        lease_duration: float = 15.0,
        renew_deadline: float = 10.0,
        retry_period: float = 2.0,
        clock: Clock | None = None,
    ) -> None:
        """`identity` must be new with every process (host name and something random)."""
        self._api = api
        self._election = Election(identity, lease_duration=lease_duration, renew_deadline=renew_deadline)
        self._on_started = on_started
        self._on_stopped = on_stopped
        self._retry_period = retry_period
        self._clock = clock or SystemClock()
        self._announced: int | None = None
        self._told = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    @property
    def identity(self) -> str:
        return self._election.identity

    @property
    def holder(self) -> str:
        """Who held the Lease when it was last seen."""
        return self._election.holder

    @property
    def transitions(self) -> int | None:
        """The number of the term in which we lead now."""
        return self._election.term(self._clock.monotonic())

    def is_leader(self) -> bool:
        return self._election.leads(self._clock.monotonic())

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End the term, call `on_stopped`, and free the Lease, so that a successor starts at once.

        What acts on our leadership must have ended when `on_stopped` returns.
        """
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._announce()
            pause = self._step()
            self._announce()
            self._stopping.wait(pause)
        self._release()

    def _step(self) -> float:
        """One request and its answer; seconds until the next one."""
        pause = self._retry_period * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, guards nothing
        request = self._election.request(self._clock.monotonic(), self._clock.wall())
        try:
            record = self._send(request)
        except Exception as error:
            self._election.failed(error, self._clock.monotonic())
            self._log_failure(request, error)
            # Somebody wrote meanwhile. A moment's wait, and two candidates do not chase each other.
            pause = _CONFLICT_SECONDS * random.random() if isinstance(error, Conflict) else pause  # noqa: S311
        else:
            self._told = ""
            self._election.answered(request, record, self._clock.monotonic())
            # Having looked, renew or take the Lease without another wait.
            now = self._clock.monotonic()
            ready = self._election.leads(now) or self._election.may_claim(now)
            pause = 0.0 if request.action is Action.READ and ready else pause
        fence = self._election.fence(self._clock.monotonic())
        return pause if fence is None else min(pause, max(0.0, fence - self._clock.monotonic()))

    def _send(self, request: Request) -> LeaseRecord | None:
        fence = self._election.fence(request.sent)
        # A leader's question is not worth more time than the term has left.
        timeout = _REQUEST_SECONDS if fence is None else min(_REQUEST_SECONDS, max(0.1, fence - request.sent))
        if request.record is None:
            return self._api.read(timeout=timeout)
        if request.action is Action.CREATE:
            return self._api.create(request.record, timeout=timeout)
        return self._api.replace(request.record, timeout=timeout)

    def _announce(self) -> None:
        now = self._clock.monotonic()
        self._election.expire(now)
        term = self._election.term(now)
        if term == self._announced:
            return
        if self._announced is not None:
            self._announced = None
            log.warning("no longer the leader", extra={"why": self._election.ended})
            self._call(self._on_stopped, self._election.ended)
        if term is not None:
            log.info("leader", extra={"transitions": term, "identity": self.identity})
            self._announced = term
            if not self._call(self._on_started, term):
                # A leader that does nothing keeps everybody else from doing it.
                self._release()

    def _release(self) -> None:
        request = self._election.release(self._clock.monotonic(), self._clock.wall())
        self._announce()
        if request is None:
            return
        try:
            self._election.answered(request, self._send(request), self._clock.monotonic())
        except Exception as error:
            self._election.failed(error, self._clock.monotonic())
            self._log_failure(request, error)

    def _call(self, callback: Callable[..., None], argument: object) -> bool:
        try:
            callback(argument)
        except Exception:
            log.exception("a callback of the leader election failed")
            return False
        return True

    def _log_failure(self, request: Request, error: Exception) -> None:
        """Once for each kind of trouble: an API server that is away would else fill the log."""
        repeated = self._told == type(error).__name__
        self._told = type(error).__name__
        log.log(
            logging.DEBUG if repeated or isinstance(error, Conflict) else logging.WARNING,
            "the Lease cannot be used",
            extra={"action": request.action.value, "why": str(error)},
            exc_info=None if isinstance(error, ApiError) else error,
        )


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str


class _Lease(msgspec.Struct, frozen=True):
    metadata: _Metadata
    spec: _Spec | None = None


class KubernetesLeaseApi:
    """A `coordination.k8s.io/v1` Lease. What others keep on it (labels, annotations, owners) is left alone."""

    def __init__(self, session: Session, *, namespace: str, name: str) -> None:
        """`session` should be a clone, with connections of its own."""
        self._session = session
        self._namespace = namespace
        self._name = name
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"

    def read(self, *, timeout: float) -> LeaseRecord | None:
        try:
            return _record(self._session.get(f"{self._collection}/{self._name}", timeout=_halves(timeout)))
        except NotFound:
            return None

    def create(self, record: LeaseRecord, *, timeout: float) -> LeaseRecord:
        document = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
        }
        body = _body(document, record)
        return _record(self._session.post(self._collection, body, timeout=_halves(timeout)))

    def replace(self, record: LeaseRecord, *, timeout: float) -> LeaseRecord:
        body = _body(record.document or {}, record)
        return _record(self._session.put(f"{self._collection}/{self._name}", body, timeout=_halves(timeout)))


def _halves(timeout: float) -> tuple[float, float]:
    """To connect, and to wait for the answer: together not more than `timeout`."""
    return timeout / 2, timeout / 2


def _record(response: Response) -> LeaseRecord:
    try:
        document = msgspec.json.decode(response.body, type=dict[str, Any])
        lease = msgspec.convert(document, _Lease)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unavailable(f"not a Lease: {error}", status=response.status) from error
    spec = lease.spec or _Spec()
    return LeaseRecord(
        holder=spec.holder_identity or "",
        transitions=spec.lease_transitions or 0,
        duration_seconds=spec.lease_duration_seconds or 0,
        acquired=spec.acquire_time or "",
        renewed=spec.renew_time or "",
        resource_version=lease.metadata.resource_version,
        document=document,
    )


def _body(document: dict[str, Any], record: LeaseRecord) -> bytes:
    spec = {
        **(document.get("spec") or {}),
        # Not "": the API takes a holder only when it has a name (client-go leaves it out as well).
        "holderIdentity": record.holder or None,
        "leaseDurationSeconds": record.duration_seconds,
        "acquireTime": record.acquired or None,
        "renewTime": record.renewed,
        "leaseTransitions": record.transitions,
    }
    return msgspec.json.encode({**document, "spec": spec})
