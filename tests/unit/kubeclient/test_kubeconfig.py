"""Kubeconfigs: what is read, what is refused, and that changed files are read again."""

import base64
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from strata.kubeclient import kubeconfig as module
from strata.kubeclient.errors import KubeconfigError
from strata.kubeclient.kubeconfig import Kubeconfig


def certificate(name: str) -> tuple[bytes, bytes]:
    """A self-signed certificate and its key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return pem, key.private_bytes(encoding, form, serialization.NoEncryption())


def write(folder: Path, cluster: dict[str, Any], user: dict[str, Any]) -> Path:
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "n"}}],
        "clusters": [{"name": "k", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return path


def test_plain_http_with_a_token(tmp_path: Path) -> None:
    endpoint = Kubeconfig(write(tmp_path, {"server": "http://h:1/"}, {"token": "t"})).endpoint()
    assert (endpoint.server, endpoint.ssl, endpoint.token, endpoint.namespace) == ("http://h:1", None, "t", "n")


def test_only_the_given_authority_is_trusted_and_inline_keys_are_loaded(tmp_path: Path) -> None:
    authority, _ = certificate("ca")
    pem, key = certificate("me")
    encoded = {name: base64.b64encode(data).decode() for name, data in (("ca", authority), ("pem", pem), ("key", key))}
    cluster = {"server": "https://h:1", "certificate-authority-data": encoded["ca"]}
    user = {"client-certificate-data": encoded["pem"], "client-key-data": encoded["key"]}
    endpoint = Kubeconfig(write(tmp_path, cluster, user)).endpoint()
    assert endpoint.ssl is not None
    assert [dict(x[0] for x in ca["subject"]) for ca in endpoint.ssl.get_ca_certs()] == [{"commonName": "ca"}]


def test_renewed_files_are_read_again_and_a_half_renewal_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHECK_SECONDS", 0.0)
    pem, key = certificate("me")
    (tmp_path / "pem").write_bytes(pem)
    (tmp_path / "key").write_bytes(key)
    (tmp_path / "token").write_text("one\n")
    user = {"client-certificate": "pem", "client-key": "key", "tokenFile": "token"}
    kubeconfig = Kubeconfig(write(tmp_path, {"server": "https://h:1", "insecure-skip-tls-verify": True}, user))
    before = kubeconfig.endpoint()
    assert before.token == "one"
    assert kubeconfig.endpoint() is before
    pem, key = certificate("me again")
    (tmp_path / "pem").write_bytes(pem)
    assert kubeconfig.endpoint() is before
    (tmp_path / "key").write_bytes(key)
    (tmp_path / "token").write_text("two\n")
    after = kubeconfig.endpoint()
    assert after.token == "two"
    assert after.ssl is not before.ssl


@pytest.mark.parametrize(
    ("cluster", "user", "says"),
    [
        ({"server": "h:1"}, {}, "must start with https://"),
        ({"server": "https://h", "certificate-authority": "absent"}, {}, "cannot read"),
        ({"server": "https://h", "certificate-authority-data": "AAAA"}, {}, "PEM"),
        ({"server": "https://h"}, {"client-certificate-data": "AAAA"}, "needed together"),
        ({"server": "https://h", "certificate-authority-data": "*"}, {}, "not base64"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(
    tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any], says: str
) -> None:
    with pytest.raises(KubeconfigError, match=says):
        Kubeconfig(write(tmp_path, cluster, user))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KubeconfigError, match=os.strerror(2)):
        Kubeconfig(tmp_path / "none")
