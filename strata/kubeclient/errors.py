"""What goes wrong between a client and the API server."""

from typing import Any


class ApiError(Exception):
    """The API server refused, with a Status (apimachinery's meta/v1 Status).

    code: the HTTP status. reason: its word (NotFound, Conflict, …). status: the whole Status object.
    retry_after: the seconds after which the server asks to be called again; None where it did not say.
    """

    def __init__(
        self, code: int, reason: str, message: str, status: dict[str, Any] | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.retry_after = code, reason, message, retry_after
        self.status: dict[str, Any] = status or {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code,
        }  # fmt: skip

    @classmethod
    def from_status(cls, status: dict[str, Any], code: int = 0, retry_after: float | None = None) -> "ApiError":
        """The error that a Status object describes; `code` where the object has none."""
        code = status.get("code") or code
        message = status.get("message") or status.get("reason") or f"the server answered {code}"
        return cls(code, status.get("reason") or "", message, status, retry_after)

    @property
    def is_not_found(self) -> bool:
        return self.code == 404

    @property
    def is_conflict(self) -> bool:
        return self.code == 409 and self.reason != "AlreadyExists"

    @property
    def is_already_exists(self) -> bool:
        return self.code == 409 and self.reason == "AlreadyExists"

    @property
    def is_gone(self) -> bool:
        """The resourceVersion is too old (410): list again."""
        return self.code == 410

    @property
    def is_forbidden(self) -> bool:
        return self.code == 403

    @property
    def is_namespace_terminating(self) -> bool:
        causes = (self.status.get("details") or {}).get("causes") or ()
        return self.code == 403 and any(cause.get("reason") == "NamespaceTerminating" for cause in causes)


class Unreachable(ApiError):
    """No answer came: refused, cut, timed out, or TLS failed. code is 0."""

    def __init__(self, message: str) -> None:
        super().__init__(0, "Unreachable", message)


class KubeconfigError(ValueError):
    """A kubeconfig that cannot be used; the text says which file, what is wrong and what is needed."""
