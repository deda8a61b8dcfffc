"""Who we are to the Kubernetes API, and where it is: the pod's ServiceAccount, or a kubeconfig.

Inside a cluster the token is a file that the kubelet rewrites at 80 % of its life, so it is read again.
A kubeconfig goes through `kubernetes.config`, which knows client certificates, tokens and exec plugins; it
is imported only then, for it costs 35 MiB.
"""

import base64
import binascii
import logging
import ssl
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_REREAD_SECONDS = 60.0
_RELOAD_SECONDS = 5.0
_MAX_FILE = 1 << 20

log = logging.getLogger(__name__)


class KubeconfigError(Exception):
    """The API server cannot be reached as this user: one line that says which file or setting, and why."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is and how its connection is secured. `tls` is None for plain HTTP (kubectl proxy)."""

    host: str
    port: int
    prefix: str
    tls: ssl.SSLContext | None
    server_name: str | None = None

    @property
    def server(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.prefix}"


class Credentials(Protocol):
    """What a session asks before every request; both answers are cheap."""

    source: str

    def access(self) -> Access:
        """The same object until the server, its CA or the client certificate changes."""

    def authorization(self) -> str | None:
        """The Authorization header's value."""

    def refresh(self) -> None:
        """Read everything again: the server refused us, or did not prove itself. Raises nothing."""


class NodeIdentity(msgspec.Struct, frozen=True):
    """The node that a token is bound to, as the token itself claims it."""

    name: str
    uid: str


class _Kubernetes(msgspec.Struct, frozen=True):
    node: NodeIdentity | None = None


class _Claims(msgspec.Struct, frozen=True):
    exp: float | None = None
    kubernetes: _Kubernetes | None = msgspec.field(default=None, name="kubernetes.io")


_decode_claims = msgspec.json.Decoder(_Claims).decode


def node_identity(authorization: str | None) -> NodeIdentity | None:
    """The node of a bound ServiceAccount token, or None for any other credential or garbage.

    The signature is not checked: whoever holds the token is trusted to read its own, and the API server
    checks what is then asked of it. Claim: `kubernetes.io.node` (KEP-4193, GA in 1.32).
    """
    claims = _claims(authorization)
    node = claims.kubernetes.node if claims and claims.kubernetes else None
    return node if node and node.name and node.uid else None


def expiry(authorization: str | None) -> float | None:
    """When the token ends, in seconds since 1970, or None where it does not say."""
    claims = _claims(authorization)
    return claims.exp if claims else None


def _claims(authorization: str | None) -> _Claims | None:
    parts = (authorization or "").removeprefix("Bearer ").split(".")
    if len(parts) != 3:
        return None
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return _decode_claims(payload)
    except (ValueError, binascii.Error, msgspec.DecodeError):
        return None


class InClusterCredentials:
    """The ServiceAccount that the kubelet mounts into a pod."""

    def __init__(self, directory: Path, environ: Mapping[str, str]) -> None:
        """Raises KubeconfigError when this is not a pod, or a pod without a token."""
        host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
        if not host or not port.isdecimal():
            raise KubeconfigError(
                "not inside a cluster (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set): "
                "give --kubeconfig FILE"
            )
        self.source = f"ServiceAccount at {directory}"
        self._token_file = directory / "token"
        self._ca_file = directory / "ca.crt"
        self._lock = threading.Lock()
        self._address = host, int(port)
        self._ca = _read(self._ca_file)
        self._access = Access(*self._address, "", _context(str(self._ca_file), self._ca))
        self._authorization = f"Bearer {_token(self._token_file)}"
        self._read_at = time.monotonic()

    def access(self) -> Access:
        return self._access

    def authorization(self) -> str:
        if time.monotonic() - self._read_at > _REREAD_SECONDS:
            self._reread_token()
        return self._authorization

    def refresh(self) -> None:
        self._reread_token()
        with self._lock:
            try:
                if (ca := _read(self._ca_file)) != self._ca:
                    self._access = Access(*self._address, "", _context(str(self._ca_file), ca))
                    self._ca = ca
            except KubeconfigError as error:
                log.warning(
                    "the cluster's CA cannot be read again, keeping the old one", extra={"why": str(error)}
                )

    def _reread_token(self) -> None:
        self._read_at = time.monotonic()
        try:
            self._authorization = f"Bearer {_token(self._token_file)}"
        except KubeconfigError as error:
            log.warning("the token cannot be read again, keeping the old one", extra={"why": str(error)})


class Elsewhere:
    """Somebody's credentials at another server than their own; the caller vouches that it may see the token."""

    def __init__(self, credentials: Credentials, access: Access) -> None:
        self.source = f"{credentials.source}, at {access.server}"
        self._credentials = credentials
        self._access = access

    def access(self) -> Access:
        return self._access

    def authorization(self) -> str | None:
        return self._credentials.authorization()

    def refresh(self) -> None:
        self._credentials.refresh()


class FileCredentials:
    """A kubeconfig's current context."""

    def __init__(self, path: Path) -> None:
        """Raises KubeconfigError, which names the file and what is wrong with it."""
        self.source = f"kubeconfig {path}"
        self._path = path
        self._lock = threading.Lock()
        self._loaded_at = time.monotonic()
        self._access, self._authorization, self._content = _load_kubeconfig(path)

    def access(self) -> Access:
        return self._access

    def authorization(self) -> str | None:
        return self._authorization

    def refresh(self) -> None:
        with self._lock:
            # An exec plugin is a program: not once for every refused request.
            if time.monotonic() - self._loaded_at < _RELOAD_SECONDS:
                return
            self._loaded_at = time.monotonic()
            try:
                access, self._authorization, content = _load_kubeconfig(self._path)
            except KubeconfigError as error:
                log.warning(
                    "the kubeconfig cannot be read again, keeping the old one", extra={"why": str(error)}
                )
                return
            if content != self._content:
                self._access, self._content = access, content


def _load_kubeconfig(path: Path) -> tuple[Access, str | None, object]:
    """Access, Authorization, and what the access was made of (for comparison)."""
    _read(path)
    from kubernetes import client, config  # 35 MiB

    settings: Any = type.__call__(client.Configuration)
    with tempfile.TemporaryDirectory(prefix="sickbay-") as scratch:
        try:
            # The client writes certificates and keys to files. Here they are gone as soon as they are loaded.
            config.load_kube_config(  # type: ignore[no-untyped-call]
                str(path), client_configuration=settings, persist_config=False, temp_file_path=scratch
            )
            access = _access(path, settings)
        except KubeconfigError:
            raise
        except Exception as error:
            raise KubeconfigError(f"kubeconfig {path}: {_one_line(error)}") from error
        content = [settings.host, settings.tls_server_name, settings.verify_ssl] + [
            Path(name).read_bytes()
            for name in (settings.ssl_ca_cert, settings.cert_file, settings.key_file)
            if name
        ]
    token = settings.api_key.get("BearerToken") or settings.api_key.get("authorization")
    if token is None and settings.cert_file is None and access.tls is not None:
        raise KubeconfigError(
            f"kubeconfig {path}: the current context's user has no credentials "
            "(neither token nor client certificate, or its exec plugin gave none)"
        )
    return access, token, content


def _access(path: Path, settings: Any) -> Access:
    try:
        url = urlsplit(settings.host)
        host, port = url.hostname, url.port
    except ValueError:
        host = port = None
    if not host or url.scheme not in ("http", "https"):
        raise KubeconfigError(f"kubeconfig {path}: {settings.host!r} is not the address of an API server")
    if url.scheme == "http":
        return Access(host, port or 80, url.path.rstrip("/"), None)
    if settings.ssl_ca_cert:
        authority = _read(Path(settings.ssl_ca_cert))
        context = _context(f"kubeconfig {path}: its cluster's certificate authority", authority)
    else:
        context = ssl.create_default_context()
    if not settings.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if settings.cert_file:
        context.load_cert_chain(settings.cert_file, settings.key_file)
    return Access(host, port or 443, url.path.rstrip("/"), context, settings.tls_server_name)


def _context(name: str, authority: bytes) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=authority.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise KubeconfigError(f"{name}: not CA certificates in PEM ({_one_line(error)})") from error
    # Python 3.13 turns this on; CAs that installers have made for years lack what it demands.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _token(path: Path) -> str:
    try:
        token = _read(path).decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not token or not token.isprintable() or " " in token:
        raise KubeconfigError(f"{path}: not a token")
    return token


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_FILE + 1)
    except OSError as error:
        raise KubeconfigError(f"{path}: {error.strerror or error}") from error
    if len(data) > _MAX_FILE or not data:
        raise KubeconfigError(f"{path}: {'larger than 1 MiB' if data else 'the file is empty'}")
    return data


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
