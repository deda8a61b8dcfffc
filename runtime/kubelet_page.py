"""The kubelet's own port as our ServiceAccount: `/pods` and `/metrics`, by fine-grained authorization (KEP-2862).

Whoever has bound that port gets our token, so it is sent only to a server that proves by its certificate that it is
this node's kubelet: signed by the cluster's CA, or the very certificate that lies on the host.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NoReturn

from runtime.api_errors import ApiError, ConnectionFailed, Forbidden, Unauthorized
from runtime.kubernetes import Session
from runtime.kubernetes_auth import Access
from runtime.quantities import ListenAddress


class PageUnavailableError(Exception):
    """The kubelet is not to be asked; the message says why, to go on after "and"."""


def no_page() -> NoReturn:
    """The page of a kubelet whose address nobody has given. Raises PageUnavailableError."""
    raise PageUnavailableError("no kubeletAddress is set")


def kubelet_session(
    session: Session, address: ListenAddress, *, node: str, authority: Path | None
) -> Session:
    """A session with the kubelet at `address`; `authority` is its certificate, or that of who signed it.

    Without one the cluster's CA has to have signed it, for that address. Raises PageUnavailableError.
    """
    if authority is None:
        tls = session.tls
        if tls is None or tls.verify_mode is not ssl.CERT_REQUIRED:
            raise PageUnavailableError("the cluster's CA is not known, so the kubelet cannot prove who it is")
        return session.toward(Access(address.host, address.port, "", tls))
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError) as error:
        raise PageUnavailableError(f"kubeletAuthority {authority}: {_why(error)}") from error
    # A certificate that somebody else has signed is itself what is trusted here, and a kubelet's own CA lacks
    # what strict verification wants (k8s.io/client-go/util/cert).
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return session.toward(Access(address.host, address.port, "", context, server_name=node))


def is_refused(error: ApiError) -> bool:
    """Whether the kubelet lets us not ask, or has not proven who it is, so that nothing was sent."""
    unproven = isinstance(error, ConnectionFailed) and "CERTIFICATE_VERIFY_FAILED" in error.message
    return unproven or isinstance(error, Forbidden | Unauthorized)


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return "expected certificates in PEM"
    return error.strerror or str(error)
