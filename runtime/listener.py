"""What an endpoint listens with: a socket, and where asked for a certificate that follows its files."""

import errno
import logging
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)


class ListenError(Exception):
    """The endpoint cannot listen: one line with the address and why."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of the server's certificate chain and key; read again when they change."""

    certificate: Path
    key: Path


class Certificate:
    """A TLS context that follows its files: cert-manager and secret mounts replace them while we run."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._stamp = self._stat()
        try:
            self._context = self._load()
        except (OSError, ValueError) as error:
            raise ListenError(
                f"cannot use the certificate {files.certificate} with the key {files.key}: {error}"
            ) from error

    def context(self) -> ssl.SSLContext:
        with self._lock:
            if (stamp := self._stat()) != self._stamp:
                self._stamp = stamp
                try:
                    self._context = self._load()
                except (OSError, ValueError) as error:
                    # Half of a pair has been replaced, most likely: the other half changes the stamp again.
                    log.warning("the new certificate cannot be used yet", extra={"why": str(error)})
            return self._context

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        # An encrypted key would else be asked for at the terminal.
        context.load_cert_chain(self._files.certificate, self._files.key, password="")
        return context

    def _stat(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp(path) for path in (self._files.certificate, self._files.key))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def listen(address: str, port: int) -> socket.socket:
    """A listening socket. An empty address is every address, IPv6 too where there is it. Raises ListenError."""
    shown = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    try:
        if address:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            return socket.create_server((address, port), family=family, backlog=128)
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=128, dualstack_ipv6=True)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES):
                raise
            return socket.create_server(("", port), backlog=128)
    except OSError as error:
        why = "the address is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
        raise ListenError(f"cannot listen on {shown}: {why}") from error
