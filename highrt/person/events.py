"""What happens to a person's things, as `highrt events` tells it: docker's types and actions.

Containers' events come from the pod manager: so those are among them which happen by themselves (`--restart`, `--rm`). The
rest is noted by whoever does it. The last ones are kept for readers who come later.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from highrt.pods.errors import FailedPrecondition, InvalidArgument, TooSlow
from highrt.pods.manager import PodManager
from highrt.pods.model import Container, ContainerEvent, EventKind, Owner
from strata.telemetry import logs

log = logs.get("highrt.person")

_KEPT = 256
_WAITING = 1024
_FILTERS = ("type", "event", "container", "image", "label", "network", "volume", "pod")
_ACTIONS = {EventKind.CREATED: "create", EventKind.STARTED: "start", EventKind.STOPPED: "die", EventKind.DELETED: "destroy"}


@dataclass(frozen=True)
class Event:
    """kind: container, image, network, volume or pod. actor: the ID or name of what it happened to."""

    kind: str
    action: str
    actor: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    time_ns: int = field(default_factory=time.time_ns)

    def is_wanted(self, filters: Mapping[str, list[str]]) -> bool:
        """Whether it meets all of the filters, and of each one of its values."""
        return all(any(self._meets(key, value) for value in values) for key, values in filters.items())

    def _meets(self, key: str, value: str) -> bool:
        if key == "type":
            return value == self.kind
        if key == "event":
            return self.action.partition(":")[0] == value
        if key == "label":
            name, equals, wanted = value.partition("=")
            return name in self.attributes and (not equals or self.attributes[name] == wanted)
        named = self.attributes.get("image" if key == "image" and self.kind == "container" else "name", "")
        if key == "image":
            return value in (self.actor, named, named.removesuffix(":latest")) and self.kind in ("image", "container")
        return self.kind == key and (value == named or self.actor.startswith(value))


class Events:
    """Notes events and hands them to readers. `watch` must run meanwhile."""

    def __init__(self, pods: PodManager) -> None:
        self._pods = pods
        self._kept: deque[Event] = deque(maxlen=_KEPT)
        self._readers: set[asyncio.Queue[Event]] = set()
        self._known: dict[str, dict[str, str]] = {}

    def note(self, kind: str, action: str, actor: str, /, **attributes: str) -> None:
        event = Event(kind, action, actor, attributes)
        self._kept.append(event)
        for queue in [*self._readers]:
            if queue.qsize() < _WAITING:
                queue.put_nowait(event)
            else:
                self._readers.discard(queue)

    def note_container(self, found: Container, action: str, /, **attributes: str) -> None:
        self.note("container", action, found.id, **{**self._attributes(found), **attributes})

    def _attributes(self, found: Container) -> dict[str, str]:
        image = found.config.image
        named = {"image": image.user_specified_image or image.image, "name": found.config.metadata.name}
        return {**dict(found.config.labels), **named}

    async def watch(self) -> None:
        """Notes what happens to containers. Never returns."""
        self._known = {found.id: self._attributes(found) for found in self._pods.containers(Owner.PERSON)}
        while True:
            try:
                async for event in self._pods.events():
                    self._take(event)
            except TooSlow:
                log.warning("events of containers were lost: there were too many at once")

    def _take(self, event: ContainerEvent) -> None:
        identity = event.container_id
        if event.pod.owner is not Owner.PERSON or identity == event.pod.id:
            return
        more = {}
        if found := next((item for item in self._pods.containers(Owner.PERSON) if item.id == identity), None):
            self._known[identity] = self._attributes(found)
            if event.kind is EventKind.STOPPED:
                more = {"exitCode": str(found.exit_code)}
                if found.reason == "OOMKilled":
                    self.note("container", "oom", identity, **self._known[identity])
        self.note("container", _ACTIONS[event.kind], identity, **{**self._known.get(identity, {}), **more})
        if event.kind is EventKind.DELETED:
            self._known.pop(identity, None)

    async def read(self, since_ns: int, until_ns: int, filters: Mapping[str, list[str]]) -> AsyncIterator[Event]:
        """Those from a time on (0: from now), to another (0: for ever). Raises InvalidArgument, and FailedPrecondition where the
        reader is so slow that some would be lost."""
        if unknown := sorted(set(filters) - set(_FILTERS)):
            raise InvalidArgument(f"--filter {unknown[0]}: not known; there are {', '.join(_FILTERS)}")
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._readers.add(queue)
        try:
            for event in [*self._kept] if since_ns else ():
                if since_ns <= event.time_ns and not 0 < until_ns < event.time_ns and event.is_wanted(filters):
                    yield event
            while queue in self._readers or not queue.empty():
                left = (until_ns - time.time_ns()) / 1e9 if until_ns else None
                try:
                    event = await asyncio.wait_for(queue.get(), left)
                except TimeoutError:
                    return
                if event.is_wanted(filters):
                    yield event
        finally:
            self._readers.discard(queue)
        raise FailedPrecondition(f"more than {_WAITING} events were not read in time")
