"""The root CA in each namespace, and certificate requests, against a real API server."""

import base64
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controlplane.controllers.frame import Settings
from strata.kubeclient import times
from strata.kubeclient.client import Client
from strata.kubeclient.resources import CONFIGMAPS, CSRS
from tests.integration.controllers.conftest import eventually


def signing_request(name: str, organization: str, usages: list[str]) -> dict[str, Any]:
    oids = ((x509.NameOID.COMMON_NAME, name), (x509.NameOID.ORGANIZATION_NAME, organization))
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in oids])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    pem = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    spec = {"signerName": "kubernetes.io/kube-apiserver-client", "usages": usages, "request": base64.b64encode(pem).decode()}
    return {"metadata": {"name": name}, "spec": spec}


async def approve(client: Client, name: str) -> None:
    """What `kubectl certificate approve` does."""
    obj = await client.get(CSRS, name)
    condition = {"type": "Approved", "status": "True", "reason": "Test", "message": "by hand", "lastUpdateTime": times.now()}
    await client.update(CSRS, {**obj, "status": {"conditions": [condition]}}, subresource="approval")


async def test_an_approved_request_is_signed_and_one_against_the_rules_fails(client: Client, controllers: Settings) -> None:
    await client.create(CSRS, signing_request("jane", "people", ["digital signature", "client auth"]))
    await client.create(CSRS, signing_request("mallory", "system:masters", ["digital signature", "client auth"]))
    for name in ("jane", "mallory"):
        await approve(client, name)

    async def signed() -> Any:
        return (await client.get(CSRS, "jane"))["status"].get("certificate")

    async def failed() -> Any:
        return [c for c in (await client.get(CSRS, "mallory"))["status"]["conditions"] if c["type"] == "Failed"]

    certificate = x509.load_pem_x509_certificate(base64.b64decode(await eventually(signed, "the certificate")))
    assert controllers.signing_certificate is not None
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(controllers.signing_certificate.read_bytes()))
    assert "system:masters" in (await eventually(failed, "the refusal"))[0]["message"]
    assert "certificate" not in (await client.get(CSRS, "mallory"))["status"]


async def test_each_namespace_has_the_root_ca_again_when_somebody_changes_it(client: Client, controllers: Settings) -> None:
    async def is_right() -> bool:
        assert controllers.root_ca is not None
        found = await client.get(CONFIGMAPS, "kube-root-ca.crt", "default")
        return bool(found["data"] == {"ca.crt": controllers.root_ca.read_text()})

    await eventually(is_right, "the root CA")
    await client.patch(CONFIGMAPS, "kube-root-ca.crt", {"data": {"ca.crt": "another"}}, "default")
    await eventually(is_right, "the root CA again")
    await client.delete(CONFIGMAPS, "kube-root-ca.crt", "default")
    await eventually(is_right, "the root CA once more")
