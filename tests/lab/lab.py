"""The lab: one control plane and its nodes, as a context manager.

with Lab(nodes=("n1", "n2")) as lab:
    lab.kubectl("get", "nodes")
"""

import json
import time
from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab import binaries, images, rbac_usage, reaper
from tests.lab.api import Api, Object
from tests.lab.control_plane import ControlPlane, Ports, kubectl
from tests.lab.node import Node
from tests.lab.node_files import NodeOptions, NodePlan
from tests.lab.pki import write_kubeconfig
from tests.lab.processes import LabError, Processes, signals_held


class Lab:
    """A Kubernetes cluster on this machine. Start and stop it from the main thread."""

    folder: Path
    """The lab's own folder; everything in it goes with the lab."""
    api: Api
    """The administrator's JSON client."""
    kubeconfig: Path
    """The administrator's kubeconfig file."""
    services: IPv4Network
    """Addresses of Services; the first is the API server's, as pods know it."""
    pod_addresses: IPv4Network
    """Addresses of pods that do not share the host's network (`tests.lab.pod_network`)."""
    processes: Processes
    """Starts further children (agents, controllers) that end with the lab."""
    start_seconds: float
    """How long `start` took until the control plane was ready."""

    def __init__(self, *, nodes: Sequence[str] = (), fsync: bool = False) -> None:
        """`fsync`: let etcd sync every write to disk, as benchmarks need. Raises nothing; see `start`."""
        self.nodes: dict[str, Node] = {}
        self._first_nodes = tuple(nodes)
        self._fsync = fsync
        self._claim: reaper.Claim | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Bring up the control plane and the first nodes. Raises LabError; nothing is left behind then."""
        if self._claim is not None:
            raise LabError("this lab has been started already")
        begun = time.monotonic()
        self._binaries = binaries.find()
        try:
            with signals_held():
                self._claim = reaper.claim()
            self._start(self._claim, begun)
        except BaseException:
            self.stop()
            raise

    def _start(self, claim: reaper.Claim, begun: float) -> None:
        self.folder = claim.folder
        self.services, self.pod_addresses = claim.subnet.subnets()
        self._next_port = claim.first_port
        self._last_port = claim.first_port + reaper.PORTS_PER_SLOT - 1
        self.processes = Processes(self.folder)
        self._gate = self.folder / "control-plane.ready"
        self._image_archive = self.folder / "images.tar"
        self.control_plane = ControlPlane(
            self.folder,
            processes=self.processes,
            binaries=self._binaries,
            ports=Ports(*(self.port() for _ in range(5))),
            services=self.services,
            fsync=self._fsync,
        )
        self.control_plane.launch()
        images.write_images(self._image_archive, self._binaries["busybox"])
        # Their containerd starts beside the control plane, their kubelet waits for the gate.
        for name in self._first_nodes:
            self._boot(name, NodeOptions())
        self.api = self.control_plane.wait_ready()
        self.kubeconfig = self.control_plane.kubeconfig("admin", "sickbay-lab-admin", ("system:masters",))
        self._gate.touch()
        self.start_seconds = time.monotonic() - begun
        for name in self._first_nodes:
            self.nodes[name].wait_ready(self.api)

    def stop(self) -> None:
        """End every process and remove every trace. Calling it again does nothing."""
        with signals_held():
            claim, self._claim = self._claim, None
            if claim is None:
                return
            for node in self.nodes.values():
                node.power_off()
            if hasattr(self, "processes"):
                self.processes.kill_all()
            self.nodes.clear()
            try:
                rbac_usage.collect(claim.folder)
            finally:
                claim.release()

    @property
    def lab_id(self) -> str:
        """What tells this lab's folder and cgroups from another's."""
        return self.folder.name

    @property
    def server(self) -> str:
        """The API server's URL."""
        return self.control_plane.server

    @property
    def ca_path(self) -> Path:
        """The CA that signed the API server's and every kubelet's serving certificate."""
        return self.control_plane.ca_path

    @property
    def audit_log(self) -> Path:
        """The API server's audit log: one JSON event a line, with `userAgent`; bodies of SubjectAccessReviews alone."""
        return self.control_plane.audit_log

    def audit_events(self) -> list[Object]:
        """Return the audit log so far, oldest first."""
        lines = self.audit_log.read_bytes().split(b"\n")
        # What follows the last newline is an event that is still being written.
        return [json.loads(line) for line in lines[:-1]]

    def port(self) -> int:
        """Return a loopback port that nobody else takes while the lab lives. Raises LabError after 40."""
        if self._next_port > self._last_port:
            raise LabError(f"all {reaper.PORTS_PER_SLOT} ports of this lab are given away")
        self._next_port += 1
        return self._next_port - 1

    def add_node(self, name: str, **options: Any) -> Node:
        """Start a node and wait until it is Ready; `options` are the fields of NodeOptions."""
        node = self._boot(name, NodeOptions(**options))
        node.wait_ready(self.api)
        return node

    def add_nodes(self, *names: str, **options: Any) -> list[Node]:
        """Start several nodes at once, all with the same options, and wait until all are Ready."""
        nodes = [self._boot(name, NodeOptions(**options)) for name in names]
        for node in nodes:
            node.wait_ready(self.api)
        return nodes

    def remove_node(self, name: str) -> None:
        """Switch a node off and delete its Node object and files."""
        node = self.nodes.pop(name)
        node.stop()
        self.api.delete(f"/api/v1/nodes/{name}")
        node.delete_files()

    def _boot(self, name: str, options: NodeOptions) -> Node:
        if self._claim is None:
            raise LabError("the lab is not running")
        if name in self.nodes:
            raise LabError(f"there is a node {name} already")
        self.control_plane.add_host(name)
        plan = NodePlan(
            name=name,
            folder=self.folder / name,
            cgroup=f"{self._claim.cgroup_prefix}{name}",
            port=self.port(),
            options=options,
            server=self.server,
            ca_path=self.ca_path,
            binaries=self._binaries,
            gate=self._gate,
            image_archive=self._image_archive,
        )
        plan.write(self.control_plane.authority)
        node = Node(plan, self.processes)
        self.nodes[name] = node
        node.boot()
        return node

    def kubectl(
        self,
        *arguments: str | Path,
        input: str | None = None,  # the name subprocess gives it
        kubeconfig: Path | None = None,
        check: bool = True,
    ) -> str:
        """Run kubectl, as the administrator unless another kubeconfig is given.

        Returns standard output; with `check=False` standard error follows it, and a failure is no error.
        Raises LabError with both otherwise.
        """
        words = tuple(map(str, arguments))
        status, output, errors = kubectl(
            self._binaries["kubectl"],
            words,
            kubeconfig=kubeconfig or self.kubeconfig,
            cache=self.folder / "kubecache",
            input_text=input,
        )
        if not check:
            return output + errors
        if status != 0:
            raise LabError(f"kubectl {' '.join(words)}: exit code {status}\n{output}{errors}")
        return output

    def apply(self, *objects: Object) -> None:
        """`kubectl apply` of objects given as dictionaries."""
        content = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "-f", "-", input=json.dumps(content))

    def user_kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """Return a kubeconfig of a person: a client certificate with this user name and these groups."""
        return self.control_plane.kubeconfig(f"user-{user.replace(':', '-')}", user, tuple(groups))

    def service_account_token(
        self, namespace: str, name: str, *, bound_node: str | None = None, expiration_seconds: int = 3600
    ) -> str:
        """Return a token of a ServiceAccount by TokenRequest, bound to a Node's UID where asked."""
        spec: dict[str, Any] = {"expirationSeconds": expiration_seconds}
        if bound_node is not None:
            uid = self.api.get(f"/api/v1/nodes/{bound_node}")["metadata"]["uid"]
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Node", "name": bound_node, "uid": uid}
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        return str(self.api.create(path, request)["status"]["token"])

    def service_account_kubeconfig(
        self, namespace: str, name: str, bound_node: str | None = None, expiration_seconds: int = 3600
    ) -> Path:
        """Return a kubeconfig with a fresh token of a ServiceAccount; a second call replaces the file."""
        token = self.service_account_token(
            namespace, name, bound_node=bound_node, expiration_seconds=expiration_seconds
        )
        return write_kubeconfig(
            self.folder / f"sa-{namespace}-{name}-{bound_node or 'unbound'}.kubeconfig",
            server=self.server,
            ca=self.control_plane.authority.certificate,
            user=f"system:serviceaccount:{namespace}:{name}",
            credential=token,
            namespace=namespace,
        )

    def client(self, token: str) -> Api:
        """Return a JSON client that acts as the bearer of `token`."""
        return Api(self.server, self.ca_path, token=token)
