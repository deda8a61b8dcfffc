"""The node agent as a program: put together from its configuration, run, and ended by a signal."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from exporter.configuration import AgentConfiguration
from exporter.memory import Keeper, load
from exporter.metrics import registry
from exporter.node_agent import NodeAgent, Settings
from health import xids
from health.report import ReportStatus
from health.vocabulary import GROUP_VERSION
from runtime.endpoint import Endpoint, ListenError
from runtime.exposition import Exposition, Registry
from runtime.kubelet_page import PageUnavailableError, kubelet_session, no_page
from runtime.kubernetes import KubeconfigError, Session, session_from
from runtime.tracing import start_tracing
from runtime.version import VERSION

EXIT_OK = 0
EXIT_CONFIGURATION = 2
"""A value, a file or an address that cannot be used; the message names it."""
EXIT_DEVICE_ACCESS_LOST = 75
"""NVML answers Unknown Error (999) since this container lost its devices: the kubelet is to start a new one."""

USER_AGENT = f"sickbay-agent/{VERSION}"

RECONNECT_SECONDS = 30.0
"""How often a kubeconfig that could not be used is looked at again."""

ONCE_SECONDS = 20.0
"""How long one look at everything may take; an NVML worker that hangs is shown as such."""

log = logging.getLogger(__name__)


class UnusableError(Exception):
    """The agent cannot run as it is configured; one line for a person."""


def run(configuration: AgentConfiguration) -> int:
    """Run until SIGTERM or SIGINT, or until this process has lost the devices. The exit code.

    The caller has set up the log (`runtime.logs`). A cluster, an NVML library or a kernel log that is missing
    is reported and looked for again; what works goes on.
    """
    try:
        cluster = _Cluster(configuration)
        agent = _agent(
            configuration, state_file=configuration.state_file, node_uid=cluster.node_uid, cluster=cluster
        )
        endpoint = _endpoint(configuration, agent, cluster)
    except UnusableError as error:
        log.error("%s", error)
        return EXIT_CONFIGURATION
    with _stop_signals() as stopped:
        log.info(
            "the agent starts",
            extra={"version": VERSION, "node": cluster.node, "port": endpoint.port},
        )
        endpoint.start()
        agent.start()
        try:
            while not stopped() and not agent.access_lost:
                cluster.connect(agent)
                agent.step()
        finally:
            log.info("the agent stops")
            agent.stop()
            endpoint.close()
            agent.tracer.shutdown()
    if agent.access_lost:
        log.error("this process has lost its access to the devices; a new container gets it back")
        return EXIT_DEVICE_ACCESS_LOST
    return EXIT_OK


def print_once(configuration: AgentConfiguration, *, metrics: bool, report: bool) -> int:
    """One look at everything, then metrics (text format) and the report (JSON) on standard output. The exit code.

    It needs no cluster, serves nothing and leaves the state file alone.
    """
    try:
        agent = _agent(configuration, state_file=None, node_uid="")
    except UnusableError as error:
        log.error("%s", error)
        return EXIT_CONFIGURATION
    deadline = time.monotonic() + ONCE_SECONDS
    agent.start()
    try:
        while not agent.observed() and time.monotonic() < deadline:
            agent.step(0.1)
        if metrics:
            _, body = _registry(agent).render("text/plain")
            sys.stdout.buffer.write(body)
        if report:
            sys.stdout.buffer.write(_report(_node_name(configuration), agent.status()))
        sys.stdout.buffer.flush()
    finally:
        agent.stop()
    return EXIT_OK


class _Cluster:
    """The connection to the API server, which may only come later."""

    def __init__(self, configuration: AgentConfiguration) -> None:
        """Raises UnusableError if the credential is another node's."""
        self._configuration = configuration
        self._next_try = 0.0
        self.node = _node_name(configuration)
        self.node_uid = ""
        self.why = ""
        """Why the report is not published, if it should be."""
        self._kubelet: Session | None = None
        self._session = self._open() if configuration.report else None
        self._published = not configuration.report

    def connect(self, agent: NodeAgent) -> None:
        """Have the report published, once there is a connection."""
        if self._published:
            return
        if self._session is None and time.monotonic() >= self._next_try:
            try:
                self._session = self._open()
            except UnusableError as error:
                self._complain(str(error))
        if self._session is not None:
            self._published = True
            agent.publish_to(self._session, node=self.node, node_uid=self.node_uid)

    def kubelet_page(self) -> Session:
        """The node's kubelet as our account. Raises PageUnavailableError while it is not to be asked."""
        address, session = self._configuration.kubelet_address, self._session
        if address is None:
            no_page()
        if session is None:
            raise PageUnavailableError("there is no ServiceAccount to ask the kubelet with")
        if self._kubelet is None:
            self._kubelet = kubelet_session(
                session, address, node=self.node, authority=self._configuration.kubelet_authority
            )
        return self._kubelet

    def _open(self) -> Session | None:
        self._next_try = time.monotonic() + RECONNECT_SECONDS
        kubeconfig = self._configuration.kubeconfig
        if kubeconfig is None and "KUBERNETES_SERVICE_HOST" not in os.environ:
            # This cannot change while the process lives.
            self._next_try = float("inf")
            log.warning("no cluster: neither in a pod nor with a kubeconfig, so no report is published")
            return None
        try:
            session = session_from(kubeconfig, user_agent=USER_AGENT)
        except KubeconfigError as error:
            self._complain(str(error))
            return None
        self._identify(session)
        self.why = ""
        return session

    def _identify(self, session: Session) -> None:
        identity = session.node_identity()
        wanted = self._configuration.node
        if identity is None:
            log.warning(
                "the credential is not bound to a node: the report says no node UID, and no controller acts on it"
            )
            return
        if wanted and identity.name != wanted:
            raise UnusableError(
                f"the token is bound to node {identity.name!r}, the configuration says {wanted!r}"
            )
        self.node, self.node_uid = identity.name, identity.uid

    def _complain(self, why: str) -> None:
        if why != self.why:
            log.error("the report cannot be published; this is tried again", extra={"why": why})
        self.why = why


def _agent(
    configuration: AgentConfiguration,
    *,
    state_file: Path | None,
    node_uid: str,
    cluster: _Cluster | None = None,
) -> NodeAgent:
    boot_id = _boot_id(configuration.boot_id)
    return NodeAgent(
        Settings(
            kernel_log=configuration.kernel_log,
            kernel_log_since=configuration.kernel_log_since or 0,
            worker_command=configuration.worker_command,
            sample_interval=configuration.sample_interval,
            renew_interval=configuration.renew_interval,
            drill=configuration.drill,
            pod_resources_socket=configuration.pod_resources_socket,
            device_plugin_folder=configuration.device_plugin_folder,
            pods_socket=configuration.pods_socket,
            receipts=configuration.receipts,
        ),
        boot_id=boot_id,
        catalogue=_catalogue(configuration.xid_overrides),
        memory=load(state_file, boot_id=boot_id, node_uid=node_uid) if state_file else None,
        keeper=Keeper(state_file) if state_file else None,
        tracer=start_tracing(service="sickbay-agent", resource={"service.instance.id": cluster.node})
        if cluster
        else None,
        node=cluster.node if cluster else _node_name(configuration),
        kubelet_page=cluster.kubelet_page if cluster else no_page,
    )


def _registry(agent: NodeAgent) -> Registry:
    outlet = agent.dispatch
    return registry(
        agent.snapshot,
        agent.published,
        (
            *outlet.collectors,
            ("kubelet metrics", agent.kubelet_metrics),
            ("tracing", agent.tracer),
        ),
    )


def _endpoint(configuration: AgentConfiguration, agent: NodeAgent, cluster: _Cluster) -> Endpoint:
    def ready() -> tuple[bool, str]:
        return (False, cluster.why) if cluster.why else agent.ready()

    exposition = Exposition(_registry(agent), generation=lambda: agent.generation, max_age=5.0)
    address = configuration.listen
    try:
        return Endpoint(address.host, address.port, metrics=exposition, healthz=agent.healthy, readyz=ready)
    except ListenError as error:
        raise UnusableError(str(error)) from error


def _node_name(configuration: AgentConfiguration) -> str:
    return configuration.node or socket.gethostname().lower()


def _boot_id(path: Path) -> str:
    try:
        boot_id = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not ASCII"
        raise UnusableError(f"boot ID {path}: {why}") from error
    if not boot_id or len(boot_id) > 64 or not boot_id.isprintable():
        raise UnusableError(
            f"boot ID {path}: expected one line with at most 64 characters, got {boot_id[:80]!r}"
        )
    return boot_id


def _catalogue(overrides: Path | None) -> xids.Catalogue:
    if overrides is None:
        return xids.builtin()
    try:
        text = overrides.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UnusableError(f"xidOverrides {overrides}: {why}") from error
    try:
        return xids.builtin().overridden(xids.parse(text, file=str(overrides)))
    except xids.CatalogueError as error:
        raise UnusableError(str(error)) from error


def _report(node: str, status: ReportStatus) -> bytes:
    content = {
        "apiVersion": GROUP_VERSION,
        "kind": "AcceleratorReport",
        "metadata": {"name": node},
        "status": status,
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or SIGINT has come. Other threads than the main one cannot be asked to stop by a signal."""
    # A list, since a second signal may come while the first is handled: no lock may be taken here.
    came: list[int] = []

    def stopped() -> bool:
        return bool(came)

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
