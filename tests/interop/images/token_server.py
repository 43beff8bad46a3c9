"""A token server for docker-registry's `auth: token`: it signs JSON Web Tokens (distribution's token specification)."""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

ISSUER, SERVICE = "tests", "registry"


class SigningServer:
    """Gives tokens to one person, from a thread of its own, until it is closed."""

    def __init__(self, certificate: Path, key: Path, user: str, password: str) -> None:
        self._key, self._certificate = load_pem_private_key(key.read_bytes(), None), certificate
        self._chain = load_pem_x509_certificate(certificate.read_bytes()).public_bytes(Encoding.DER)
        known = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        sign = self._token

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                is_known = self.headers.get("Authorization") == known
                body = json.dumps({"token": sign(query.get("scope", [])), "expires_in": 300} if is_known else {}).encode()
                self.send_response(200 if is_known else 401)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def configuration(self) -> str:
        """The registry's `auth`."""
        realm = "http://{}:{}/token".format(*self._server.server_address[:2])
        values = f"realm: '{realm}', service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: '{self._certificate}'"
        return f"auth: {{token: {{{values}}}}}\n"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _token(self, scopes: list[str]) -> str:
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())
        claims = {
            "iss": ISSUER, "sub": "someone", "aud": SERVICE, "iat": now, "nbf": now - 10, "exp": now + 300, "jti": str(now),
            "access": access,
        }  # fmt: skip
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(self._chain).decode()]}
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        assert isinstance(self._key, RSAPrivateKey)
        return f"{signed}.{_encoded(self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
