"""Names of containers and pods: which are in use, and some for what nobody named."""

import secrets
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from highrt.person.flags import NAME, is_shared
from highrt.pods.errors import AlreadyExists, InvalidArgument
from highrt.pods.manager import PodManager
from highrt.pods.model import Owner

_ADJECTIVES = (
    "amber blue brave bright calm clear clever cool deep eager early fair fast fine fond free fresh gentle glad golden grand "
    "green happy keen kind light lively long lucky mellow merry mild neat new noble plain proud pure quick quiet rapid ready "
    "rich round sharp shy silent silver simple smart smooth soft solid steady still strong sunny sweet swift tall tidy warm "
    "wide wild wise young"
)
_NOUNS = (
    "alder anchor apple ash bay beacon birch bridge brook canyon cedar cliff cloud comet coral cove creek dawn delta dune eagle "
    "elm falcon fern field finch fjord forest garden glacier harbor hazel heron hill island lagoon lake lark maple meadow mesa "
    "moon moss oak ocean orchard otter owl palm peak pebble pine plain pond prairie rain raven reef ridge river robin shore "
    "sky snow spring star stone stream summit swan thistle tide valley wave willow wren"
)


def suggest() -> str:
    """Two words, like `quiet-river`."""
    return f"{secrets.choice(_ADJECTIVES.split())}-{secrets.choice(_NOUNS.split())}"


class NamesInUse:
    """The names of a person's containers and pods, which are one set, as podman has it; also of those that are being made."""

    def __init__(self, pods: PodManager) -> None:
        self._pods = pods
        self._making: set[str] = set()

    def check(self, name: str) -> None:
        """Raises InvalidArgument for one that cannot be, AlreadyExists for one that is in use."""
        if not NAME.fullmatch(name):
            raise InvalidArgument(f"name {name!r}: letters, digits, '_', '.', '-', the first one a letter or digit")
        if any(pod.config.metadata.name == name for pod in self._pods.pods(Owner.PERSON) if is_shared(pod)):
            raise AlreadyExists(f"the name {name!r} is a pod's: remove that one (highrt pod rm {name}) or take another name")
        if name in self._all():
            raise AlreadyExists(f"the container name {name!r} is in use: remove that one (highrt rm {name}) or take another name")

    def free(self) -> str:
        """One that nobody has."""
        taken = self._all()
        while (name := suggest()) in taken:
            if len(taken) > 1000:
                return f"{name}-{uuid.uuid4().hex[:6]}"
        return name

    @contextmanager
    def making(self, name: str) -> Iterator[None]:
        """Around the making of what has this name. Raises as `check`."""
        self.check(name)
        self._making.add(name)
        try:
            yield
        finally:
            self._making.discard(name)

    def _all(self) -> set[str]:
        pods = {pod.config.metadata.name for pod in self._pods.pods(Owner.PERSON)}
        return pods | {item.config.metadata.name for item in self._pods.containers(Owner.PERSON)} | self._making
