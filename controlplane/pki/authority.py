"""All keys and certificates of one control plane, in a folder: made where they are missing, renewed before they expire.

ca.crt, ca.key                          the cluster's CA: servers, nodes and people
front-proxy-ca.crt, front-proxy-ca.key  the CA of proxies that speak for others
apiserver.crt, apiserver.key            what the API server shows
kubelet-client.crt, kubelet-client.key  who the API server is to the kubelets
sa.key, sa.pub                          what service account tokens are signed and checked with
"""

import base64
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from controlplane.pki import certificates
from controlplane.pki.certificates import Pair

ADMIN_GROUP = "system:masters"


class Authority:
    """See the module. Raises OSError for a folder that cannot be written, ValueError for files in it that are broken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self.ca = self._ca("ca", "kubernetes")
        self.front_proxy_ca = self._ca("front-proxy-ca", "front-proxy-ca")
        self._make_signing_key()

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.crt"

    def renew(self, server_names: Sequence[str]) -> bool:
        """Issues what is missing, about to expire, or not for these names; True where something changed."""
        changed = self._leaf("apiserver", lambda: certificates.issue(
            self.ca, "kube-apiserver", server_names=server_names, client=False), names=set(server_names))  # fmt: skip
        client = self._leaf("kubelet-client", lambda: certificates.issue(self.ca, "kube-apiserver-kubelet-client", [ADMIN_GROUP]))
        return changed or client

    def write_kubeconfig(self, path: Path, server: str, user: str, groups: Sequence[str]) -> None:
        """A kubeconfig with a certificate of its own, kept while it is good and for the same server."""
        if self.is_good_kubeconfig(path, server):
            return
        pair = certificates.issue(self.ca, user, groups)
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "strata", "cluster": {"server": server, "certificate-authority-data": _b64(self.ca.certificate_pem)}}
            ],
            "users": [
                {
                    "name": user,
                    "user": {
                        "client-certificate-data": _b64(pair.certificate_pem),
                        "client-key-data": _b64(pair.key_pem),
                    },
                }
            ],
            "contexts": [{"name": "strata", "context": {"cluster": "strata", "user": user}}],
            "current-context": "strata",
        }
        certificates.write(path, yaml.safe_dump(document, sort_keys=False).encode())

    def is_good_kubeconfig(self, path: Path, server: str) -> bool:
        """Whether a kubeconfig is there, is for this server and CA, and its certificate lasts."""
        try:
            document = yaml.safe_load(path.read_text())
            user = document["users"][0]["user"]
            certificate = x509.load_pem_x509_certificate(base64.b64decode(user["client-certificate-data"]))
            cluster = document["clusters"][0]["cluster"]
            same = cluster["server"] == server and cluster["certificate-authority-data"] == _b64(self.ca.certificate_pem)
        except (FileNotFoundError, KeyError, IndexError, TypeError, ValueError, yaml.YAMLError):
            return False
        return same and not certificates.is_about_to_expire(certificate)

    def _ca(self, name: str, common_name: str) -> Pair:
        pair = certificates.load(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        if pair and not pair.is_whole:
            raise ValueError(f"{self.folder}/{name}.key is not the key of {name}.crt: put back the one that is")
        return pair or self._keep(name, certificates.make_ca(common_name))

    def _leaf(self, name: str, make: Callable[[], Pair], names: set[str] | None = None) -> bool:
        pair = certificates.load(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        good = pair and pair.is_whole and self._has_signed(pair.certificate)
        lasts = pair and good and not certificates.is_about_to_expire(pair.certificate)
        if pair and lasts and (names is None or names <= certificates.names_of(pair.certificate)):
            return False
        self._keep(name, make())
        return True

    def _has_signed(self, certificate: x509.Certificate) -> bool:
        try:
            certificate.verify_directly_issued_by(self.ca.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def _keep(self, name: str, pair: Pair) -> Pair:
        certificates.write(self.folder / f"{name}.key", pair.key_pem)
        certificates.write(self.folder / f"{name}.crt", pair.certificate_pem, mode=0o644)
        return pair

    def _make_signing_key(self) -> None:
        private, public = self.folder / "sa.key", self.folder / "sa.pub"
        if private.exists() and public.exists():
            return
        # RSA: what every consumer of the issuer's keys understands (RS256), and quick to verify.
        key = rsa.generate_private_key(65537, 2048)
        pem = serialization.Encoding.PEM
        none = serialization.NoEncryption()
        certificates.write(private, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
        public_form = serialization.PublicFormat.SubjectPublicKeyInfo
        certificates.write(public, key.public_key().public_bytes(pem, public_form), mode=0o644)


def _b64(content: bytes) -> str:
    return base64.b64encode(content).decode()
