"""When a person's container starts again by itself (`--restart`), as docker has it, and what is kept for that beside its log."""

import json
import os
from dataclasses import asdict, dataclass

from highrt.person.flags import PersonFiles
from highrt.pods.errors import InvalidArgument

ALWAYS, NO, ON_FAILURE, UNLESS_STOPPED = "always", "no", "on-failure", "unless-stopped"

_FIRST_SECONDS, _MOST_SECONDS = 0.1, 60.0
_GOOD_RUN_SECONDS = 10.0
"""Who ran so long begins with the shortest pause again."""


@dataclass
class Life:
    """policy and most (of on-failure: how often, 0 is for ever): as asked for. stopped: a person has stopped it. restarts: how
    often it has started by itself since a person started it."""

    policy: str = NO
    most: int = 0
    stopped: bool = False
    restarts: int = 0

    def wants_again(self, exit_code: int) -> bool:
        """Whether it starts again after this end."""
        if self.stopped or self.policy == NO:
            return False
        return self.policy != ON_FAILURE or (exit_code != 0 and (not self.most or self.restarts < self.most))

    def save(self, files: PersonFiles) -> None:
        """On disk when this returns: a manual stop is not forgotten when the machine dies."""
        temporary = files.folder / ".life"
        with temporary.open("w") as file:
            file.write(json.dumps(asdict(self)))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(files.folder / "life")
        folder = os.open(files.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # the new name, too
        finally:
            os.close(folder)

    @staticmethod
    def load(files: PersonFiles) -> "Life":
        """One that never starts again, where nothing is kept."""
        try:
            return Life(**json.loads((files.folder / "life").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return Life()


def policy(text: str) -> tuple[str, int]:
    """`no`, `always`, `unless-stopped`, `on-failure` or `on-failure:TIMES`. Raises InvalidArgument."""
    name, colon, times = text.partition(":")
    if name in ("", NO, ALWAYS, UNLESS_STOPPED) and not colon:
        return name or NO, 0
    if name == ON_FAILURE and (not colon or times.isdigit()):
        return name, int(times or 0)
    raise InvalidArgument(f"--restart {text}: use no, always, unless-stopped, on-failure or on-failure:TIMES")


def pause(before: float, ran_seconds: float) -> float:
    """How long it pauses after a run, in seconds. before: the pause before that run, 0 for none."""
    return _FIRST_SECONDS if ran_seconds >= _GOOD_RUN_SECONDS else min(_MOST_SECONDS, max(_FIRST_SECONDS, 2 * before))
