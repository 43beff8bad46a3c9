"""Images: pulled when the pull policy asks for it, with a back-off, and told about in events."""

import asyncio
import base64
import json
import re
import time
from collections.abc import Callable
from typing import Any

from kubelet.backoff import Backoff
from kubelet.objects import NotThere, Objects
from kubelet.runtime import Runtime, RuntimeCallError, RuntimeUnavailable
from strata.protocols import cri_pb2 as cri
from strata.telemetry import logs
from strata.telemetry.spans import span

log = logs.get("kubelet.images")

PULL_SECONDS = 3600.0
_NAME = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"[a-z0-9+._-]+:[0-9a-fA-F]{32,}")

Tell = Callable[[str, str, str], None]
"""Emits an event on the container: type, reason, message."""


class ImageError(Exception):
    """The image is not there. reason: what the container's waiting state says (ErrImagePull, ImagePullBackOff, …)."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


class Images:
    """Ensures images by a runtime. objects: where imagePullSecrets are found."""

    def __init__(self, runtime: Runtime, objects: Objects) -> None:
        self._runtime, self._objects = runtime, objects
        self._backoff = Backoff()
        self._failed: dict[str, tuple[float, str]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def ensure(self, pod: dict[str, Any], container: dict[str, Any], sandbox: Any, tell: Tell) -> Any:
        """The image (cri.Image) of a container, pulled if its policy asks for that.

        Raises ImageError; RuntimeUnavailable where the runtime does not answer.
        """
        reference = container.get("image", "")
        if not valid(reference):
            message = f'Failed to apply default image tag "{reference}": couldn\'t parse image name: invalid reference format'
            tell("Warning", "InspectFailed", message)
            raise ImageError("InvalidImageName", message)
        policy = container.get("imagePullPolicy") or "IfNotPresent"
        present = await self._status(reference, tell)
        if present is not None and policy != "Always":
            tell("Normal", "Pulled", f'Container image "{reference}" already present on machine')
            return present
        if policy == "Never":
            message = f'Container image "{reference}" is not present with pull policy of Never'
            tell("Warning", "ErrImageNeverPull", message)
            raise ImageError("ErrImageNeverPull", message)
        key = f"{pod['metadata']['uid']}_{reference}"
        failed_at, text = self._failed.get(key, (0.0, ""))
        if self._backoff.remaining(key, failed_at):
            message = f'Back-off pulling image "{reference}"'
            tell("Normal", "BackOff", message)
            raise ImageError("ImagePullBackOff", f"{message}: {text}" if text else message)
        tell("Normal", "Pulling", f'Pulling image "{reference}"')
        started = time.monotonic()
        try:
            with span("pull image", image=reference):
                await self._pull(pod, reference, sandbox)
            image = await self._status(reference, tell)
            if image is None:
                raise RuntimeCallError("PullImage", f"the runtime pulled {reference} but does not list it")
        except RuntimeUnavailable:
            raise
        except RuntimeCallError as error:
            self._backoff.next(key)
            text = f'failed to pull image "{reference}": {error.message}' if reference not in error.message else error.message
            self._failed[key] = (time.time(), f"ErrImagePull: {text}")
            tell("Warning", "Failed", f'Failed to pull image "{reference}": {error.message}')
            tell("Warning", "Failed", "Error: ErrImagePull")
            raise ImageError("ErrImagePull", text) from error
        seconds = time.monotonic() - started
        tell(
            "Normal",
            "Pulled",
            f'Successfully pulled image "{reference}" in {_elapsed(seconds)} ({_elapsed(seconds)} including waiting). '
            f"Image size: {image.size} bytes.",
        )
        return image

    def wait_seconds(self, pod: dict[str, Any], container: dict[str, Any]) -> float:
        """Seconds until the container's image may be pulled again; 0 if at once."""
        key = f"{pod['metadata']['uid']}_{container.get('image', '')}"
        return self._backoff.remaining(key, self._failed.get(key, (0.0, ""))[0])

    def forget(self, uid: str) -> None:
        """Drops what is kept of a pod's failures."""
        self._backoff.forget(f"{uid}_")
        for key in [k for k in self._failed if k.startswith(f"{uid}_")]:
            del self._failed[key]

    async def _status(self, reference: str, tell: Tell) -> Any | None:
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=reference, user_specified_image=reference))
        try:
            answer = await self._runtime.call("ImageStatus", request)
        except RuntimeUnavailable:
            raise
        except RuntimeCallError as error:
            message = f'Failed to inspect image "{reference}": {error.message}'
            tell("Warning", "InspectFailed", message)
            raise ImageError("ImageInspectError", message) from error
        return answer.image if answer.HasField("image") and answer.image.id else None

    async def _pull(self, pod: dict[str, Any], reference: str, sandbox: Any) -> None:
        """Pulls with each credential that the pod's secrets have for the registry, without any at last."""
        # Two containers that want one image make one pull.
        lock = self._locks.setdefault(reference, asyncio.Lock())
        try:
            async with lock:
                credentials = await self._credentials(pod, reference)
                last: RuntimeCallError | None = None
                for credential in credentials or [None]:
                    request = cri.PullImageRequest(
                        image=cri.ImageSpec(image=reference, user_specified_image=reference),
                        auth=credential,
                        sandbox_config=sandbox,
                    )
                    try:
                        await self._runtime.call("PullImage", request, seconds=PULL_SECONDS)
                        return
                    except RuntimeUnavailable:
                        raise
                    except RuntimeCallError as error:
                        last = error
                if last is not None:
                    raise last
        finally:
            if not lock.locked():
                self._locks.pop(reference, None)

    async def _credentials(self, pod: dict[str, Any], reference: str) -> list[Any]:
        found = []
        for wanted in pod["spec"].get("imagePullSecrets") or []:
            try:
                secret = await self._objects.secret(pod["metadata"]["namespace"], wanted.get("name", ""))
            except NotThere:
                log.warning("imagePullSecret does not exist", secret=wanted.get("name"), pod=pod["metadata"]["uid"])
                continue
            found += credentials_for(secret, reference)
        return found


def credentials_for(secret: dict[str, Any], reference: str) -> list[cri.AuthConfig]:
    """The credentials in a Docker configuration secret that are for the reference's registry."""
    data = secret.get("data") or {}
    raw = data.get(".dockerconfigjson") or data.get(".dockercfg")
    if not raw:
        return []
    try:
        parsed = json.loads(base64.b64decode(raw))
    except ValueError:
        return []
    entries = parsed.get("auths", {}) if ".dockerconfigjson" in data else parsed
    host = registry(reference)
    found = []
    for server, entry in entries.items():
        plain = re.sub(r"^https?://", "", server)
        if plain.split("/")[0] not in (host, "index.docker.io" if host == "docker.io" else host):
            continue
        if "/" in plain.rstrip("/") and host != "docker.io" and not reference.startswith(plain.rstrip("/")):
            continue
        user, password = entry.get("username", ""), entry.get("password", "")
        if entry.get("auth") and not user:
            user, _, password = base64.b64decode(entry["auth"]).decode(errors="replace").partition(":")
        found.append(cri.AuthConfig(username=user, password=password, identity_token=entry.get("identitytoken", "")))
    return found


def registry(reference: str) -> str:
    """The registry of a reference; docker.io where it names none."""
    first, slash, _ = reference.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else "docker.io"


def valid(reference: str) -> bool:
    """Whether a reference has the form [HOST[:PORT]/]NAME[:TAG][@DIGEST] of the distribution spec."""
    rest, at, digest = reference.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        return False
    host = registry(rest)
    path = rest[len(host) + 1 :] if rest.startswith(host + "/") else rest
    path, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        return False
    return bool(path) and all(_NAME.fullmatch(part) for part in path.split("/"))


def _elapsed(seconds: float) -> str:
    return f"{seconds * 1000:.0f}ms" if seconds < 1 else f"{seconds:.3f}s"
