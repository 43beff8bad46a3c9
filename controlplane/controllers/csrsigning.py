"""Signs approved certificate requests with the cluster's CA."""

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane.controllers import csrrules
from controlplane.controllers.csrapproving import verdict
from controlplane.controllers.frame import Context, Controller
from strata.kubeclient import times
from strata.kubeclient.resources import CSRS

if TYPE_CHECKING:
    from cryptography import x509

Object = dict[str, Any]
_LIFETIME = timedelta(days=365)
_SHORTEST = timedelta(minutes=10)
_CLOCKS_APART = timedelta(minutes=5)
"""A certificate is valid from a little before now, for clocks that are behind."""


class CsrSigningController(Controller[str]):
    """Works only where the settings name the CA's certificate and key."""

    name = "csrsigning"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.requests = self.informer(CSRS)
        if self.settings.signing_certificate and self.settings.signing_key:
            self.on_change(self.requests, lambda obj: self.queue.add(obj["metadata"]["name"]), deletions=False)

    async def sync(self, key: str) -> None:
        obj = self.requests.get(key)
        if obj is None or verdict(obj) != "Approved" or (obj.get("status") or {}).get("certificate"):
            return
        if obj["spec"]["signerName"] not in csrrules.SIGNERS:
            return
        if self.settings.signing_certificate is None or self.settings.signing_key is None:
            return
        status = dict(obj.get("status") or {})
        try:
            request = csrrules.Request.of(obj)
            csrrules.check(request)
        except csrrules.Refused as why:
            condition = {
                "type": "Failed",
                "status": "True",
                "reason": "SignerValidationFailure",
                "message": str(why),
                "lastUpdateTime": times.now(),
                "lastTransitionTime": times.now(),
            }
            status["conditions"] = [*(status.get("conditions") or ()), condition]
        else:
            seconds = obj["spec"].get("expirationSeconds")
            lifetime = timedelta(seconds=seconds) if seconds else _LIFETIME
            pem = sign(request, self.settings.signing_certificate, self.settings.signing_key, lifetime)
            status["certificate"] = base64.b64encode(pem).decode()
            self.log.info("signed", request=key, signer=request.signer, subject=request.common_name)
        await self.client.update(CSRS, {**obj, "status": status}, subresource="status")


def sign(request: csrrules.Request, certificate_file: Path, key_file: Path, lifetime: timedelta) -> bytes:
    """The certificate for a checked request, in PEM: of the request's subject, names and usages, never a CA's.

    It is valid for the lifetime (10 minutes at least), but not longer than the CA. Raises OSError or ValueError where the CA's
    files cannot be read.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ed448, ed25519

    authority = x509.load_pem_x509_certificate(certificate_file.read_bytes())
    key: Any = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(request.content.subject)
        .issuer_name(authority.subject)
        .public_key(request.content.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - _CLOCKS_APART, authority.not_valid_before_utc))
        .not_valid_after(min(now + max(lifetime, _SHORTEST), authority.not_valid_after_utc))
        .add_extension(_key_usage(request), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    if purposes := _purposes(request):
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if request.dns_names or request.addresses:
        names = request.content.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        builder = builder.add_extension(names.value, critical=names.critical)
    is_edwards = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    signed = builder.sign(key, None if is_edwards else hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def _key_usage(request: csrrules.Request) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature="digital signature" in request.usages,
        key_encipherment="key encipherment" in request.usages,
        content_commitment=False, data_encipherment=False, key_agreement=False, key_cert_sign=False, crl_sign=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _purposes(request: csrrules.Request) -> "list[x509.ObjectIdentifier]":
    from cryptography.x509.oid import ExtendedKeyUsageOID

    known = {"client auth": ExtendedKeyUsageOID.CLIENT_AUTH, "server auth": ExtendedKeyUsageOID.SERVER_AUTH}
    return [known[usage] for usage in sorted(request.usages) if usage in known]
