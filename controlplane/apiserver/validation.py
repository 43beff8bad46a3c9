"""Whether an object makes sense: what its schema cannot say, with the texts of Kubernetes' own validation."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from controlplane.apiserver import fields
from controlplane.apiserver.fields import FieldError
from controlplane.apiserver.resources import Object, Resource
from strata.kubeclient.quantity import parse_quantity
from strata.kubeclient.selectors import parse_label_selector

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_CONFIG_KEY = re.compile(r"[-._a-zA-Z0-9]+")
_ENV_NAME = re.compile(r"[ -<>-~]+")

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


def _for(group: str, version: str, *kinds: str) -> Callable[[Callable[[Object, Object | None], Errors]], Any]:
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
        errors += _dns_label("metadata.name", name)
    elif resource.plural in _SERVICE_NAMED:
        if len(name) > 63 or not _SERVICE_NAME.fullmatch(name):
            errors.append(fields.invalid("metadata.name", name, SERVICE_TEXT))
    else:
        errors += _subdomain("metadata.name", name)
    errors += _labels("metadata.labels", metadata.get("labels") or {})
    for key in metadata.get("annotations") or {}:
        errors += _qualified_name("metadata.annotations", key.lower())
    for finalizer in metadata.get("finalizers") or ():
        errors += _qualified_name("metadata.finalizers", finalizer)
    owners = metadata.get("ownerReferences") or ()
    for index, owner in enumerate(owners):
        errors += _required(owner, ("apiVersion", "kind", "name", "uid"), f"metadata.ownerReferences[{index}]")
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


def _subdomain(where: str, value: str) -> Errors:
    if len(value) > 253:
        return [fields.invalid(where, value, "must be no more than 253 characters")]
    return [] if _SUBDOMAIN.fullmatch(value) else [fields.invalid(where, value, SUBDOMAIN_TEXT)]


def _dns_label(where: str, value: str) -> Errors:
    if len(value) > 63:
        return [fields.invalid(where, value, "must be no more than 63 characters")]
    return [] if _LABEL.fullmatch(value) else [fields.invalid(where, value, LABEL_TEXT)]


def _qualified_name(where: str, value: str) -> Errors:
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
    return [*_qualified_name("key", key), *(error for value in values for error in _labels("values", {"a": value}))]


def _labels(where: str, labels: dict[str, str]) -> Errors:
    errors: Errors = []
    for key, value in labels.items():
        errors += _qualified_name(where, key)
        if value and (len(value) > 63 or not _QUALIFIED.fullmatch(value)):
            text = LABEL_VALUE_TEXT if len(value) <= 63 else "must be no more than 63 bytes"
            errors.append(fields.invalid(where, value, text))
    return errors


def _required(obj: dict[str, Any], names: Iterable[str], where: str) -> Errors:
    return [fields.required(f"{where}.{name}") for name in names if not obj.get(name)]


def _one_of(obj: dict[str, Any], name: str, allowed: tuple[str, ...], where: str) -> Errors:
    value = obj.get(name)
    return [fields.unsupported(f"{where}.{name}", value, allowed)] if value is not None and value not in allowed else []


def _port(value: Any, where: str) -> Errors:
    if isinstance(value, int) and not 0 < value < 65536:
        return [fields.invalid(where, value, "must be between 1 and 65535, inclusive")]
    return []


# --- pods


@_for("", "v1", "Pod")
def _pod(obj: Object, old: Object | None) -> Errors:
    if old is not None:
        return _pod_update(obj, old)
    return _pod_spec(obj.get("spec") or {}, "spec")


_CONTAINER_KINDS = ("initContainers", "containers", "ephemeralContainers")


def _pod_spec(spec: dict[str, Any], where: str) -> Errors:
    errors: Errors = []
    volumes = _volumes(spec.get("volumes") or [], f"{where}.volumes", errors)
    if not spec.get("containers"):
        errors.append(fields.required(f"{where}.containers"))
    names: set[str] = set()
    for kind in _CONTAINER_KINDS:
        for index, container in enumerate(spec.get(kind) or ()):
            at = f"{where}.{kind}[{index}]"
            errors += _container(container, at, volumes, init=kind == "initContainers")
            if container.get("name") in names:
                errors.append(fields.duplicate(f"{at}.name", container["name"]))
            names.add(container.get("name", ""))
    errors += _host_ports(spec, where)
    errors += _one_of(spec, "restartPolicy", ("Always", "OnFailure", "Never"), where)
    errors += _one_of(spec, "dnsPolicy", ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"), where)
    if spec.get("dnsPolicy") == "None" and not (spec.get("dnsConfig") or {}).get("nameservers"):
        text = "must provide at least one DNS nameserver when `dnsPolicy` is None"
        errors.append(fields.required(f"{where}.dnsConfig.nameservers", text))
    for name in ("hostname", "subdomain"):
        if spec.get(name):
            errors += _dns_label(f"{where}.{name}", spec[name])
    if spec.get("nodeName"):
        errors += _subdomain(f"{where}.nodeName", spec["nodeName"])
    errors += _labels(f"{where}.nodeSelector", spec.get("nodeSelector") or {})
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and deadline < 1:
        text = "must be between 1 and 2147483647, inclusive"
        errors.append(fields.invalid(f"{where}.activeDeadlineSeconds", deadline, text))
    if (spec.get("terminationGracePeriodSeconds") or 0) < 0:
        text = "must be greater than or equal to 0"
        errors.append(fields.invalid(f"{where}.terminationGracePeriodSeconds", spec["terminationGracePeriodSeconds"], text))
    for index, toleration in enumerate(spec.get("tolerations") or ()):
        at = f"{where}.tolerations[{index}]"
        errors += _one_of(toleration, "operator", ("Equal", "Exists"), at)
        errors += _one_of(toleration, "effect", ("", "NoSchedule", "PreferNoSchedule", "NoExecute"), at)
        if toleration.get("operator") == "Exists" and toleration.get("value"):
            errors.append(fields.invalid(f"{at}.operator", toleration, "value must be empty when `operator` is 'Exists'"))
    return errors


def _volumes(volumes: list[dict[str, Any]], where: str, errors: Errors) -> set[str]:
    """Checks the volumes; returns their names."""
    names: set[str] = set()
    for index, volume in enumerate(volumes):
        at, name = f"{where}[{index}]", volume.get("name")
        if not name:
            errors.append(fields.required(f"{at}.name"))
        else:
            errors += _dns_label(f"{at}.name", name)
            if name in names:
                errors.append(fields.duplicate(f"{at}.name", name))
            names.add(name)
        sources = [key for key in volume if key != "name"]
        if len(sources) > 1:
            errors.append(fields.forbidden(f"{at}.{sources[1]}", "may not specify more than 1 volume type"))
        if "hostPath" in volume and not volume["hostPath"].get("path"):
            errors.append(fields.required(f"{at}.hostPath.path"))
        if "secret" in volume and not volume["secret"].get("secretName"):
            errors.append(fields.required(f"{at}.secret.secretName"))
        if "configMap" in volume and not volume["configMap"].get("name"):
            errors.append(fields.required(f"{at}.configMap.name"))
    return names


def _container(container: dict[str, Any], where: str, volumes: set[str], *, init: bool) -> Errors:
    errors: Errors = []
    if not container.get("name"):
        errors.append(fields.required(f"{where}.name"))
    else:
        errors += _dns_label(f"{where}.name", container["name"])
    image = container.get("image")
    if not image:
        errors.append(fields.required(f"{where}.image"))
    elif image != image.strip():
        errors.append(fields.invalid(f"{where}.image", image, "must not have leading or trailing whitespace"))
    errors += _one_of(container, "imagePullPolicy", ("Always", "IfNotPresent", "Never"), where)
    errors += _one_of(container, "terminationMessagePolicy", ("File", "FallbackToLogsOnError"), where)
    names: set[str] = set()
    for index, port in enumerate(container.get("ports") or ()):
        at = f"{where}.ports[{index}]"
        errors += _port(port.get("containerPort"), f"{at}.containerPort")
        errors += _port(port.get("hostPort") or None, f"{at}.hostPort")
        errors += _one_of(port, "protocol", ("TCP", "UDP", "SCTP"), at)
        name = port.get("name")
        if name:
            if len(name) > 15 or not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) or not re.search("[a-z]", name):
                errors.append(fields.invalid(f"{at}.name", name, "must be a valid port name (IANA_SVC_NAME)"))
            if name in names:
                errors.append(fields.duplicate(f"{at}.name", name))
            names.add(name)
    for index, variable in enumerate(container.get("env") or ()):
        at, name = f"{where}.env[{index}]", variable.get("name")
        if not name:
            errors.append(fields.required(f"{at}.name"))
        elif not _ENV_NAME.fullmatch(name):
            text = "a valid environment variable name must consist only of printable ASCII characters other than '='"
            errors.append(fields.invalid(f"{at}.name", name, text))
        source = variable.get("valueFrom")
        if source is not None and variable.get("value"):
            errors.append(fields.invalid(f"{at}.valueFrom", "", "may not be specified when `value` is not empty"))
        elif source is not None and len(source) != 1:
            text = "may not have more than one field specified at a time" if source else (
                "must specify one of: `configMapKeyRef`, `fieldRef`, `resourceFieldRef`, `secretKeyRef`"
            )  # fmt: skip
            errors.append(fields.invalid(f"{at}.valueFrom", "", text))
    mounted: set[str] = set()
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        at = f"{where}.volumeMounts[{index}]"
        if mount.get("name") not in volumes:
            errors.append(FieldError(f"{at}.name", "Not found", "", mount.get("name", "")))
        path = mount.get("mountPath")
        if not path:
            errors.append(fields.required(f"{at}.mountPath"))
        elif path in mounted:
            errors.append(fields.invalid(f"{at}.mountPath", path, "must be unique"))
        mounted.add(path or "")
        sub_path = mount.get("subPath") or ""
        if sub_path.startswith("/"):
            errors.append(fields.invalid(f"{at}.subPath", sub_path, "must be a relative path"))
        elif ".." in sub_path.split("/"):
            errors.append(fields.invalid(f"{at}.subPath", sub_path, "must not contain '..'"))
    errors += _resources(container.get("resources") or {}, f"{where}.resources")
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe = container.get(name)
        if probe is not None:
            errors += _probe(probe, f"{where}.{name}", name)
            if init and container.get("restartPolicy") != "Always":
                errors.append(
                    fields.forbidden(f"{where}.{name}", "may not be set for init containers without restartPolicy=Always")
                )
    return errors


_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc")


def _probe(probe: dict[str, Any], where: str, kind: str) -> Errors:
    handlers = [name for name in _HANDLERS if name in probe]
    errors: Errors = []
    if not handlers:
        errors.append(fields.required(where, "must specify a handler type"))
    elif len(handlers) > 1:
        errors.append(fields.forbidden(f"{where}.{handlers[1]}", "may not specify more than 1 handler type"))
    if "exec" in probe and not (probe["exec"] or {}).get("command"):
        errors.append(fields.required(f"{where}.exec.command"))
    for name in ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"):
        if (probe.get(name) or 0) < 0:
            errors.append(fields.invalid(f"{where}.{name}", probe[name], "must be greater than or equal to 0"))
    if kind != "readinessProbe" and probe.get("successThreshold", 1) not in (0, 1):
        errors.append(fields.invalid(f"{where}.successThreshold", probe["successThreshold"], "must be 1"))
    for handler in handlers:
        if handler != "exec":
            errors += _port((probe[handler] or {}).get("port"), f"{where}.{handler}.port")
    return errors


def _resources(resources: dict[str, Any], where: str) -> Errors:
    errors: Errors = []
    parsed: dict[tuple[str, str], Any] = {}
    for kind in ("limits", "requests"):
        for name, quantity in (resources.get(kind) or {}).items():
            at = f"{where}.{kind}[{name}]"
            try:
                parsed[kind, name] = parse_quantity(quantity)
            except ValueError:
                text = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
                errors.append(fields.invalid(at, quantity, text))
                continue
            if parsed[kind, name] < 0:
                errors.append(fields.invalid(at, str(quantity), "must be greater than or equal to 0"))
    for (kind, name), value in parsed.items():
        limit = parsed.get(("limits", name))
        if kind == "requests" and limit is not None and value > limit:
            shown = resources["requests"][name]
            text = f"must be less than or equal to {name} limit of {resources['limits'][name]}"
            errors.append(fields.invalid(f"{where}.requests", shown, text))
    return errors


def _host_ports(spec: dict[str, Any], where: str) -> Errors:
    errors: Errors = []
    seen: set[tuple[Any, ...]] = set()
    for index, container in enumerate(spec.get("containers") or ()):
        for number, port in enumerate(container.get("ports") or ()):
            at = f"{where}.containers[{index}].ports[{number}]"
            host = port.get("hostPort")
            if not host:
                continue
            if spec.get("hostNetwork") and host != port.get("containerPort"):
                errors.append(fields.invalid(f"{at}.hostPort", host, "must match `containerPort` when `hostNetwork` is true"))
            key = (port.get("protocol"), port.get("hostIP"), host)
            if key in seen:
                errors.append(fields.duplicate(f"{at}.hostPort", f"{port.get('protocol')}//{host}"))
            seen.add(key)
    return errors


_POD_UPDATE_TEXT = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


def _pod_update(obj: Object, old: Object) -> Errors:
    new_spec, old_spec = obj.get("spec") or {}, old.get("spec") or {}
    if new_spec == old_spec:
        return []
    if _fixed_part(new_spec) != _fixed_part(old_spec):
        return [fields.forbidden("spec", _POD_UPDATE_TEXT)]
    tolerations = new_spec.get("tolerations") or []
    if any(toleration not in tolerations for toleration in old_spec.get("tolerations") or ()):
        return [fields.forbidden("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds")]
    return _pod_spec(new_spec, "spec")


def _fixed_part(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec without what may change while the pod lives; ephemeral containers and resources have their own subresources."""
    fixed = {k: v for k, v in spec.items() if k not in ("activeDeadlineSeconds", "tolerations")}
    for kind in ("containers", "initContainers"):
        if kind in fixed:
            fixed[kind] = [{k: v for k, v in c.items() if k != "image"} for c in fixed[kind]]
    return fixed


# --- workloads


def _selects_its_template(obj: Object) -> Errors:
    spec = obj.get("spec") or {}
    errors: Errors = []
    if not spec.get("selector"):
        return [fields.required("spec.selector")]
    template = spec.get("template") or {}
    labels = (template.get("metadata") or {}).get("labels") or {}
    try:
        selector = parse_label_selector(spec["selector"])
    except ValueError as error:
        return [fields.invalid("spec.selector", spec["selector"], str(error))]
    if not selector.matches(labels):
        errors.append(fields.invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`"))
    return errors + _labels("spec.template.metadata.labels", labels)


@_for("apps", "v1", "Deployment", "ReplicaSet", "StatefulSet", "DaemonSet")
def _workload(obj: Object, old: Object | None) -> Errors:
    spec = obj.get("spec") or {}
    errors = _selects_its_template(obj)
    template = (spec.get("template") or {}).get("spec") or {}
    errors += _pod_spec(template, "spec.template.spec")
    if template.get("restartPolicy", "Always") != "Always":
        errors.append(fields.unsupported("spec.template.spec.restartPolicy", template["restartPolicy"], ("Always",)))
    if (spec.get("replicas") or 0) < 0:
        errors.append(fields.invalid("spec.replicas", spec["replicas"], "must be greater than or equal to 0"))
    if old is not None and old["spec"].get("selector") != spec.get("selector"):
        errors.append(fields.invalid("spec.selector", spec.get("selector"), IMMUTABLE))
    rolling = (spec.get("strategy") or {}).get("rollingUpdate") or {}
    if (
        obj["kind"] == "Deployment"
        and rolling
        and all(str(rolling.get(k)) in ("0", "0%") for k in ("maxSurge", "maxUnavailable"))
    ):
        text = "may not be 0 when `maxSurge` is 0"
        errors.append(fields.invalid("spec.strategy.rollingUpdate.maxUnavailable", rolling["maxUnavailable"], text))
    return errors


@_for("batch", "v1", "Job")
def _job(obj: Object, old: Object | None) -> Errors:
    spec = obj.get("spec") or {}
    template = (spec.get("template") or {}).get("spec") or {}
    errors = _pod_spec(template, "spec.template.spec")
    if template.get("restartPolicy") not in ("OnFailure", "Never"):
        allowed = ("OnFailure", "Never")
        errors.append(FieldError("spec.template.spec.restartPolicy", "Required value", f"valid values: {', '.join(allowed)}"))
    if old is not None:
        for name in ("selector", "template", "completionMode"):
            if old["spec"].get(name) != spec.get(name) and not old["spec"].get("suspend"):
                errors.append(fields.invalid(f"spec.{name}", spec.get(name), IMMUTABLE))
    return errors


@_for("batch", "v1", "CronJob")
def _cron_job(obj: Object, old: Object | None) -> Errors:
    spec = obj.get("spec") or {}
    errors: Errors = []
    if not spec.get("schedule"):
        errors.append(fields.required("spec.schedule"))
    errors += _one_of(spec, "concurrencyPolicy", ("Allow", "Forbid", "Replace"), "spec")
    job = (spec.get("jobTemplate") or {}).get("spec") or {}
    return errors + _pod_spec((job.get("template") or {}).get("spec") or {}, "spec.jobTemplate.spec.template.spec")


# --- the rest


@_for("", "v1", "Service")
def _service(obj: Object, old: Object | None) -> Errors:
    spec = obj.get("spec") or {}
    errors = _one_of(spec, "type", ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort"), "spec")
    errors += _one_of(spec, "sessionAffinity", ("ClientIP", "None"), "spec")
    ports = spec.get("ports") or []
    if spec.get("type") == "ExternalName":
        if not spec.get("externalName"):
            errors.append(fields.required("spec.externalName"))
    elif not ports and spec.get("clusterIP") != "None":
        errors.append(fields.required("spec.ports"))
    names: set[str] = set()
    seen: set[tuple[Any, Any]] = set()
    for index, port in enumerate(ports):
        at, name = f"spec.ports[{index}]", port.get("name")
        errors += _port(port.get("port"), f"{at}.port")
        errors += _port(port.get("targetPort"), f"{at}.targetPort")
        errors += _one_of(port, "protocol", ("SCTP", "TCP", "UDP"), at)
        if not name and len(ports) > 1:
            errors.append(fields.required(f"{at}.name"))
        elif name:
            errors += _dns_label(f"{at}.name", name)
            if name in names:
                errors.append(fields.duplicate(f"{at}.name", name))
            names.add(name)
        if (port.get("port"), port.get("protocol")) in seen:
            errors.append(fields.duplicate(at, {"port": port.get("port"), "protocol": port.get("protocol")}))
        seen.add((port.get("port"), port.get("protocol")))
    return errors + _labels("spec.selector", spec.get("selector") or {})


@_for("", "v1", "ConfigMap", "Secret")
def _config(obj: Object, old: Object | None) -> Errors:
    errors: Errors = []
    size = 0
    for name in ("data", "binaryData"):
        for key, value in (obj.get(name) or {}).items():
            size += len(value)
            if not _CONFIG_KEY.fullmatch(key) or key in (".", ".."):
                errors.append(fields.invalid(f"{name}[{key}]", key, CONFIG_KEY_TEXT))
    if size > 1024 * 1024 * (1 if obj["kind"] == "ConfigMap" else 2):
        errors.append(FieldError("" if obj["kind"] == "ConfigMap" else "data", "Too long", "may not be more than 1048576 bytes"))
    return errors


@_for("rbac.authorization.k8s.io", "v1", "RoleBinding", "ClusterRoleBinding")
def _binding(obj: Object, old: Object | None) -> Errors:
    errors = _required(obj.get("roleRef") or {}, ("kind", "name"), "roleRef")
    if old is not None and old.get("roleRef") != obj.get("roleRef"):
        errors.append(fields.invalid("roleRef", obj.get("roleRef"), "cannot change roleRef"))
    for index, subject in enumerate(obj.get("subjects") or ()):
        at = f"subjects[{index}]"
        errors += _required(subject, ("kind", "name"), at) + _one_of(subject, "kind", ("Group", "ServiceAccount", "User"), at)
    return errors


@_for("rbac.authorization.k8s.io", "v1", "Role", "ClusterRole")
def _role(obj: Object, old: Object | None) -> Errors:
    errors: Errors = []
    for index, rule in enumerate(obj.get("rules") or ()):
        if not rule.get("verbs"):
            errors.append(fields.required(f"rules[{index}].verbs", "verbs must contain at least one value"))
        if not rule.get("resources") and not rule.get("nonResourceURLs"):
            errors.append(fields.required(f"rules[{index}].resources", "resource rules must supply at least one resource"))
    return errors


@_for("certificates.k8s.io", "v1", "CertificateSigningRequest")
def _csr(obj: Object, old: Object | None) -> Errors:
    return _required(obj.get("spec") or {}, ("request", "signerName", "usages"), "spec") if old is None else []
