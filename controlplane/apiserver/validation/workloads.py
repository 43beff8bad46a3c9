"""Validation of pods, and of what makes them (core/v1, apps/v1, batch/v1)."""

import re
from typing import Any

from controlplane.apiserver import fields
from controlplane.apiserver.fields import FieldError
from controlplane.apiserver.resources import Object
from controlplane.apiserver.validation.base import (
    ENV_NAME,
    IMMUTABLE,
    Errors,
    dns_label,
    label_set,
    one_of,
    port_number,
    quantity,
    subdomain,
    validates,
)
from controlplane.apiserver.validation.cron import cron_schedule
from strata.kubeclient.quantity import parse_quantity
from strata.kubeclient.selectors import parse_label_selector

# --- pods


@validates("", "v1", "Pod")
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
    errors += one_of(spec, "restartPolicy", ("Always", "OnFailure", "Never"), where)
    errors += one_of(spec, "dnsPolicy", ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"), where)
    if spec.get("dnsPolicy") == "None" and not (spec.get("dnsConfig") or {}).get("nameservers"):
        text = "must provide at least one DNS nameserver when `dnsPolicy` is None"
        errors.append(fields.required(f"{where}.dnsConfig.nameservers", text))
    for name in ("hostname", "subdomain"):
        if spec.get(name):
            errors += dns_label(f"{where}.{name}", spec[name])
    if spec.get("nodeName"):
        errors += subdomain(f"{where}.nodeName", spec["nodeName"])
    errors += label_set(f"{where}.nodeSelector", spec.get("nodeSelector") or {})
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and deadline < 1:
        text = "must be between 1 and 2147483647, inclusive"
        errors.append(fields.invalid(f"{where}.activeDeadlineSeconds", deadline, text))
    if (spec.get("terminationGracePeriodSeconds") or 0) < 0:
        text = "must be greater than or equal to 0"
        errors.append(fields.invalid(f"{where}.terminationGracePeriodSeconds", spec["terminationGracePeriodSeconds"], text))
    for index, toleration in enumerate(spec.get("tolerations") or ()):
        at = f"{where}.tolerations[{index}]"
        errors += one_of(toleration, "operator", ("Equal", "Exists"), at)
        errors += one_of(toleration, "effect", ("", "NoSchedule", "PreferNoSchedule", "NoExecute"), at)
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
            errors += dns_label(f"{at}.name", name)
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
        errors += dns_label(f"{where}.name", container["name"])
    image = container.get("image")
    if not image:
        errors.append(fields.required(f"{where}.image"))
    elif image != image.strip():
        errors.append(fields.invalid(f"{where}.image", image, "must not have leading or trailing whitespace"))
    errors += one_of(container, "imagePullPolicy", ("Always", "IfNotPresent", "Never"), where)
    errors += one_of(container, "terminationMessagePolicy", ("File", "FallbackToLogsOnError"), where)
    names: set[str] = set()
    for index, port in enumerate(container.get("ports") or ()):
        at = f"{where}.ports[{index}]"
        errors += port_number(port.get("containerPort"), f"{at}.containerPort")
        errors += port_number(port.get("hostPort") or None, f"{at}.hostPort")
        errors += one_of(port, "protocol", ("TCP", "UDP", "SCTP"), at)
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
        elif not ENV_NAME.fullmatch(name):
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
            errors += port_number((probe[handler] or {}).get("port"), f"{where}.{handler}.port")
    return errors


def _resources(resources: dict[str, Any], where: str) -> Errors:
    errors: Errors = []
    parsed: dict[tuple[str, str], Any] = {}
    for kind in ("limits", "requests"):
        for name, value in (resources.get(kind) or {}).items():
            at = f"{where}.{kind}[{name}]"
            if problems := quantity(value, at):
                errors += problems
            else:
                parsed[kind, name] = parse_quantity(value)
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
    return errors + label_set("spec.template.metadata.labels", labels)


@validates("", "v1", "ReplicationController")
def _replication_controller(obj: Object, old: Object | None) -> Errors:
    spec = obj.get("spec") or {}
    template = spec.get("template") or {}
    labels = (template.get("metadata") or {}).get("labels") or {}
    errors: Errors = []
    if not spec.get("selector"):
        errors.append(fields.required("spec.selector"))
    elif any(labels.get(key) != value for key, value in spec["selector"].items()):
        errors.append(fields.invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`"))
    if (spec.get("replicas") or 0) < 0:
        errors.append(fields.invalid("spec.replicas", spec["replicas"], "must be greater than or equal to 0"))
    return errors + _pod_spec(template.get("spec") or {}, "spec.template.spec")


_STATEFUL_SET_FREE = (
    "replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit", "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
)  # fmt: skip


@validates("apps", "v1", "Deployment", "ReplicaSet", "StatefulSet", "DaemonSet")
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
    if old is not None and obj["kind"] == "StatefulSet":
        fixed = {name: value for name, value in spec.items() if name not in _STATEFUL_SET_FREE}
        if fixed != {name: value for name, value in old["spec"].items() if name not in _STATEFUL_SET_FREE}:
            listed = ", ".join(f"'{name}'" for name in _STATEFUL_SET_FREE[:-1])
            text = f"updates to statefulset spec for fields other than {listed} and '{_STATEFUL_SET_FREE[-1]}' are forbidden"
            errors.append(fields.forbidden("spec", text))
    rolling = (spec.get("strategy") or {}).get("rollingUpdate") or {}
    if (
        obj["kind"] == "Deployment"
        and rolling
        and all(str(rolling.get(k)) in ("0", "0%") for k in ("maxSurge", "maxUnavailable"))
    ):
        text = "may not be 0 when `maxSurge` is 0"
        errors.append(fields.invalid("spec.strategy.rollingUpdate.maxUnavailable", rolling["maxUnavailable"], text))
    return errors


@validates("batch", "v1", "Job")
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


@validates("batch", "v1", "CronJob")
def _cron_job(obj: Object, old: Object | None) -> Errors:
    spec = obj.get("spec") or {}
    errors: Errors = []
    if not spec.get("schedule"):
        errors.append(fields.required("spec.schedule"))
    else:
        errors += cron_schedule(spec["schedule"], spec.get("timeZone"))
    if len(obj["metadata"].get("name") or "") > 52:
        errors.append(fields.invalid("metadata.name", obj["metadata"]["name"], "must be no more than 52 characters"))
    errors += one_of(spec, "concurrencyPolicy", ("Allow", "Forbid", "Replace"), "spec")
    job = (spec.get("jobTemplate") or {}).get("spec") or {}
    return errors + _pod_spec((job.get("template") or {}).get("spec") or {}, "spec.jobTemplate.spec.template.spec")
