"""What a certificate request must look like for each signer that we sign for.

https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#kubernetes-signers
"""

import base64
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography import x509

Object = dict[str, Any]
CLIENT = "kubernetes.io/kube-apiserver-client"
KUBELET_CLIENT = "kubernetes.io/kube-apiserver-client-kubelet"
KUBELET_SERVING = "kubernetes.io/kubelet-serving"
SIGNERS = (CLIENT, KUBELET_CLIENT, KUBELET_SERVING)
NODES_GROUP, BOOTSTRAPPERS_GROUP = "system:nodes", "system:bootstrappers"
_NODE_PREFIX = "system:node:"
_CLIENT_USAGES = {"client auth", "digital signature"}
_SERVER_USAGES = {"server auth", "digital signature"}
_KEY_ENCIPHERMENT = "key encipherment"


class Refused(Exception):
    """The request is not what its signer takes; the text says why."""


@dataclass(frozen=True)
class Request:
    """A CertificateSigningRequest with its PKCS #10 content read."""

    signer: str
    username: str
    groups: tuple[str, ...]
    usages: frozenset[str]
    content: "x509.CertificateSigningRequest"
    common_name: str
    organizations: tuple[str, ...]
    dns_names: tuple[str, ...]
    addresses: tuple[str, ...]
    other_names: int

    @classmethod
    def of(cls, obj: Object) -> "Request":
        """Raises Refused for content that cannot be read or is not signed by its own key."""
        from cryptography import x509
        from cryptography.x509.oid import NameOID

        spec = obj["spec"]
        try:
            content = x509.load_pem_x509_csr(base64.b64decode(spec["request"]))
        except ValueError as error:
            raise Refused(f"unable to parse csr: {error}") from None
        if not content.is_signature_valid:
            raise Refused("the request is not signed by the key that it is for")
        names = [str(a.value) for a in content.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        organizations = tuple(str(a.value) for a in content.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME))
        try:
            alternative: Iterable[x509.GeneralName] = content.extensions.get_extension_for_class(
                x509.SubjectAlternativeName
            ).value
        except x509.ExtensionNotFound:
            alternative = ()
        listed = list(alternative)
        dns = tuple(n.value for n in listed if isinstance(n, x509.DNSName))
        addresses = tuple(str(n.value) for n in listed if isinstance(n, x509.IPAddress))
        usages = frozenset(spec.get("usages") or ())
        return cls(
            spec["signerName"], spec.get("username") or "", tuple(spec.get("groups") or ()), usages, content,
            names[0] if names else "", organizations, dns, addresses, len(listed) - len(dns) - len(addresses),
        )  # fmt: skip

    @property
    def node(self) -> str:
        """The node that the certificate is to name; "" for none."""
        return self.common_name.removeprefix(_NODE_PREFIX) if self.common_name.startswith(_NODE_PREFIX) else ""


def check(request: Request) -> None:
    """Whether the signer may sign this at all. Raises Refused."""
    if request.signer == KUBELET_CLIENT:
        _is_of_a_node(request)
        if request.dns_names or request.addresses or request.other_names:
            raise Refused("a kubelet's client certificate must have no subject alternative names")
        _has_usages(request, _CLIENT_USAGES)
    elif request.signer == KUBELET_SERVING:
        _is_of_a_node(request)
        if not request.dns_names and not request.addresses:
            raise Refused("a kubelet's serving certificate needs a DNS name or an IP address")
        if request.other_names:
            raise Refused("a kubelet's serving certificate may name only DNS names and IP addresses")
        _has_usages(request, _SERVER_USAGES)
    elif request.signer == CLIENT:
        if "system:masters" in request.organizations:
            raise Refused("a certificate of group system:masters is not signed on request")
        allowed = _CLIENT_USAGES | {_KEY_ENCIPHERMENT}
        if not request.usages <= allowed or "client auth" not in request.usages:
            raise Refused(f"usages must be client auth, and at most {sorted(allowed)}")


def may_approve_unasked(request: Request, node: Object | None) -> bool:
    """Whether the request is one that needs nobody's approval.

    A node's client certificate: for a node that joins with a bootstrap token, and for a node that renews its own. Its serving
    certificate: for the node itself, and for names and addresses that are in its status. node: that which the request names.
    """
    try:
        check(request)
    except Refused:
        return False
    is_the_node = request.username == request.common_name and NODES_GROUP in request.groups
    if request.signer == KUBELET_CLIENT:
        return is_the_node or BOOTSTRAPPERS_GROUP in request.groups
    if request.signer == KUBELET_SERVING and is_the_node and node is not None:
        listed = [a["address"] for a in (node.get("status") or {}).get("addresses") or ()]
        known = {*map(_canonical, listed), node["metadata"]["name"]}
        return all(_canonical(name) in known for name in (*request.dns_names, *request.addresses))
    return False


def _is_of_a_node(request: Request) -> None:
    if request.organizations != (NODES_GROUP,):
        raise Refused(f"the subject's organization must be {NODES_GROUP} alone, not {list(request.organizations)}")
    if not request.node:
        raise Refused(f"the subject's common name must be {_NODE_PREFIX}NODE, not {request.common_name!r}")


def _has_usages(request: Request, needed: set[str]) -> None:
    if request.usages - {_KEY_ENCIPHERMENT} != needed:
        raise Refused(f"usages must be {sorted(needed)} (and {_KEY_ENCIPHERMENT} for RSA keys), not {sorted(request.usages)}")


def _canonical(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()
