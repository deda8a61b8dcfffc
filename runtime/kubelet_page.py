"""The kubelet's own port as our ServiceAccount: `/pods` and `/metrics`, by fine-grained authorization (KEP-2862).

Whoever has bound that port gets our token, so it is sent only to a server that proves by its certificate that it is
this node's kubelet: signed by the cluster's CA, or the very certificate that lies on the host.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from runtime.kubernetes import KubeconfigError, Session
from runtime.kubernetes_auth import Access
from runtime.quantities import ListenAddress


def kubelet_session(
    session: Session, address: ListenAddress, *, node: str, authority: Path | None
) -> Session:
    """A session with the kubelet at `address`; `authority` is its certificate, or that of who signed it.

    Without one the cluster's CA has to have signed it, for that address. Raises KubeconfigError.
    """
    if authority is None:
        tls = session.tls
        if tls is None or tls.verify_mode is not ssl.CERT_REQUIRED:
            raise KubeconfigError("the cluster's CA is not known, so the kubelet cannot prove who it is")
        return session.toward(Access(address.host, address.port, "", tls))
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError) as error:
        raise KubeconfigError(f"kubeletAuthority {authority}: {error}") from error
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return session.toward(Access(address.host, address.port, "", context, server_name=node))
