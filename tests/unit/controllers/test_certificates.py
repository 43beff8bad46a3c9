"""Certificate requests: which are approved unasked, which may be signed at all, and what is signed."""

import base64
import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controlplane.controllers import csrrules
from controlplane.controllers.csrrules import CLIENT, KUBELET_CLIENT, KUBELET_SERVING, Refused, Request
from controlplane.controllers.csrsigning import sign

Object = dict[str, Any]
_CLIENT, _SERVER = ["digital signature", "client auth"], ["digital signature", "server auth"]


def request(
    signer: str,
    username: str,
    groups: list[str],
    usages: list[str],
    *,
    name: str = "system:node:n",
    organization: str = "system:nodes",
    dns: tuple[str, ...] = (),
    addresses: tuple[str, ...] = (),
) -> Object:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names := [*map(x509.DNSName, dns), *(x509.IPAddress(ipaddress.ip_address(a)) for a in addresses)]:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    pem = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    spec = {"signerName": signer, "username": username, "groups": groups, "usages": usages}
    return {"spec": {**spec, "request": base64.b64encode(pem).decode()}}


NODE = {"metadata": {"name": "n"}, "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}}
_BOOTSTRAP, _SELF = ("system:bootstrap:abcdef", ["system:bootstrappers"]), ("system:node:n", ["system:nodes"])


@pytest.mark.parametrize(
    ("made", "node", "expected"),
    [
        (request(KUBELET_CLIENT, *_BOOTSTRAP, _CLIENT), None, True),
        (request(KUBELET_CLIENT, *_SELF, [*_CLIENT, "key encipherment"]), NODE, True),
        (request(KUBELET_CLIENT, "system:node:other", ["system:nodes"], _CLIENT), NODE, False),
        (request(KUBELET_CLIENT, "somebody", ["system:authenticated"], _CLIENT), None, False),
        (request(KUBELET_CLIENT, *_BOOTSTRAP, _CLIENT, organization="system:masters"), None, False),
        (request(KUBELET_CLIENT, *_BOOTSTRAP, _CLIENT, name="admin"), None, False),
        (request(KUBELET_CLIENT, *_BOOTSTRAP, [*_CLIENT, "server auth"]), None, False),
        (request(KUBELET_SERVING, *_SELF, _SERVER, dns=("n",), addresses=("10.0.0.1",)), NODE, True),
        (request(KUBELET_SERVING, *_SELF, _SERVER, addresses=("10.0.0.2",)), NODE, False),
        (request(KUBELET_SERVING, *_SELF, _SERVER, dns=("kubernetes.default",)), NODE, False),
        (request(KUBELET_SERVING, *_SELF, _SERVER, dns=("n",)), None, False),
        (request(KUBELET_SERVING, *_BOOTSTRAP, _SERVER, dns=("n",)), NODE, False),
        (request(CLIENT, *_SELF, _CLIENT), NODE, False),
    ],
)  # fmt: skip
def test_what_is_approved_unasked(made: Object, node: Object | None, expected: bool) -> None:
    assert csrrules.may_approve_unasked(Request.of(made), node) is expected


def test_what_cannot_be_read_is_refused() -> None:
    made = request(CLIENT, *_SELF, _CLIENT)
    with pytest.raises(Refused, match="unable to parse"):
        Request.of({"spec": {**made["spec"], "request": base64.b64encode(b"nothing").decode()}})
    with pytest.raises(Refused, match="system:masters"):
        csrrules.check(Request.of(request(CLIENT, *_SELF, _CLIENT, organization="system:masters")))


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Path, Path]:
    """A CA that ends in ten days: its certificate's file and its key's."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=10))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    encoding = serialization.Encoding.PEM
    certificate_file, key_file = tmp_path / "ca.crt", tmp_path / "ca.key"
    certificate_file.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(encoding))
    form = serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    return certificate_file, key_file


def test_a_signed_certificate_has_what_was_asked_and_no_more(authority: tuple[Path, Path]) -> None:
    made = Request.of(request(KUBELET_SERVING, *_SELF, _SERVER, dns=("n",), addresses=("10.0.0.1",)))
    certificate = x509.load_pem_x509_certificate(sign(made, *authority, timedelta(hours=1)))
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority[0].read_bytes()))
    assert certificate.subject == made.content.subject
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["n"]
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert timedelta(minutes=59) < certificate.not_valid_after_utc - datetime.now(UTC) <= timedelta(hours=1)


def test_no_certificate_outlives_the_authority(authority: tuple[Path, Path]) -> None:
    made = Request.of(request(KUBELET_CLIENT, *_SELF, _CLIENT))
    certificate = x509.load_pem_x509_certificate(sign(made, *authority, timedelta(days=365)))
    assert certificate.not_valid_after_utc - datetime.now(UTC) < timedelta(days=10)
