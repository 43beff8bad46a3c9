"""What the steps of a request's chain share: who asks, for what, and the answer of the steps that guard it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cryptography import x509


@dataclass(frozen=True, slots=True)
class UserInfo:
    """Who a request comes from (authentication.k8s.io/v1 UserInfo)."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


ANONYMOUS = UserInfo("system:anonymous", groups=("system:unauthenticated",))


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a request wants to do, as authorizers see it (authorization.k8s.io/v1).

    verb: get, list, watch, create, update, patch, delete, deletecollection for resources; the lower-case HTTP method
    for other paths, whose `path` is set and whose resource is empty.
    """

    user: UserInfo
    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""

    @property
    def is_resource(self) -> bool:
        return bool(self.resource)


@dataclass(frozen=True, slots=True)
class Decision:
    """An authorizer's answer; `reason` is for the audit log and the Forbidden message."""

    allowed: bool
    reason: str = ""


class StatusError(Exception):
    """A request's failure as a Kubernetes Status (metav1.Status).

    code: the HTTP status; reason: a metav1.StatusReason (NotFound, AlreadyExists, Conflict, Invalid, Forbidden, …);
    details: {name, group, kind, causes: [{reason, message, field}], retryAfterSeconds}; metadata: a ListMeta ({continue}).
    """

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.metadata = metadata or {}
        self.code, self.reason, self.message, self.details = code, reason, message, details

    def status(self) -> dict[str, Any]:
        """The body of the answer."""
        body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.metadata,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if self.details:
            body["details"] = self.details
        return body


def unauthorized(message: str = "Unauthorized") -> StatusError:
    """Credentials were given and are not valid (or none were, where anonymous requests are off)."""
    return StatusError(401, "Unauthorized", message)


@dataclass(slots=True)
class AdmissionRequest:
    """A write on its way to the store. Plugins may change `object`; `old` is what is stored (update, delete)."""

    user: UserInfo
    operation: str  # CREATE, UPDATE, DELETE, CONNECT
    group: str
    version: str
    resource: str
    subresource: str
    namespace: str
    name: str
    object: dict[str, Any] | None
    old: dict[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    dry_run: bool = False


class Authenticator(Protocol):
    async def authenticate(self, headers: Mapping[str, str], peer_certificate: x509.Certificate | None) -> UserInfo | None:
        """The user, None where this authenticator finds no credentials of its kind; `unauthorized` for bad ones."""

    def review(self, token: str, audiences: Sequence[str] = ...) -> tuple[UserInfo, tuple[str, ...]]:
        """Whose token it is and which of the audiences (left away: the API server) it is for; `unauthorized` for none."""


class Authorizer(Protocol):
    def authorize(self, attributes: Attributes) -> Decision:
        """Whether the user may. Synchronous: it decides from what watches keep in memory."""


class Admission(Protocol):
    async def admit(self, request: AdmissionRequest) -> None:
        """Changes or refuses (StatusError) a write, after authorization and before validation."""


class Reader(Protocol):
    """Read access to stored objects, in process, for authorizers and admission: what the watch cache holds now."""

    def get(self, group: str, resource: str, name: str, namespace: str = "") -> dict[str, Any] | None: ...

    def list(self, group: str, resource: str, namespace: str = "") -> list[dict[str, Any]]: ...
