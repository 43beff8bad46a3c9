"""Certificate requests: who may approve and sign for a signer, and which subject nobody gets.

https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#authorization
"""

import base64
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from controlplane.apiserver.admission.refusal import forbidden
from controlplane.apiserver.request import AdmissionRequest, Attributes, Authorizer, UserInfo

GROUP, RESOURCE = "certificates.k8s.io", "certificatesigningrequests"
CLIENT_SIGNER = "kubernetes.io/kube-apiserver-client"


def may_for_signer(authorizer: Authorizer, user: UserInfo, verb: str, signer: str) -> bool:
    """Whether the user may approve or sign for a signer: by its name, or for all of its domain (`example.com/*`)."""
    if "system:masters" in user.groups:
        return True
    names = (signer, f"{signer.partition('/')[0]}/*")
    return any(authorizer.authorize(Attributes(user, verb, GROUP, "v1", "signers", name=name)).allowed for name in names)


def _writes(request: AdmissionRequest, subresource: str) -> bool:
    return (request.operation, request.group, request.resource, request.subresource) == ("UPDATE", GROUP, RESOURCE, subresource)


class CertificateApproval:
    """Only who may `approve` for the signer says that a request is approved or denied."""

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    async def admit(self, request: AdmissionRequest) -> None:
        if not _writes(request, "approval"):
            return
        signer = ((request.old or {}).get("spec") or {}).get("signerName", "")
        if not may_for_signer(self._authorizer, request.user, "approve", signer):
            raise forbidden(request, f'user not permitted to approve requests with signerName "{signer}"')


class CertificateSigning:
    """Only who may `sign` for the signer issues the certificate, or says that it failed."""

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    async def admit(self, request: AdmissionRequest) -> None:
        if not _writes(request, "status"):
            return
        old = request.old or {}
        if _issued(old) == _issued(request.object or {}):
            return
        signer = (old.get("spec") or {}).get("signerName", "")
        if not may_for_signer(self._authorizer, request.user, "sign", signer):
            raise forbidden(request, f'user not permitted to sign requests with signerName "{signer}"')


def _issued(obj: dict[str, Any]) -> tuple[Any, list[Any]]:
    status = obj.get("status") or {}
    return status.get("certificate"), [c for c in status.get("conditions") or () if c.get("type") == "Failed"]


class CertificateSubjectRestriction:
    """No certificate of the group that may everything is made on request."""

    async def admit(self, request: AdmissionRequest) -> None:
        if (request.operation, request.group, request.resource, request.subresource) != ("CREATE", GROUP, RESOURCE, ""):
            return
        spec = (request.object or {}).get("spec") or {}
        if spec.get("signerName") != CLIENT_SIGNER:
            return
        try:
            content = x509.load_pem_x509_csr(base64.b64decode(spec.get("request") or ""))
        except ValueError:
            return  # validation says what is wrong with it
        groups = [str(group.value) for group in content.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
        if "system:masters" in groups:
            raise forbidden(request, f"use of {CLIENT_SIGNER} signer with system:masters group is not allowed")
