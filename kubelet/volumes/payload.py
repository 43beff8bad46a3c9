"""The files of ConfigMap, Secret, downward API and projected volumes, gathered from the API."""

import base64
from typing import Any

from kubelet.fields import Facts, FieldError, field_value, resource_value
from kubelet.objects import NotThere, Objects
from kubelet.volumes.atomic import File
from kubelet.volumes.errors import VolumeError
from kubelet.volumes.tokens import Tokens

KINDS = ("configMap", "secret", "downwardAPI", "projected")
DEFAULT_MODE = 0o644


class Payloads:
    """Gathers a volume's files. objects: the source of ConfigMaps and Secrets; tokens: that of service account tokens."""

    def __init__(self, objects: Objects, tokens: Tokens) -> None:
        self._objects, self._tokens = objects, tokens

    async def gather(self, pod: dict[str, Any], kind: str, source: dict[str, Any], facts: Facts) -> dict[str, File]:
        """The files by path. Raises VolumeError for what does not exist, ApiError where the API server cannot tell."""
        mode = source.get("defaultMode")
        mode = DEFAULT_MODE if mode is None else mode
        if kind != "projected":
            return await self._one(pod, kind, source, mode, facts)
        files: dict[str, File] = {}
        for part in source.get("sources") or []:
            for name, inner in part.items():
                if inner is not None:
                    files.update(await self._one(pod, name, inner, mode, facts))
        return files

    async def _one(self, pod: dict[str, Any], kind: str, source: dict[str, Any], mode: int, facts: Facts) -> dict[str, File]:
        if kind == "configMap":
            return await self._config_map(pod, source, mode)
        if kind == "secret":
            return await self._secret(pod, source, mode)
        if kind == "downwardAPI":
            return _downward(pod, source, mode, facts)
        if kind == "serviceAccountToken":
            token = await self._tokens.get(pod, source.get("audience") or "", source.get("expirationSeconds") or 3600)
            user, shared = _only_user(pod), (pod["spec"].get("securityContext") or {}).get("fsGroup") is not None
            return {source["path"]: File(token.encode(), 0o600 if user is not None or shared else 0o644, user)}
        raise VolumeError(f"projected volume source {kind} is not supported by this kubelet")

    async def _config_map(self, pod: dict[str, Any], source: dict[str, Any], mode: int) -> dict[str, File]:
        try:
            found = await self._objects.config_map(pod["metadata"]["namespace"], source["name"])
        except NotThere as error:
            if source.get("optional"):
                return {}
            raise VolumeError(str(error)) from error
        data = {k: v.encode() for k, v in (found.get("data") or {}).items()}
        data |= {k: base64.b64decode(v) for k, v in (found.get("binaryData") or {}).items()}
        return _items(data, source, mode, "configmap")

    async def _secret(self, pod: dict[str, Any], source: dict[str, Any], mode: int) -> dict[str, File]:
        name = source.get("secretName") or source["name"]
        try:
            found = await self._objects.secret(pod["metadata"]["namespace"], name)
        except NotThere as error:
            if source.get("optional"):
                return {}
            raise VolumeError(str(error)) from error
        data = {k: base64.b64decode(v) for k, v in (found.get("data") or {}).items()}
        return _items(data, source, mode, "secret")


def _items(data: dict[str, bytes], source: dict[str, Any], mode: int, what: str) -> dict[str, File]:
    """All keys as files, or the `items` that are asked for, each with its path and mode."""
    if not source.get("items"):
        return {key: File(value, mode) for key, value in data.items()}
    files = {}
    for item in source["items"]:
        if item["key"] not in data:
            if source.get("optional"):
                continue
            raise VolumeError(f"{what} references non-existent {what.replace('map', '')} key: {item['key']}")
        own = item.get("mode")
        files[item["path"]] = File(data[item["key"]], mode if own is None else own)
    return files


def _downward(pod: dict[str, Any], source: dict[str, Any], mode: int, facts: Facts) -> dict[str, File]:
    files = {}
    for item in source.get("items") or []:
        own = item.get("mode")
        try:
            if item.get("fieldRef"):
                value = field_value(pod, item["fieldRef"]["fieldPath"], facts)
            else:
                reference = item["resourceFieldRef"]
                value = resource_value(_container(pod, reference.get("containerName", "")), reference, facts)
        except FieldError as error:
            raise VolumeError(str(error)) from error
        files[item["path"]] = File(value.encode(), mode if own is None else own)
    return files


def _container(pod: dict[str, Any], name: str) -> dict[str, Any]:
    for container in [*pod["spec"].get("containers", []), *pod["spec"].get("initContainers", [])]:
        if container["name"] == name:
            return dict(container)
    raise VolumeError(f"container {name!r} of a resourceFieldRef is not in the pod")


def _only_user(pod: dict[str, Any]) -> int | None:
    """The user that all containers run as, where the pod names one: then its token can be its own file."""
    of_pod = (pod["spec"].get("securityContext") or {}).get("runAsUser")
    users = {
        (c.get("securityContext") or {}).get("runAsUser", of_pod)
        for c in [*pod["spec"].get("containers", []), *pod["spec"].get("initContainers", [])]
    }
    return users.pop() if len(users) == 1 else None
