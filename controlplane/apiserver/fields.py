"""What is wrong with a field of an object, in Kubernetes' words (apimachinery's util/validation/field)."""

import json
from dataclasses import dataclass
from typing import Any

MISSING: Any = object()

_REASONS = {
    "Required value": "FieldValueRequired",
    "Invalid value": "FieldValueInvalid",
    "Unsupported value": "FieldValueNotSupported",
    "Forbidden": "FieldValueForbidden",
    "Duplicate value": "FieldValueDuplicate",
    "Not found": "FieldValueNotFound",
    "Too long": "FieldValueTooLong",
    "Too many": "FieldValueTooMany",
    "Internal error": "InternalError",
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """One problem. type: a key of `_REASONS`; value: what was found, MISSING where the message does not show it."""

    field: str
    type: str
    detail: str = ""
    value: Any = MISSING

    def body(self) -> str:
        shown = self.type if self.value is MISSING else f"{self.type}: {json.dumps(self.value)}"
        return f"{shown}: {self.detail}" if self.detail else shown

    def message(self) -> str:
        return f"{self.field}: {self.body()}"

    def cause(self) -> dict[str, Any]:
        """The StatusCause of this problem."""
        return {"reason": _REASONS[self.type], "message": self.body(), "field": self.field}


def required(field: str, detail: str = "") -> FieldError:
    return FieldError(field, "Required value", detail)


def invalid(field: str, value: Any, detail: str) -> FieldError:
    return FieldError(field, "Invalid value", detail, value)


def unsupported(field: str, value: Any, allowed: tuple[str, ...]) -> FieldError:
    supported = ", ".join(json.dumps(one) for one in sorted(allowed))
    return FieldError(field, "Unsupported value", f"supported values: {supported}", value)


def forbidden(field: str, detail: str) -> FieldError:
    return FieldError(field, "Forbidden", detail)


def duplicate(field: str, value: Any) -> FieldError:
    return FieldError(field, "Duplicate value", "", value)
