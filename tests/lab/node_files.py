"""What a node is made from: its options, and the files that stay the same over its reboots."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab import images
from tests.lab.binaries import cni_folder
from tests.lab.mounts import filesystem_of
from tests.lab.node_init import CONTAINERD_SOCKET, Boot
from tests.lab.pki import Authority, write_kubeconfig
from tests.lab.processes import LabError

CNI = {"cniVersion": "0.4.0", "name": "lo", "plugins": [{"type": "loopback"}]}
# Domains in which a kubelet may not label itself (NodeRestriction); the administrator can.
RESERVED_DOMAINS = ("kubernetes.io", "k8s.io")


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """How one node differs from the next.

    `capacity`: extended resources to advertise ("example.com/gpu": 8). `kernel_log`: a plain file that
    stands for /dev/kmsg on this node (default: the machine's own; a FIFO will not do, because the kubelet reads
    /dev/kmsg too and would take lines from it). `status_frequency`: seconds between node
    status updates (the kubelet's own default is 10). `kubelet`: further fields of KubeletConfiguration.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    capacity: Mapping[str, int] = field(default_factory=dict)
    kernel_log: Path | None = None
    status_frequency: float = 1.0
    kubelet: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodePlan:
    """Everything about a node that is settled before its first boot.

    `cgroup` is the name of its cgroup in every hierarchy, `port` the kubelet's, `gate` the file whose existence
    lets the kubelet start, `image_archive` what containerd imports.
    """

    name: str
    folder: Path
    cgroup: str
    port: int
    options: NodeOptions
    server: str
    ca_path: Path
    binaries: Mapping[str, Path]
    gate: Path
    image_archive: Path

    def write(self, authority: Authority) -> None:
        """Write configuration, certificates and boot orders into `folder`. Raises LabError."""
        kernel_log = self.options.kernel_log
        if kernel_log is not None and not kernel_log.is_file():
            raise LabError(f"kernel_log {kernel_log} of node {self.name} is not a plain file")
        for name in ("kubelet", "log", "containerd", "cni"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "cni" / "lo.conflist").write_text(json.dumps(CNI))
        (self.folder / "kubelet.yaml").write_text(json.dumps(self._kubelet_configuration(), indent=1))
        (self.folder / "containerd.toml").write_text(self._containerd_configuration())
        self._boot_orders().write(self.folder / "boot.json")
        user = f"system:node:{self.name}"
        authority.server(user, (self.name, "127.0.0.1"), ["system:nodes"]).write(self.folder, "kubelet")
        write_kubeconfig(
            self.folder / "kubelet.kubeconfig",
            server=self.server,
            ca=authority.certificate,
            user=user,
            credential=authority.client(user, ["system:nodes"]),
        )

    def _boot_orders(self) -> Boot:
        labels = ",".join(
            f"{key}={value}" for key, value in self.options.labels.items() if not _is_reserved(key)
        )
        kubelet = [
            str(self.binaries["kubelet"]),
            f"--config={self.folder}/kubelet.yaml",
            f"--kubeconfig={self.folder}/kubelet.kubeconfig",
            f"--hostname-override={self.name}",
            f"--node-labels={labels}",
        ]
        ctr = [str(self.binaries["ctr"]), f"--address={CONTAINERD_SOCKET}", "--namespace=k8s.io"]
        kernel_log = self.options.kernel_log
        return Boot(
            folder=str(self.folder),
            containerd=[str(self.binaries["containerd"]), f"--config={self.folder}/containerd.toml"],
            kubelet=kubelet,
            images_import=[*ctr, "images", "import", str(self.image_archive)],
            gate=str(self.gate),
            kernel_log=str(kernel_log) if kernel_log else None,
            keep=[str(path) for path in (*images.python_folders(), self.binaries["kubelet"].parent)],
        )

    def _kubelet_configuration(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}",
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "address": "127.0.0.1",
            "port": self.port,
            "healthzPort": 0,
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "resolvConf": "",
            "volumePluginDir": "/var/lib/kubelet/volumeplugins",
            "tlsCertFile": f"{self.folder}/kubelet.crt",
            "tlsPrivateKeyFile": f"{self.folder}/kubelet.key",
            "authentication": {
                "x509": {"clientCAFile": str(self.ca_path)},
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
            },
            "authorization": {"mode": "Webhook"},
            # A machine that is nearly full would else evict pods and delete the imported images.
            "evictionHard": {
                "memory.available": "1Mi",
                "nodefs.available": "1Mi",
                "imagefs.available": "1Mi",
            },
            "imageGCHighThresholdPercent": 100,
            "nodeStatusUpdateFrequency": f"{self.options.status_frequency:g}s",
            **self.options.kubelet,
        }

    def _containerd_configuration(self) -> str:
        # overlayfs cannot lie on overlayfs, which is what a container's own file system is.
        snapshotter = "native" if filesystem_of(self.folder) == "overlay" else "overlayfs"
        return f"""version = 2
root = "{self.folder}/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
path = "{self.folder}/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{images.PAUSE}"
# Without CAP_SYS_RESOURCE every sandbox fails otherwise: "can't get final child's PID from pipe: EOF".
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni_folder()}"
conf_dir = "{self.folder}/cni"
"""


def _is_reserved(label: str) -> bool:
    domain, _, name = label.rpartition("/")
    return bool(name) and any(domain == d or domain.endswith(f".{d}") for d in RESERVED_DOMAINS)
