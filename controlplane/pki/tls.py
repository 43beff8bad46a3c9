"""The TLS context of the API server: it asks clients for a certificate of the cluster's CA, and takes those without one."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any


class _Refusal(ssl.SSLObject):
    """A connection that lives long enough to say why it is refused.

    The event loops close a connection at once when its handshake fails, and the alert that OpenSSL has made for the client
    (unknown CA, certificate expired) is lost: kubectl then tries again for a minute instead of telling. So a failed handshake
    looks unfinished to the loop, which sends the alert; the client closes, or the loop's limit on handshakes does.
    """

    discard: Callable[[], bytes] = bytes
    _failed = False

    def do_handshake(self) -> None:
        if not self._failed:
            try:
                return super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError:
                self._failed = True
        self.discard()
        raise ssl.SSLWantReadError


class _Context(ssl.SSLContext):
    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **options: Any) -> ssl.SSLObject:
        made = super().wrap_bio(incoming, outgoing, *args, **options)
        made.discard = incoming.read  # type: ignore[attr-defined]
        return made


def server_context(certificate: Path, key: Path, client_ca: Path) -> ssl.SSLContext:
    """Serves this certificate. Load it again (`load_cert_chain`) when it was renewed: new connections get the new one."""
    context = _Context(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = _Refusal
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(client_ca)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.set_alpn_protocols(["http/1.1"])
    return context
