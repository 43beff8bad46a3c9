"""A container's environment: its own variables, those of ConfigMaps, Secrets and the downward API, and those of Services."""

import base64
import re
from collections.abc import Iterable
from typing import Any

from kubelet.expansion import expand
from kubelet.fields import Facts, FieldError, field_value, resource_value
from kubelet.objects import NotThere, Objects


class EnvError(Exception):
    """The environment cannot be made; its text is shown as CreateContainerConfigError."""


async def environment(
    pod: dict[str, Any], container: dict[str, Any], objects: Objects, facts: Facts, services: Iterable[dict[str, Any]]
) -> dict[str, str]:
    """All variables of a container, later sources over earlier ones: Services, envFrom, env.

    Raises EnvError for a reference that names nothing, ApiError where the API server cannot tell.
    """
    namespace = pod["metadata"]["namespace"]
    of_services = service_variables(services, namespace, links=pod["spec"].get("enableServiceLinks", True))
    found: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        found.update(await _from_source(source, namespace, objects))
    for variable in container.get("env") or []:
        name = variable["name"]
        if variable.get("valueFrom"):
            value = await _value_from(variable["valueFrom"], pod, container, objects, facts)
            if value is None:
                continue
        else:
            value = expand(variable.get("value") or "", found, of_services)
        found[name] = value
    return {**of_services, **found}


async def _from_source(source: dict[str, Any], namespace: str, objects: Objects) -> dict[str, str]:
    prefix = source.get("prefix") or ""
    for kind, getter, decode in (("configMapRef", objects.config_map, str), ("secretRef", objects.secret, _decoded)):
        reference = source.get(kind)
        if not reference:
            continue
        try:
            data = (await getter(namespace, reference["name"])).get("data") or {}
        except NotThere as error:
            if reference.get("optional"):
                continue
            raise EnvError(str(error)) from error
        return {prefix + key: decode(value) for key, value in data.items() if "=" not in prefix + key}
    return {}


async def _value_from(
    source: dict[str, Any], pod: dict[str, Any], container: dict[str, Any], objects: Objects, facts: Facts
) -> str | None:
    """The value, or None where an optional reference names nothing."""
    namespace = pod["metadata"]["namespace"]
    try:
        if source.get("fieldRef"):
            return field_value(pod, source["fieldRef"]["fieldPath"], facts)
        if source.get("resourceFieldRef"):
            return resource_value(_named(pod, container, source["resourceFieldRef"]), source["resourceFieldRef"], facts)
    except FieldError as error:
        raise EnvError(str(error)) from error
    is_secret = bool(source.get("secretKeyRef"))
    reference = source.get("secretKeyRef") or source.get("configMapKeyRef")
    if not reference:
        raise EnvError(f"an environment variable's valueFrom has no source that is known: {', '.join(source)}")
    try:
        getter = objects.secret if is_secret else objects.config_map
        data = (await getter(namespace, reference["name"])).get("data") or {}
    except NotThere as error:
        if reference.get("optional"):
            return None
        raise EnvError(str(error)) from error
    if reference["key"] not in data:
        if reference.get("optional"):
            return None
        kind = "Secret" if is_secret else "ConfigMap"
        raise EnvError(f"couldn't find key {reference['key']} in {kind} {namespace}/{reference['name']}")
    value = data[reference["key"]]
    return _decoded(value) if is_secret else str(value)


def _named(pod: dict[str, Any], container: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    name = reference.get("containerName")
    if not name:
        return container
    for other in [*pod["spec"].get("containers", []), *pod["spec"].get("initContainers", [])]:
        if other["name"] == name:
            return dict(other)
    raise FieldError(f"container {name} not found")


def _decoded(value: str) -> str:
    return base64.b64decode(value).decode("utf-8", "surrogateescape")


def service_variables(services: Iterable[dict[str, Any]], namespace: str, *, links: bool) -> dict[str, str]:
    """Variables of the namespace's Services (if links) and of the API server's own, `kubernetes` in `default`.

    https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
    """
    found: dict[str, str] = {}
    for service in services:
        meta, spec = service["metadata"], service.get("spec") or {}
        address = spec.get("clusterIP")
        master = meta.get("namespace") == "default" and meta["name"] == "kubernetes"
        if not address or address == "None" or not (master or (links and meta.get("namespace") == namespace)):
            continue
        found.update(_service(meta["name"], address, spec.get("ports") or []))
    return found


def _service(name: str, address: str, ports: list[dict[str, Any]]) -> dict[str, str]:
    prefix = _variable_name(name)
    host = f"[{address}]" if ":" in address else address
    found = {f"{prefix}_SERVICE_HOST": address}
    for index, port in enumerate(ports):
        number, protocol = port["port"], port.get("protocol") or "TCP"
        url = f"{protocol.lower()}://{host}:{number}"
        if index == 0:
            found |= {f"{prefix}_SERVICE_PORT": str(number), f"{prefix}_PORT": url}
        if port.get("name"):
            found[f"{prefix}_SERVICE_PORT_{_variable_name(port['name'])}"] = str(number)
        base = f"{prefix}_PORT_{number}_{protocol}"
        found |= {base: url, f"{base}_PROTO": protocol.lower(), f"{base}_PORT": str(number), f"{base}_ADDR": address}
    return found


def _variable_name(name: str) -> str:
    return re.sub(r"[-.]", "_", name).upper()
