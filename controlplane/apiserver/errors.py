"""The failures that Kubernetes' clients know, with its texts (metav1.StatusReason, apimachinery's NewXxx errors)."""

from collections.abc import Sequence
from typing import Any, Protocol

from controlplane.apiserver.request import StatusError, UserInfo
from controlplane.apiserver.resources import Resource


class InvalidField(Protocol):
    """What is wrong with a field (see `fields.FieldError`)."""

    def message(self) -> str: ...

    def cause(self) -> dict[str, Any]: ...


def _details(resource: Resource, name: str) -> dict[str, Any]:
    return details(name, resource.group, resource.plural)


def details(name: str, group: str, kind: str, **more: Any) -> dict[str, Any]:
    """What a Status is about (metav1.StatusDetails); what is empty is left out."""
    found = {"name": name, "group": group, "kind": kind, **more}
    return {key: value for key, value in found.items() if value}


def not_found(resource: Resource, name: str) -> StatusError:
    return StatusError(404, "NotFound", f'{resource.qualified} "{name}" not found', _details(resource, name))


def already_exists(resource: Resource, name: str) -> StatusError:
    return StatusError(409, "AlreadyExists", f'{resource.qualified} "{name}" already exists', _details(resource, name))


def conflict(resource: Resource, name: str, why: str = "") -> StatusError:
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    text = f'Operation cannot be fulfilled on {resource.qualified} "{name}": {why}'
    return StatusError(409, "Conflict", text, _details(resource, name))


def forbidden(user: UserInfo, verb: str, resource: str, group: str, namespace: str, name: str, why: str) -> StatusError:
    subject = f'{resource}.{group} "{name}"' if group else f'{resource} "{name}"'
    if not name:
        subject = f"{resource}.{group}" if group else resource
    scope = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    text = f'{subject} is forbidden: User "{user.name}" cannot {verb} resource "{resource}" in API group "{group}" {scope}'
    return StatusError(403, "Forbidden", f"{text}: {why}" if why else text, details(name, group, resource))


def forbidden_path(user: UserInfo, verb: str, path: str) -> StatusError:
    text = f'forbidden: User "{user.name}" cannot {verb} path "{path}"'
    return StatusError(403, "Forbidden", text, {})


def invalid(kind: str, group: str, name: str, errors: Sequence[InvalidField]) -> StatusError:
    """All that is wrong with an object, in the one message that kubectl prints."""
    texts = [error.message() for error in errors]
    listed = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    qualified = f"{kind}.{group}" if group else kind
    causes = [error.cause() for error in errors]
    return StatusError(422, "Invalid", f'{qualified} "{name}" is invalid: {listed}', details(name, group, kind, causes=causes))


def bad_request(message: str) -> StatusError:
    return StatusError(400, "BadRequest", message)


def undecodable(resource: Resource, why: str) -> StatusError:
    """The body is no object of the resource's kind."""
    return bad_request(f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: {why}')


def expired(message: str = "The resourceVersion for the provided watch is too old.") -> StatusError:
    return StatusError(410, "Expired", message)


def method_not_allowed(resource: Resource | None = None, verb: str = "") -> StatusError:
    text = "the server does not allow this method on the requested resource"
    return StatusError(405, "MethodNotAllowed", f"{text}: {resource.qualified} {verb}" if resource else text)


def no_such_path() -> StatusError:
    return StatusError(404, "NotFound", "the server could not find the requested resource")


def unsupported_media_type(found: str, allowed: Sequence[str]) -> StatusError:
    text = f"the body of the request was in an unknown format - accepted media types include: {', '.join(allowed)}"
    return StatusError(415, "UnsupportedMediaType", f"{text} (it was {found!r})")
