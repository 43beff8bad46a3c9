"""Admission plugins: what a write must fulfil, or is given, beyond its schema. Each is a class of one concern.

https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/
"""

from controlplane.apiserver.admission.certificates import CertificateApproval, CertificateSigning, CertificateSubjectRestriction
from controlplane.apiserver.admission.namespaces import NamespaceLifecycle
from controlplane.apiserver.admission.nodes import NodeRestriction, TaintNewNodes
from controlplane.apiserver.admission.pods import DefaultTolerationSeconds, Priority, ServiceAccount
from controlplane.apiserver.admission.roles import Escalation
from controlplane.apiserver.auth.rbac import Rbac
from controlplane.apiserver.request import Admission, Authorizer, Reader


def plugins(reader: Reader, authorizer: Authorizer, rbac: Rbac) -> list[Admission]:
    """All plugins, in the order in which they run."""
    return [
        NamespaceLifecycle(reader),
        NodeRestriction(reader),
        ServiceAccount(reader),
        Priority(reader),
        DefaultTolerationSeconds(),
        TaintNewNodes(),
        CertificateApproval(authorizer),
        CertificateSigning(authorizer),
        CertificateSubjectRestriction(),
        Escalation(authorizer, rbac, reader),
    ]
