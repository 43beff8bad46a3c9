"""The node's keys and certificates: asked for by CSR, kept in `ROOT/pki` (0600), renewed before they expire.

`kubelet-client.pem` (certificate and key) is who the node is to the API server: the kubeconfig names it, and the client reads
it again when it changes. `kubelet-server.pem` is what the kubelet's server shows; until it is issued, a self-signed one.
https://kubernetes.io/docs/reference/access-authn-authz/kubelet-tls-bootstrapping/
"""

import asyncio
import base64
import ipaddress
import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from strata.kubeclient import resources
from strata.kubeclient.client import Client
from strata.kubeclient.errors import ApiError
from strata.telemetry import logs

log = logs.get("kubelet.certificates")

CLIENT_SIGNER = "kubernetes.io/kube-apiserver-client-kubelet"
SERVING_SIGNER = "kubernetes.io/kubelet-serving"
WAIT_SECONDS = 600.0
POLL_SECONDS = 0.2


class CertificateError(Exception):
    """A certificate was refused or not issued in time; the text says by whom and what to do."""


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _subject(node: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"system:node:{node}"),
        ]
    )


def _names(node: str, address: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.DNSName(node), x509.IPAddress(ipaddress.ip_address(address))])


async def request(
    client: Client, node: str, key: ec.EllipticCurvePrivateKey, signer: str, *, address: str = "", seconds: float = WAIT_SECONDS
) -> bytes:
    """Asks the cluster for the node's certificate (PEM) and waits until it is issued.

    address: the node's, for a serving certificate. Raises CertificateError where it is refused or the time is up, ApiError.
    """
    builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(node))
    usages = ["digital signature", "client auth"]
    if signer == SERVING_SIGNER:
        builder = builder.add_extension(_names(node, address), critical=False)
        usages = ["digital signature", "server auth"]
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    csr = await client.create(
        resources.CSRS,
        {
            "metadata": {"generateName": "csr-"},
            "spec": {"request": base64.b64encode(pem).decode(), "signerName": signer, "usages": usages},
        },
    )
    name = csr["metadata"]["name"]
    log.info("asked for a certificate", csr=name, signer=signer)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    pause = POLL_SECONDS
    while True:
        status = csr.get("status") or {}
        for condition in status.get("conditions") or []:
            if condition["type"] in ("Denied", "Failed"):
                why = condition.get("message") or condition.get("reason")
                raise CertificateError(f"the certificate request {name} was {condition['type'].lower()}: {why}")
        if status.get("certificate"):
            return base64.b64decode(status["certificate"])
        if loop.time() > deadline:
            raise CertificateError(
                f"the certificate request {name} was not issued within {seconds:g} s: look at `kubectl get csr {name}`, "
                f"and approve it with `kubectl certificate approve {name}`"
            )
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 5.0)
        csr = await client.get(resources.CSRS, name)


def self_signed(node: str, address: str) -> bytes:
    """A serving certificate with its key (PEM) that nobody vouches for, good for a year."""
    key, now = new_key(), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{node}@{int(now.timestamp())}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=365))
        .add_extension(_names(node, address), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + key_pem(key)


def write_private(path: Path, content: bytes) -> None:
    """Puts a file in place whole, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def renewal_seconds(path: Path) -> float:
    """Seconds until a certificate is to be renewed: at seven to nine tenths of its life; 0 where it is due or not there."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return 0.0
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    due = begin + (end - begin) * (0.7 + 0.2 * random.Random(certificate.serial_number).random())
    return max((due - datetime.now(UTC)).total_seconds(), 0.0)


async def keep(path: Path, client: Client, node: str, signer: str, *, address: str = "", changed: Any = None) -> None:
    """Keeps a certificate fresh until it is cancelled. changed: called after each new one."""
    pause = 5.0
    while True:
        wait = renewal_seconds(path)
        if wait > 0:
            await asyncio.sleep(min(wait, 3600.0))
            continue
        try:
            key = new_key()
            pem = await request(client, node, key, signer, address=address)
            write_private(path, pem + key_pem(key))
        except (ApiError, CertificateError) as error:
            log.warning("a certificate was not renewed, again later", signer=signer, error=error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 300.0)
            continue
        pause = 5.0
        log.info("certificate issued", signer=signer)
        if changed:
            changed()
