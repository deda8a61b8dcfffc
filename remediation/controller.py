"""The controller as a process: watches, lease, deciding loop, endpoint; and how it stops."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from health.report import AcceleratorReport
from remediation.cluster import CONTROLS, NODES, REMEDIATIONS, REPORTS, Cluster
from remediation.configuration import ControllerConfiguration
from remediation.engine import Done, Engine, Led, NewPolicy, Resource, Seen
from remediation.executor import Executor
from remediation.fleet import Node
from remediation.lease import KubernetesLeaseApi, LeaseElector
from remediation.metrics import ControllerMetrics, registry, snapshot
from remediation.objects import AcceleratorControl, AcceleratorRemediation, StartTokens
from remediation.pod_api import KubernetesPods
from remediation.policy import Policy, load_policy
from remediation.reflector import Event, Kind, Reflector
from remediation.repair_api import KubernetesRepairs
from remediation.retention import outlived
from remediation.traces import Teller
from runtime.api_errors import ApiError, Forbidden, Invalid, NotFound
from runtime.clock import SystemClock
from runtime.config_error import ConfigError
from runtime.endpoint import Endpoint
from runtime.exposition import Exposition
from runtime.kubernetes import Session, session_from
from runtime.tracing import start_tracing

log = logging.getLogger(__name__)

Watched = TypeVar("Watched", AcceleratorReport, Node, AcceleratorRemediation, AcceleratorControl)

HOUSEKEEPING = 2.0
"""Seconds between looks at the policy file, old sessions and the counts for metrics."""

_STALLED = 60.0


class Controller:
    """Everything of one controller process. `run` returns when `stopping` is set."""

    def __init__(self, config: ControllerConfiguration, session: Session, *, version: str) -> None:
        self._config = config
        self._session = session
        self._version = version
        self._clock = SystemClock()
        self._leading = threading.Event()
        self._terms = threading.Lock()
        self._term = 0
        self._took_office: float | None = None
        self.stopping = threading.Event()
        self._cluster = Cluster(session, may_write=self._may_write)
        self._workers = ThreadPoolExecutor(config.workers, thread_name_prefix="step")
        self._looks = ThreadPoolExecutor(config.workers, thread_name_prefix="look")
        self._metrics = ControllerMetrics()
        self._tracer = start_tracing(service="sickbay-controller")
        self._traces = Teller(self._tracer)
        self._reflectors = (
            self._watch(REPORTS, AcceleratorReport, Resource.REPORT),
            self._watch(NODES, Node, Resource.NODE),
            self._watch(REMEDIATIONS, AcceleratorRemediation, Resource.SESSION),
            self._watch(CONTROLS, AcceleratorControl, Resource.CONTROL),
        )
        pods = KubernetesPods(session, clock=self._clock, may_write=self._may_write)
        self._engine = Engine(
            clock=self._clock,
            policy=load_policy(config.policy) if config.policy else Policy(),
            executor=Executor(
                self._cluster,
                pods,
                self._clock,
                repairs=KubernetesRepairs(session, self._cluster, pods, may_write=self._may_write),
                epoch=lambda: self._engine.epoch,
                aside=lambda read: self._looks.submit(read).result,
            ),
            workers=self._workers,
            view_age=self._view_age,
            remember_tokens=self._remember_tokens,
            on_done=self._on_done,
        )
        self._policy_seen = _stamp(config.policy)
        self._beat = self._clock.monotonic()
        identity = config.identity or f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self._elector = LeaseElector(
            KubernetesLeaseApi(session.clone(), namespace=config.lease_namespace, name=config.lease_name),
            identity=identity,
            lease_duration=config.lease_duration,
            renew_deadline=config.renew_deadline,
            retry_period=config.retry_period,
            on_started=self._on_started,
            on_stopped=self._on_stopped,
        )

    def run(self) -> int:
        """Work until told to stop. Returns the exit code."""
        endpoint = self._endpoint()
        endpoint.start()
        for reflector in self._reflectors:
            reflector.start()
        elector_started = False
        try:
            while not self.stopping.is_set():
                if not elector_started and all(reflector.synced.is_set() for reflector in self._reflectors):
                    self._elector.start()
                    elector_started = True
                self._engine.run_once(patience=0.2 if not elector_started else 1.0)
                self._keep_house()
        finally:
            self._leading.clear()
            if elector_started:
                self._elector.stop()
            for reflector in self._reflectors:
                reflector.stop()
            self._workers.shutdown(wait=True, cancel_futures=True)
            self._looks.shutdown(wait=True)
            self._tracer.shutdown()
            endpoint.close()
        return 0

    def _watch(self, path: str, type_: type[Watched], resource: Resource) -> Reflector[Watched]:
        """A watch of a collection that feeds the deciding loop."""

        def put(event: Event[Watched]) -> None:
            self._engine.inbox.put(Seen(resource, event.kind, event.key, event.object))

        return Reflector(self._session.clone(), path, type_, key=lambda found: found.metadata.name, sink=put)

    def _view_age(self) -> float:
        """Seconds since the watch that is worst off was last known to be alive."""
        return self._clock.monotonic() - min(reflector.proven_alive() for reflector in self._reflectors)

    def _may_write(self) -> bool:
        return self._leading.is_set() and self._elector.is_leader()

    def _on_done(self, done: Done) -> None:
        self._metrics.count(done)
        for session in done.report.sessions:
            self._traces.tell(session)

    def _on_started(self, transitions: int) -> None:
        """Runs in the elector's thread, which must go on renewing: so the takeover has one of its own."""
        with self._terms:
            self._term += 1
            arguments = (transitions, self._term)
            self._took_office = self._clock.monotonic()
        threading.Thread(target=self._take_over, args=arguments, name="takeover", daemon=True).start()

    def _on_stopped(self, reason: str) -> None:
        with self._terms:
            self._term += 1
            self._took_office = None
            self._leading.clear()
            self._engine.inbox.put(Led(0))
        log.warning("no longer the leader", extra={"reason": reason})

    def _take_over(self, transitions: int, term: int) -> None:
        """Begin an epoch above every epoch that was, and write it on all open sessions before anything else.

        What a former leader still has in the air then meets a newer resourceVersion and changes nothing.
        """
        epoch = 0
        while self._term == term and not self.stopping.is_set():
            try:
                found = self._cluster.all_sessions()
                sessions, epoch = found.readable, found.next_epoch(transitions, tried=epoch)
                open_sessions = [session for session in sessions if not session.current.phase.closed]
                if not self._while_in(term, partial(self._begin, epoch)):
                    return
                self._stamp(open_sessions, epoch)
                self._traces.tell_again(sessions, self._clock.wall())
                self._while_in(term, partial(self._lead, epoch, len(open_sessions)))
                return
            except ApiError as error:
                log.warning("cannot take over yet", extra={"error": str(error)})
            except Exception:
                log.exception("cannot take over, for a reason that nobody foresaw")
            self._while_in(term, self._leading.clear)
            self.stopping.wait(1.0)

    def _while_in(self, term: int, act: Callable[[], None]) -> bool:
        """Do it if this is still the term, which cannot end meanwhile; whether it was."""
        with self._terms:
            if self._term != term:
                return False
            act()
            return True

    def _begin(self, epoch: int) -> None:
        self._session.user_agent = f"sickbay-controller/{self._version} epoch/{epoch}"
        self._leading.set()

    def _lead(self, epoch: int, open_sessions: int) -> None:
        self._took_office = None
        self._engine.inbox.put(Led(epoch))
        log.info("leads", extra={"epoch": epoch, "open_sessions": open_sessions})

    def _stamp(self, sessions: list[AcceleratorRemediation], epoch: int) -> None:
        for session in sessions:
            try:
                stamped = self._cluster.write_status(session, replace(session.current, leader_epoch=epoch))
            except (Invalid, Forbidden, NotFound) as error:
                # One session that can never be written must not keep all nodes from being looked after.
                log.error(
                    "a session cannot be taken over",
                    extra={"session": session.metadata.name, "error": str(error)},
                )
                continue
            self._engine.inbox.put(Seen(Resource.SESSION, Kind.MODIFIED, stamped.metadata.name, stamped))

    def _keep_house(self) -> None:
        now = self._clock.monotonic()
        if now - self._beat < HOUSEKEEPING and self._metrics.current.epoch == self._engine.epoch:
            return
        self._beat = now
        tokens = self._engine.bucket(virtual=False).tokens
        self._metrics.current = snapshot(
            self._engine.fleet, self._engine.policy, start_tokens=tokens, epoch=self._engine.epoch, now=now
        )
        self._reload_policy()
        if self._engine.epoch:
            gone = outlived(self._engine.fleet.sessions.values(), self._clock.wall())
            if gone:
                self._workers.submit(self._forget, gone[:50])

    def _forget(self, sessions: list[AcceleratorRemediation]) -> None:
        for session in sessions:
            try:
                self._cluster.delete_session(session)
            except ApiError as error:
                log.warning(
                    "cannot delete an old session",
                    extra={"session": session.metadata.name, "error": str(error)},
                )

    def _reload_policy(self) -> None:
        """Take a changed policy file; a bad one is said once and the last good one stays."""
        stamp = _stamp(self._config.policy)
        if self._config.policy is None or stamp == self._policy_seen:
            return
        self._policy_seen = stamp
        try:
            policy = load_policy(self._config.policy)
        except ConfigError as error:
            self._metrics.policy_loads.labels("failed").inc()
            log.error("the changed policy is not taken, the last good one stays", extra={"error": str(error)})
            return
        self._metrics.policy_loads.labels("done").inc()
        log.info("policy taken", extra={"policy": policy.reference.name, "hash": policy.reference.hash})
        self._engine.inbox.put(NewPolicy(policy))

    def _remember_tokens(self, tokens: StartTokens) -> None:
        try:
            self._cluster.write_start_tokens(tokens)
        except ApiError as error:
            log.warning("cannot remember the start tokens", extra={"error": str(error)})

    def _endpoint(self) -> Endpoint:
        exposition = Exposition(
            registry(self._metrics, self._tracer), generation=lambda: None, clock=self._clock
        )
        listen = self._config.listen
        return Endpoint(
            listen.host, listen.port, metrics=exposition, healthz=self._healthz, readyz=self._readyz
        )

    def _healthz(self) -> tuple[bool, str]:
        now = self._clock.monotonic()
        took_office = self._took_office
        if took_office is not None and now - took_office > _STALLED:
            return False, f"holds the lease for {now - took_office:.0f} s and cannot take over"
        silent = now - self._beat
        return silent < _STALLED, f"the deciding loop was last seen {silent:.0f} s ago"

    def _readyz(self) -> tuple[bool, str]:
        behind = sum(not reflector.synced.is_set() for reflector in self._reflectors)
        return (
            not behind,
            f"{behind} of {len(self._reflectors)} collections not yet listed" if behind else "ready",
        )


def run(config: ControllerConfiguration, *, version: str, stopping: threading.Event) -> int:
    """Run a controller until `stopping` is set. Raises KubeconfigError, ConfigError, ListenError at the start."""
    session = session_from(config.kubeconfig, user_agent=f"sickbay-controller/{version}")
    server = session.check()
    log.info("starts", extra={"version": version, "server": session.server, "kubernetes": server})
    controller = Controller(config, session, version=version)
    controller.stopping = stopping
    return controller.run()


def _stamp(path: Path | None) -> tuple[int, int] | None:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_ino)
