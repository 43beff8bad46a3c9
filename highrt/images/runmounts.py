"""`RUN --mount=…`: what is mounted for one instruction and is no part of its layer (the Dockerfile reference, RUN --mount)."""

import posixpath
from collections.abc import Callable
from dataclasses import dataclass

_KINDS: dict[str, set[str]] = {
    "bind": {"from", "source", "readonly"},
    "cache": {"id", "from", "source", "readonly", "sharing", "mode", "uid", "gid"},
    "tmpfs": {"size"},
    "secret": {"id", "required", "mode", "uid", "gid", "env"},
}
_NAMES = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
_SWITCHES = {"readonly", "required"}
_SHARING = ("shared", "private", "locked")
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True)
class RunMount:
    """One mount. kind: bind, cache, tmpfs or secret. target: absolute; "" for a secret that only an environment variable gets.

    source: a path in what `origin` names (a context, stage or image; "" is the build's context, or an empty cache). identity: of
    a cache or secret. env: the variable that gets a secret. size: of a tmpfs in bytes, 0 for the kernel's half of the memory.
    """

    kind: str
    target: str
    source: str = "/"
    origin: str = ""
    identity: str = ""
    read_only: bool = False
    required: bool = False
    sharing: str = "shared"
    mode: int = 0
    uid: int = 0
    gid: int = 0
    env: str = ""
    size: int = 0


def parse(text: str, working_dir: str, expand: Callable[[str], str]) -> RunMount:
    """What follows `--mount=`. expand: replaces variables. Raises ValueError with the reason."""
    values = _values(text)
    kind = values.pop("type", "bind")
    if kind == "ssh":
        raise ValueError("--mount=type=ssh is not supported: a build reaches no network")
    if kind not in _KINDS:
        raise ValueError(f"--mount=type={kind}: the types are {', '.join(_KINDS)}")
    writable = values.pop("rw", values.pop("readwrite", None))
    if unknown := set(values) - _KINDS[kind] - {"target"}:
        raise ValueError(f"--mount=type={kind} has no option {', '.join(sorted(unknown))}")
    for name in ("target", "source", "id"):
        if name in values:
            values[name] = expand(values[name])
    read_only = _switch(values, "readonly", kind == "bind")
    if writable is not None:
        read_only = not _switch({"rw": writable}, "rw", False)
    sharing = values.get("sharing", "shared")
    if sharing not in _SHARING:
        raise ValueError(f"--mount: sharing={sharing} is none of {', '.join(_SHARING)}")
    target, identity = values.get("target", ""), values.get("id", "")
    if kind == "secret":
        identity = identity or posixpath.basename(target)
        if not identity:
            raise ValueError("--mount=type=secret needs an id")
        target = target or ("" if "env" in values else f"/run/secrets/{identity}")
    elif not target:
        raise ValueError(f"--mount=type={kind} needs a target")
    if target:
        target = posixpath.normpath(posixpath.join("/", working_dir, target))
        if target == "/":
            raise ValueError("--mount: the root cannot be mounted over")
    return RunMount(
        kind=kind,
        target=target,
        source=values.get("source", "/"),
        origin=values.get("from", ""),
        identity=identity or target,
        read_only=read_only,
        required=_switch(values, "required", False),
        sharing=sharing,
        mode=_number(values, "mode", 0o400 if kind == "secret" else 0o755, base=8),
        uid=_number(values, "uid", 0),
        gid=_number(values, "gid", 0),
        env=values.get("env", ""),
        size=_size(values.get("size", "")),
    )


def _values(text: str) -> dict[str, str]:
    found = {}
    for item in text.strip("\"'").split(","):
        name, equals, value = item.partition("=")
        name = _NAMES.get(name.strip().lower(), name.strip().lower())
        if not equals and name not in _SWITCHES | {"rw", "readwrite"}:
            raise ValueError(f"--mount: {item!r} is not NAME=VALUE")
        found[name] = value.strip("\"'")
    return found


def _switch(values: dict[str, str], name: str, default: bool) -> bool:
    text = values.get(name)
    if text is None:
        return default
    if text.lower() not in ("", "true", "false", "1", "0"):
        raise ValueError(f"--mount: {name}={text} is neither true nor false")
    return text.lower() in ("", "true", "1")


def _number(values: dict[str, str], name: str, default: int, base: int = 10) -> int:
    try:
        return int(values[name], base) if name in values else default
    except ValueError:
        raise ValueError(f"--mount: {name}={values[name]} is not a number") from None


def _size(text: str) -> int:
    number, unit = text.rstrip("bBkKmMgG"), text[len(text.rstrip("bBkKmMgG")) :].lower()
    unit = unit.removesuffix("b") if len(unit) > 1 else unit
    if text and (not number.isdigit() or unit not in _UNITS):
        raise ValueError(f"--mount: size={text} is not a number of bytes, like 64m")
    return int(number) * _UNITS[unit] if text else 0
