"""Joining a cluster with nothing but its address, a bootstrap token and the hash of its CA's key.

    1. `kube-public/cluster-info` is read from a server that nobody vouches for yet: it has the CA's certificate, and a
       signature that only one who knows the token can have made.
    2. The signature is checked with the token, the CA with the hash: from here on TLS is verified.
    3. The token lets us ask for a client certificate of the node (a CSR); the cluster's controllers issue it.

This is kubeadm's bootstrap; tokens and ConfigMap are those that kubeadm makes.
https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/
"""

import asyncio
import base64
import hashlib
import hmac
import json
import re
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from kubelet import certificates
from strata.kubeclient import resources
from strata.kubeclient.client import Client
from strata.kubeclient.errors import ApiError
from strata.telemetry import logs

log = logs.get("kubelet.join")

_TOKEN = re.compile(r"([a-z0-9]{6})\.([a-z0-9]{16})")


class JoinError(Exception):
    """The machine did not join; the text says at which step, why, and what to do."""


async def join(server: str, token: str, ca_hash: str, node: str, root: Path) -> None:
    """Makes `root/kubeconfig`, `root/pki` and `root/config.yaml` of a node; does nothing where they are in force already.

    server: https://HOST:PORT. Raises JoinError.
    """
    if has_joined(root):
        log.info("this machine has joined already", root=root)
        return
    server = server if "://" in server else f"https://{server}"
    if urlsplit(server).scheme != "https" or not urlsplit(server).hostname:
        raise JoinError(f"server {server!r}: must be https://HOST:PORT")
    match = _TOKEN.fullmatch(token)
    if not match:
        raise JoinError("the token must have the form abcdef.0123456789abcdef: make one with `controlplane token create`")
    ca = await _trusted_ca(server, match[1], match[2], ca_hash)
    log.info("the cluster's CA is the one that was expected", server=server)
    certificates.write_private(root / "pki/ca.crt", ca)
    trusted = _context(ca)
    client = Client(server, ssl=trusted, token=token, user_agent="kubelet")
    try:
        key = certificates.new_key()
        pem = await certificates.request(client, node, key, certificates.CLIENT_SIGNER)
    except certificates.CertificateError as error:
        raise JoinError(str(error)) from error
    except ApiError as error:
        raise JoinError(
            f"asking for the node's certificate failed: {error.message}. The token may have expired: make a new one with "
            "`controlplane token create`"
        ) from error
    finally:
        await client.close()
    certificates.write_private(root / "pki/kubelet-client.pem", pem + certificates.key_pem(key))
    await _configuration(server, ca, root)
    # The last thing: a root that has it has all.
    certificates.write_private(root / "kubeconfig", kubeconfig(server, ca).encode())
    log.info("joined the cluster", node=node, server=server)


def has_joined(root: Path) -> bool:
    """Whether the node has a kubeconfig, and a certificate that is still valid."""
    if not (root / "kubeconfig").exists():
        return False
    try:
        certificate = x509.load_pem_x509_certificate((root / "pki/kubelet-client.pem").read_bytes())
    except (OSError, ValueError):
        return False
    return certificate.not_valid_after_utc > datetime.now(UTC)


def kubeconfig(server: str, ca: bytes) -> str:
    """The node's kubeconfig; its certificate is named by path, so that a renewed one is used at once."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "default",
        "clusters": [
            {"name": "default", "cluster": {"server": server, "certificate-authority-data": base64.b64encode(ca).decode()}}
        ],
        "users": [
            {"name": "default", "user": {"client-certificate": "pki/kubelet-client.pem", "client-key": "pki/kubelet-client.pem"}}
        ],
        "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
    }
    return str(yaml.safe_dump(document, sort_keys=False))


async def _trusted_ca(server: str, token_id: str, secret: str, ca_hash: str) -> bytes:
    """The CA's certificate (PEM), once the token's signature and the hash both vouch for it."""
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    client = Client(server, ssl=unverified, user_agent="kubelet")
    try:
        info = await client.get(resources.CONFIGMAPS, "cluster-info", "kube-public")
    except ApiError as error:
        raise JoinError(f"reading kube-public/cluster-info from {server} failed: {error.message}") from error
    finally:
        await client.close()
    data: dict[str, Any] = info.get("data") or {}
    text, signature = data.get("kubeconfig", ""), data.get(f"jws-kubeconfig-{token_id}")
    if not signature:
        raise JoinError(
            f"cluster-info has no signature for the token {token_id}: it does not exist or has expired; "
            "make a new one with `controlplane token create`"
        )
    if not verify(text, signature, token_id, secret):
        raise JoinError(
            f"the signature of cluster-info does not fit the token {token_id}: this is another cluster, or the token is wrong"
        )
    try:
        ca = base64.b64decode(yaml.safe_load(text)["clusters"][0]["cluster"]["certificate-authority-data"])
        certificate = x509.load_pem_x509_certificate(ca)
    except (ValueError, KeyError, IndexError, TypeError, yaml.YAMLError) as error:
        raise JoinError("cluster-info has no CA certificate in its kubeconfig") from error
    found = spki_hash(certificate)
    if not hmac.compare_digest(found, ca_hash.lower()):
        raise JoinError(f"the cluster's CA has the hash {found}, expected was {ca_hash}: this is another cluster")
    return ca


def spki_hash(certificate: x509.Certificate) -> str:
    """`sha256:HEX` of a certificate's public key (RFC 7469, subject public key info)."""
    der = certificate.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return f"sha256:{hashlib.sha256(der).hexdigest()}"


def verify(content: str, signature: str, token_id: str, secret: str) -> bool:
    """Whether a detached JWS (RFC 7515, appendix F) by HS256 under the token's secret is that of the content."""
    header, _, rest = signature.partition(".")
    payload, _, mac = rest.partition(".")
    if payload:
        return False
    try:
        fields = json.loads(_unpadded(header))
        given = _unpadded(mac)
    except ValueError:
        return False
    if fields.get("alg") != "HS256" or fields.get("kid") not in (None, token_id):
        return False
    signed = header.encode() + b"." + base64.urlsafe_b64encode(content.encode()).rstrip(b"=")
    return hmac.compare_digest(hmac.digest(secret.encode(), signed, "sha256"), given)


def _unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _context(ca: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca.decode())
    return context


async def _configuration(server: str, ca: bytes, root: Path) -> None:
    """Writes what the cluster says to its kubelets (ConfigMap kube-system/kubelet-config) to `root/config.yaml`."""
    identity = _context(ca)
    identity.load_cert_chain(root / "pki/kubelet-client.pem")
    client = Client(server, ssl=identity, user_agent="kubelet")
    try:
        # A control plane that has just begun may not have it yet.
        for pause in (0.2, 0.5, 1.0, 2.0, 5.0, 0.0):
            try:
                found = await client.get(resources.CONFIGMAPS, "kubelet-config", "kube-system")
                break
            except ApiError as error:
                if not pause:
                    log.warning("the cluster has no configuration for kubelets: defaults hold", error=error.message)
                    return
                await asyncio.sleep(pause)
    finally:
        await client.close()
    if text := (found.get("data") or {}).get("kubelet"):
        certificates.write_private(root / "config.yaml", text.encode())
