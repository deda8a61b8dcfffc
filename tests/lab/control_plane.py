"""The control plane: etcd, kube-apiserver, kube-controller-manager and kube-scheduler on loopback."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

import urllib3
import yaml

from tests.lab.api import Api, ApiError
from tests.lab.pki import Authority, service_account_key, write_kubeconfig, write_private
from tests.lab.processes import Child, Processes, run, wait_until

NOT_YET = (urllib3.exceptions.HTTPError, ApiError, OSError)
READY_DEADLINE_S = 60.0
API_SERVER_MEMORY = {"GOGC": "400", "GOMEMLIMIT": "1GiB"}
"""Here the API server shares two cores with all that it serves, where a real one has its own: with Go's default of
100 it collects garbage during one write in a hundred, which then takes 20 ms and not 8."""
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        # What a kubelet asks: who may see its pages is told by the body alone.
        {
            "level": "RequestResponse",
            "resources": [{"group": "authorization.k8s.io", "resources": ["subjectaccessreviews"]}],
        },
        {"level": "Metadata"},
    ],
}


@dataclass(frozen=True, slots=True)
class Ports:
    """The loopback ports of the control plane."""

    etcd: int
    etcd_peer: int
    server: int
    controller_manager: int
    scheduler: int


class ControlPlane:
    """Four processes and the files they need, all below `folder`."""

    def __init__(
        self,
        folder: Path,
        *,
        processes: Processes,
        binaries: dict[str, Path],
        ports: Ports,
        services: IPv4Network,
        fsync: bool,
    ) -> None:
        self.folder = folder
        self.server = f"https://127.0.0.1:{ports.server}"
        self.ca_path = folder / "ca.crt"
        self.audit_log = folder / "audit.log"
        self.hosts = folder / "hosts"
        self.authority = Authority()
        self._processes = processes
        self._binaries = binaries
        self._ports = ports
        self._services = services
        self._fsync = fsync

    def launch(self) -> None:
        """Write the files, start etcd and the API server; returns before they answer."""
        self.ca_path.write_bytes(self.authority.certificate)
        private, public = service_account_key()
        write_private(self.folder / "service-account.key", private)
        (self.folder / "service-account.pub").write_bytes(public)
        hosts = ("localhost", "127.0.0.1", "kubernetes.default.svc", str(self._services[1]))
        self.authority.server("kube-apiserver", hosts).write(self.folder, "server")
        self.authority.client("sickbay-lab-admin", ["system:masters"]).write(self.folder, "admin")
        self.authority.client("kube-apiserver-kubelet", ["system:masters"]).write(
            self.folder, "kubelet-client"
        )
        (self.folder / "audit-policy.yaml").write_text(yaml.safe_dump(AUDIT_POLICY))
        self.hosts.write_text("127.0.0.1 localhost\n")
        self._start_etcd()
        self._start_server()

    def wait_ready(self) -> Api:
        """Wait for the API server, start the other two, wait until pods could be created.

        Returns the administrator's client. Raises LabError with the end of the log that matters.
        """
        api = Api(
            self.server,
            self.ca_path,
            certificate=self.folder / "admin.crt",
            key=self.folder / "admin.key",
        )
        server = self._processes.children["kube-apiserver"]
        end = time.monotonic() + READY_DEADLINE_S
        self._wait(server, lambda: api.text("/readyz") == "ok", end, "the API server to be ready")
        manager = self._start_controller_manager()
        self._start_scheduler()
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self._wait(manager, lambda: api.exists(account), end, "ServiceAccount default, which pods need")
        return api

    def add_host(self, name: str) -> None:
        """Let the API server resolve a node's name to loopback (for logs and exec)."""
        # In place: the API server's mount namespace holds this very file over /etc/hosts.
        with self.hosts.open("a") as hosts:
            hosts.write(f"127.0.0.1 {name}\n")

    def kubeconfig(self, name: str, user: str, groups: tuple[str, ...] = ()) -> Path:
        """Write `NAME.kubeconfig` with a fresh client certificate; return its path."""
        return write_kubeconfig(
            self.folder / f"{name}.kubeconfig",
            server=self.server,
            ca=self.authority.certificate,
            user=user,
            credential=self.authority.client(user, groups),
        )

    def _wait(self, child: Child, condition: Callable[[], bool], end: float, what: str) -> None:
        def check() -> bool:
            child.check()
            return condition()

        wait_until(check, max(0.0, end - time.monotonic()), what, logs=[child.log], ignoring=NOT_YET)

    def _start_etcd(self) -> None:
        client = f"http://127.0.0.1:{self._ports.etcd}"
        peer = f"http://127.0.0.1:{self._ports.etcd_peer}"
        flags = [
            f"--data-dir={self.folder}/etcd",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--log-level=warn",
        ]
        if not self._fsync:
            flags.append("--unsafe-no-fsync")
        self._processes.start("etcd", [self._binaries["etcd"], *flags])

    def _start_server(self) -> Child:
        folder = self.folder
        flags = [
            f"--etcd-servers=http://127.0.0.1:{self._ports.etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._ports.server}",
            # Without it: "cannot use public IP 127.0.0.1 with endpoint reconciler".
            "--endpoint-reconciler-type=none",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--service-cluster-ip-range={self._services}",
            f"--client-ca-file={self.ca_path}",
            f"--tls-cert-file={folder}/server.crt",
            f"--tls-private-key-file={folder}/server.key",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={folder}/service-account.pub",
            f"--service-account-signing-key-file={folder}/service-account.key",
            f"--kubelet-certificate-authority={self.ca_path}",
            f"--kubelet-client-certificate={folder}/kubelet-client.crt",
            f"--kubelet-client-key={folder}/kubelet-client.key",
            f"--audit-log-path={self.audit_log}",
            f"--audit-policy-file={folder}/audit-policy.yaml",
        ]
        # Logs and exec look nodes up by name: a hosts file of its own, in a mount namespace of its own.
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        wrapper: list[str | Path] = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            self.hosts,
        ]
        return self._processes.start(
            "kube-apiserver",
            [*wrapper, self._binaries["kube-apiserver"], *flags],
            env={**os.environ, **API_SERVER_MEMORY},
        )

    def _start_controller_manager(self) -> Child:
        kubeconfig = self.kubeconfig("controller-manager", "system:kube-controller-manager")
        flags = [
            *self._common_flags(kubeconfig, self._ports.controller_manager),
            "--use-service-account-credentials",
            f"--service-account-private-key-file={self.folder}/service-account.key",
            f"--root-ca-file={self.ca_path}",
            # With the default rate ServiceAccount "default", which every pod needs, comes 5 s late.
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
        ]
        binary = self._binaries["kube-controller-manager"]
        return self._processes.start("kube-controller-manager", [binary, *flags])

    def _start_scheduler(self) -> None:
        kubeconfig = self.kubeconfig("scheduler", "system:kube-scheduler")
        flags = self._common_flags(kubeconfig, self._ports.scheduler)
        self._processes.start("kube-scheduler", [self._binaries["kube-scheduler"], *flags])

    @staticmethod
    def _common_flags(kubeconfig: Path, port: int) -> list[str]:
        return [
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            "--leader-elect=false",
        ]


def kubectl(
    binary: Path, arguments: tuple[str, ...], *, kubeconfig: Path, cache: Path, input_text: str | None
) -> tuple[int, str, str]:
    """Run kubectl; return status, standard output and standard error."""
    argv: list[str | Path] = [binary, f"--kubeconfig={kubeconfig}", f"--cache-dir={cache}", *arguments]
    done = run(argv, input_text=input_text, env={"PATH": "/usr/bin:/bin", "HOME": str(cache)}, timeout=110)
    return done.returncode, done.stdout, done.stderr
