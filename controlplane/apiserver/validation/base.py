"""The validators by kind, what several of them need, and the validation of metadata."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from controlplane.apiserver import fields
from controlplane.apiserver.fields import FieldError
from controlplane.apiserver.resources import Object, Resource
from strata.kubeclient.quantity import parse_quantity

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
CONFIG_KEY = re.compile(r"[-._a-zA-Z0-9]+")
ENV_NAME = re.compile(r"[ -<>-~]+")

SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end "
    "with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an "
    "alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
SERVICE_TEXT = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end "
    "with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
)
QUALIFIED_TEXT = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
LABEL_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end "
    "with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
CONFIG_KEY_TEXT = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or "
    "'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
)
IMMUTABLE = "field is immutable"

Errors = list[FieldError]
GVK = tuple[str, str, str]
_validators: dict[GVK, Callable[[Object, Object | None], Errors]] = {}


def validate_create(gvk: GVK, obj: Object) -> Errors:
    """What is wrong with a new object."""
    validator = _validators.get(gvk)
    return validator(obj, None) if validator else []


def validate_update(gvk: GVK, obj: Object, old: Object) -> Errors:
    """What is wrong with an object that replaces `old`."""
    validator = _validators.get(gvk)
    return validator(obj, old) if validator else []


def validates(group: str, version: str, *kinds: str) -> Callable[[Callable[[Object, Object | None], Errors]], Any]:
    """Registers a validator: it gets the object and, for updates, the old one."""

    def register(function: Callable[[Object, Object | None], Errors]) -> Any:
        for kind in kinds:
            _validators[group, version, kind] = function
        return function

    return register


# --- metadata

_LABEL_NAMED = {"namespaces"}
_SERVICE_NAMED = {"services"}
_FREELY_NAMED = {"roles", "rolebindings", "clusterroles", "clusterrolebindings"}


def validate_metadata(obj: Object, resource: Resource) -> Errors:
    """Names, labels, annotations, finalizers (apimachinery's ValidateObjectMeta)."""
    metadata = obj["metadata"]
    name = metadata.get("name")
    errors: Errors = []
    if not name:
        errors.append(fields.required("metadata.name", "name or generateName is required"))
    elif resource.plural in _FREELY_NAMED:
        if name in (".", "..") or "/" in name or "%" in name:
            errors.append(fields.invalid("metadata.name", name, "may not be '.' or '..' or contain '/' or '%'"))
    elif resource.plural in _LABEL_NAMED:
        errors += dns_label("metadata.name", name)
    elif resource.plural in _SERVICE_NAMED:
        if len(name) > 63 or not _SERVICE_NAME.fullmatch(name):
            errors.append(fields.invalid("metadata.name", name, SERVICE_TEXT))
    else:
        errors += subdomain("metadata.name", name)
    errors += label_set("metadata.labels", metadata.get("labels") or {})
    for key in metadata.get("annotations") or {}:
        errors += qualified_name("metadata.annotations", key.lower())
    for finalizer in metadata.get("finalizers") or ():
        errors += qualified_name("metadata.finalizers", finalizer)
    owners = metadata.get("ownerReferences") or ()
    for index, owner in enumerate(owners):
        errors += required(owner, ("apiVersion", "kind", "name", "uid"), f"metadata.ownerReferences[{index}]")
    controllers = [f"{owner.get('kind', '')}/{owner.get('name', '')}" for owner in owners if owner.get("controller")]
    if len(controllers) > 1:
        text = (
            f'Only one reference can have Controller set to true. Found "true" in references for {" and ".join(controllers[:2])}'
        )
        errors.append(fields.invalid("metadata.ownerReferences", owners, text))
    return errors


def validate_finalizers_update(obj: Object, old: Object) -> Errors:
    """An object that is being deleted gets no new finalizers."""
    before = old["metadata"].get("finalizers") or ()
    new = [f for f in obj["metadata"].get("finalizers") or () if f not in before]
    if not new or not old["metadata"].get("deletionTimestamp"):
        return []
    shown = ", ".join(f'"{finalizer}"' for finalizer in new)
    text = f"no new finalizers can be added if the object is being deleted, found new finalizers []string{{{shown}}}"
    return [fields.forbidden("metadata.finalizers", text)]


def subdomain(where: str, value: str) -> Errors:
    """Complains of what is no RFC 1123 subdomain."""
    if len(value) > 253:
        return [fields.invalid(where, value, "must be no more than 253 characters")]
    return [] if _SUBDOMAIN.fullmatch(value) else [fields.invalid(where, value, SUBDOMAIN_TEXT)]


def dns_label(where: str, value: str) -> Errors:
    """Complains of what is no RFC 1123 label."""
    if len(value) > 63:
        return [fields.invalid(where, value, "must be no more than 63 characters")]
    return [] if _LABEL.fullmatch(value) else [fields.invalid(where, value, LABEL_TEXT)]


def qualified_name(where: str, value: str) -> Errors:
    """Complains of what is no `prefix/name`, as labels and annotations are called."""
    prefix, slash, name = value.rpartition("/")
    if slash and (not prefix or not _SUBDOMAIN.fullmatch(prefix)):
        return [fields.invalid(where, value, f"prefix part {SUBDOMAIN_TEXT}")]
    if not name or len(name) > 63 or not _QUALIFIED.fullmatch(name):
        return [fields.invalid(where, value, QUALIFIED_TEXT if name else f"name part must be non-empty; {QUALIFIED_TEXT}")]
    return []


def validate_delete_options(options: Object) -> Errors:
    """metav1.DeleteOptions."""
    errors: Errors = []
    grace, policy = options.get("gracePeriodSeconds"), options.get("propagationPolicy")
    if grace is not None and (not isinstance(grace, int) or isinstance(grace, bool)):
        errors.append(fields.invalid("gracePeriodSeconds", grace, "must be a whole number"))
    allowed = ("Background", "Foreground", "Orphan")
    if policy is not None and policy not in allowed:
        errors.append(fields.unsupported("propagationPolicy", policy, allowed))
    if policy is not None and options.get("orphanDependents") is not None:
        text = "orphanDependents and deletionPropagation cannot be both set"
        errors.append(fields.invalid("propagationPolicy", policy, text))
    dry_run = options.get("dryRun") or []
    errors += [fields.unsupported("dryRun", one, ("All",)) for one in dry_run if one != "All"]
    if not isinstance(options.get("preconditions", {}), dict | None):
        errors.append(fields.invalid("preconditions", options["preconditions"], "must be an object"))
    return errors


def validate_label(key: str, values: Iterable[str]) -> Errors:
    """The key and the values that a label selector speaks of."""
    return [*qualified_name("key", key), *(error for value in values for error in label_set("values", {"a": value}))]


def label_set(where: str, found: dict[str, str]) -> Errors:
    """Complains of labels that are none."""
    errors: Errors = []
    for key, value in found.items():
        errors += qualified_name(where, key)
        if value and (len(value) > 63 or not _QUALIFIED.fullmatch(value)):
            text = LABEL_VALUE_TEXT if len(value) <= 63 else "must be no more than 63 bytes"
            errors.append(fields.invalid(where, value, text))
    return errors


def required(obj: dict[str, Any], names: Iterable[str], where: str) -> Errors:
    """Complains of the fields that are missing or empty."""
    return [fields.required(_at(where, name)) for name in names if not obj.get(name)]


def one_of(obj: dict[str, Any], name: str, allowed: tuple[str, ...], where: str) -> Errors:
    """Complains of a field whose value is none of the allowed ones."""
    value = obj.get(name)
    return [fields.unsupported(_at(where, name), value, allowed)] if value is not None and value not in allowed else []


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def quantity(value: Any, where: str, *, positive: bool = False) -> Errors:
    """Complains of what is no quantity, or a negative one (positive: or zero)."""
    try:
        parsed = parse_quantity(value)
    except ValueError:
        text = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        return [fields.invalid(where, value, text)]
    if parsed < 0 or (positive and parsed == 0):
        return [fields.invalid(where, str(value), f"must be greater than {'zero' if positive else 'or equal to 0'}")]
    return []


def port_number(value: Any, where: str) -> Errors:
    """Complains of a number that no port has."""
    if isinstance(value, int) and not 0 < value < 65536:
        return [fields.invalid(where, value, "must be between 1 and 65535, inclusive")]
    return []
