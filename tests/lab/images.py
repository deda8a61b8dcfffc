"""Container images without a registry, and the pods that use them.

Three names share one layer of busybox: `PAUSE` for sandboxes, `BUSYBOX` for general use, and `PYTHON`, which is
the same until a pod mounts this machine's Python and this project into it, read-only (`python_pod`).
"""

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.lab.binaries import ARCHITECTURE

PAUSE = "sickbay.test/pause:1"
BUSYBOX = "sickbay.test/busybox:1"
PYTHON = "sickbay.test/python:1"

PROJECT = Path(__file__).resolve().parents[2]
FOLDERS = ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr", "usr/bin", "var")
# fmt: off
LINKS = (
    "cat", "cp", "date", "echo", "env", "false", "find", "grep", "head", "id", "kill", "ln", "ls", "mkdir", "mv",
    "nc", "ps", "rm", "sed", "sh", "sleep", "stat", "tail", "touch", "true", "wget",
)
# fmt: on
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
# Where a dynamic loader looks on a Linux machine; what is a link into /usr there is one in the image.
LIBRARY_FOLDERS = ("/lib", "/lib64")
LOADER_CACHE = "/etc/ld.so.cache"


def write_images(tar_path: Path, busybox: Path) -> None:
    """Write one `docker save` style archive with all three images (Docker image specification 1.2)."""
    layer = _layer(busybox)
    manifest: list[Any] = []
    files = {"layer.tar": layer}
    commands = {PAUSE: ["sleep", "infinity"], BUSYBOX: ["sh"], PYTHON: ["sh"]}
    for name, command in commands.items():
        config = json.dumps(_config(layer, command)).encode()
        config_name = f"{hashlib.sha256(config).hexdigest()}.json"
        files[config_name] = config
        manifest.append({"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]})
    files["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(tar_path, "w") as archive:
        for name, content in files.items():
            _add_file(archive, name, content, 0o644)


def _config(layer: bytes, command: Sequence[str]) -> dict[str, Any]:
    return {
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": {"Env": ["PATH=/bin:/usr/bin"], "Cmd": list(command), "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created_by": "sickbay lab"}],
    }


def _layer(busybox: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in FOLDERS:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            archive.addfile(entry)
        _add_file(archive, "bin/busybox", busybox.read_bytes(), 0o755)
        _add_file(archive, "etc/passwd", PASSWD, 0o644)
        for name in LINKS:
            _add_link(archive, f"bin/{name}", "busybox")
        for folder in map(Path, LIBRARY_FOLDERS):
            if folder.is_symlink():
                _add_link(archive, str(folder).lstrip("/"), str(folder.readlink()))
    return buffer.getvalue()


def _add_file(archive: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _add_link(archive: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    archive.addfile(entry)


def python_folders() -> list[Path]:
    """Return the machine's folders that this Python needs: its environment, its base, libraries, the project."""
    wanted = [Path("/usr"), Path(sys.prefix), Path(sys.base_prefix), PROJECT]
    wanted += [folder for folder in map(Path, LIBRARY_FOLDERS) if folder.is_dir() and not folder.is_symlink()]
    # A folder that lies in another wanted one comes with it.
    return sorted({path for path in wanted if not any(path != o and path.is_relative_to(o) for o in wanted)})


def container(
    name: str,
    command: Sequence[str],
    *,
    image: str = BUSYBOX,
    env: Mapping[str, str] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Return a container of an image that is already on the node; `fields` are further container fields."""
    variables = [{"name": key, "value": value} for key, value in (env or {}).items()]
    base = {"name": name, "image": image, "imagePullPolicy": "Never", "command": list(command)}
    return {**base, "env": variables, **fields}


def pod_spec(containers: Sequence[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """Return a pod spec that works here: host network (the CNI gives no address), short grace."""
    base = {"hostNetwork": True, "terminationGracePeriodSeconds": 1, "containers": list(containers)}
    return {**base, **fields}


def pod(
    name: str, spec: dict[str, Any], *, namespace: str = "default", labels: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return a Pod object."""
    metadata = {"name": name, "namespace": namespace, "labels": dict(labels or {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def busybox_pod(
    name: str, *, command: Sequence[str] = ("sleep", "infinity"), namespace: str = "default", **fields: Any
) -> dict[str, Any]:
    """Return a Pod of one busybox container; `fields` are further spec fields (`nodeName`...)."""
    return pod(name, pod_spec([container("main", command)], **fields), namespace=namespace)


def python_spec(
    command: Sequence[str],
    *,
    server: str,
    env: Mapping[str, str] | None = None,
    volumes: Sequence[dict[str, Any]] = (),
    mounts: Sequence[dict[str, Any]] = (),
    security: Mapping[str, Any] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Return a pod spec that runs this machine's Python with this project importable.

    `command` begins with `python3` (the interpreter of this very environment). Everything is mounted read-only
    at its own path. `server` is the API server's URL: there is no kube-proxy, so the address of the Service is
    replaced by it. `volumes` and `mounts` are added; `fields` are further spec fields.
    """
    host, _, port = server.removeprefix("https://").partition(":")
    variables = {
        "PATH": f"{sys.prefix}/bin:/bin:/usr/bin",
        "PYTHONPATH": str(PROJECT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "KUBERNETES_SERVICE_HOST": host,
        "KUBERNETES_SERVICE_PORT": port,
        **(env or {}),
    }
    own_volumes, own_mounts = _python_mounts()
    main = container(
        "main",
        command,
        image=PYTHON,
        env=variables,
        volumeMounts=[*own_mounts, *mounts],
        securityContext=dict(security or {}),
    )
    return pod_spec([main], volumes=[*own_volumes, *volumes], **fields)


def _python_mounts() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    kinds = dict.fromkeys(python_folders(), "Directory")
    if Path(LOADER_CACHE).is_file():
        kinds[Path(LOADER_CACHE)] = "File"
    volumes, mounts = [], []
    for number, (path, kind) in enumerate(kinds.items()):
        volumes.append({"name": f"machine-{number}", "hostPath": {"path": str(path), "type": kind}})
        mounts.append({"name": f"machine-{number}", "mountPath": str(path), "readOnly": True})
    return volumes, mounts
