"""How a plugin says no."""

from controlplane.apiserver.request import AdmissionRequest, StatusError


def forbidden(request: AdmissionRequest, why: str) -> StatusError:
    """The refusal of a write, with the texts and details of apimachinery's NewForbidden."""
    plural, name = request.resource, request.name
    details = {"name": name, "kind": plural, **({"group": request.group} if request.group else {})}
    qualified = f"{plural}.{request.group}" if request.group else plural
    return StatusError(403, "Forbidden", f'{qualified} "{name}" is forbidden: {why}', details)
