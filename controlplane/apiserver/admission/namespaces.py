"""Namespaces: those that are not there or are going take nothing new."""

from controlplane.apiserver.admission.refusal import forbidden
from controlplane.apiserver.request import AdmissionRequest, Reader, StatusError

IMMORTAL_NAMESPACES = ("default", "kube-system", "kube-public")


class NamespaceLifecycle:
    """Nothing is made in a namespace that is not there or is going; the namespaces that the system needs stay."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def admit(self, request: AdmissionRequest) -> None:
        if request.operation == "DELETE" and (request.group, request.resource) == ("", "namespaces"):
            if request.name in IMMORTAL_NAMESPACES:
                raise forbidden(request, "this namespace may not be deleted")
            return
        if request.operation != "CREATE" or not request.namespace or request.subresource:
            return
        namespace = self._reader.get("", "namespaces", request.namespace)
        if namespace is None:
            name = request.namespace
            raise StatusError(404, "NotFound", f'namespaces "{name}" not found', {"name": name, "kind": "namespaces"})
        if namespace["metadata"].get("deletionTimestamp"):
            error = forbidden(
                request, f"unable to create new content in namespace {request.namespace} because it is being terminated"
            )
            cause = {"reason": "NamespaceTerminating", "field": "metadata.namespace",
                     "message": f"namespace {request.namespace} is being terminated"}  # fmt: skip
            error.details = {**(error.details or {}), "causes": [cause]}
            raise error
