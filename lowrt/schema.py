"""The shape of config.json (OCI runtime spec 1.3): which fields there are, and what each may hold.

`fit` brings a decoded document into that shape, so that all that reads it later finds the types that the spec says, and no
nulls: a field that is null is one that is not there, as for Go's decoder, on which callers rely. Fields that the spec does not
have are left out; one whose name is in another case is taken for the spec's. What the values mean is checked by `config`.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Misfit(Exception):
    """A value that does not fit. path: where it is, from the inside to the outside."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.path: list[str] = []

    def __str__(self) -> str:
        return f"{''.join(reversed(self.path)).removeprefix('.')}{':' if self.path else ''} {self.args[0]}"


class Map:
    """An object whose names are the user's, all values of one kind."""

    def __init__(self, kind: "Any") -> None:
        self.kind = kind


class Word:
    """A string; with `free` one that may hold NUL bytes, as it never becomes a path or an argument."""

    def __init__(self, *, free: bool = False) -> None:
        self.free = free


class Flag:
    """A boolean."""


class Whole:
    """A whole number between two others, both included."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high


WORD, FREE_WORD, FLAG = Word(), Word(free=True), Flag()
_WORDS = [WORD]
_U16, _U32, _U64, _I32, _I64 = (
    Whole(0, 2**16 - 1), Whole(0, 2**32 - 1), Whole(0, 2**64 - 1), Whole(-(2**31), 2**31 - 1), Whole(-(2**63), 2**63 - 1)
)  # fmt: skip
_ID = Whole(0, 2**32 - 2)  # the last one means "no change" to the kernel

_ID_MAPPINGS = [{"containerID": _U32, "hostID": _U32, "size": _U32}]
_NUMBERED = {"major": _I64, "minor": _I64}
_WEIGHTS = [{**_NUMBERED, "weight": _U16, "leafWeight": _U16}]
_RATES = [{**_NUMBERED, "rate": _U64}]
_HOOKS = [{"path": WORD, "args": _WORDS, "env": _WORDS, "timeout": _I64}]

PROCESS = {
    "terminal": FLAG,
    "consoleSize": {"height": _U16, "width": _U16},
    "user": {"uid": _ID, "gid": _ID, "umask": _U32, "additionalGids": [_ID]},
    "args": _WORDS,
    "env": _WORDS,
    "cwd": WORD,
    "capabilities": dict.fromkeys(("bounding", "effective", "inheritable", "permitted", "ambient"), _WORDS),
    "rlimits": [{"type": WORD, "hard": _U64, "soft": _U64}],
    "noNewPrivileges": FLAG,
    "apparmorProfile": WORD,
    "oomScoreAdj": _I32,
    "scheduler": {
        "policy": WORD, "nice": _I32, "priority": _I32, "flags": _WORDS, "runtime": _U64, "deadline": _U64, "period": _U64,
    },
    "selinuxLabel": WORD,
    "ioPriority": {"class": WORD, "priority": _I64},
    "execCPUAffinity": {"initial": WORD, "final": WORD},
}  # fmt: skip

RESOURCES = {
    "devices": [{"allow": FLAG, "type": WORD, "access": WORD, **_NUMBERED}],
    "memory": {
        **dict.fromkeys(("limit", "reservation", "swap", "kernel", "kernelTCP"), _I64), "swappiness": _U64,
        **dict.fromkeys(("disableOOMKiller", "useHierarchy", "checkBeforeUpdate"), FLAG),
    },
    "cpu": {
        "shares": _U64, "quota": _I64, "burst": _U64, "period": _U64, "realtimeRuntime": _I64, "realtimePeriod": _U64,
        "cpus": WORD, "mems": WORD, "idle": _I64,
    },
    "pids": {"limit": _I64},
    "blockIO": {
        "weight": _U16, "leafWeight": _U16, "weightDevice": _WEIGHTS,
        **dict.fromkeys(("throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice",
                         "throttleWriteIOPSDevice"), _RATES),
    },
    "hugepageLimits": [{"pageSize": WORD, "limit": _U64}],
    "network": {"classID": _U32, "priorities": [{"name": WORD, "priority": _U32}]},
    "rdma": Map({"hcaHandles": _U32, "hcaObjects": _U32}),
    "unified": Map(WORD),
}  # fmt: skip

_SECCOMP = {
    "defaultAction": WORD,
    "defaultErrnoRet": _U32,
    "architectures": _WORDS,
    "flags": _WORDS,
    "listenerPath": WORD,
    "listenerMetadata": FREE_WORD,
    "syscalls": [
        {
            "names": _WORDS, "action": WORD, "errnoRet": _U32,
            "args": [{"index": _U32, "value": _U64, "valueTwo": _U64, "op": WORD}],
        }
    ],
}  # fmt: skip

_LINUX = {
    "uidMappings": _ID_MAPPINGS,
    "gidMappings": _ID_MAPPINGS,
    "sysctl": Map(WORD),
    "resources": RESOURCES,
    "cgroupsPath": WORD,
    "namespaces": [{"type": WORD, "path": WORD}],
    "devices": [{"path": WORD, "type": WORD, **_NUMBERED, "fileMode": _U32, "uid": _ID, "gid": _ID}],
    "netDevices": Map({"name": WORD}),
    "seccomp": _SECCOMP,
    "rootfsPropagation": WORD,
    "maskedPaths": _WORDS,
    "readonlyPaths": _WORDS,
    "mountLabel": WORD,
    "intelRdt": {
        "closID": WORD, "schemata": _WORDS, "l3CacheSchema": WORD, "memBwSchema": WORD, "enableMonitoring": FLAG,
    },
    "memoryPolicy": {"mode": WORD, "nodes": WORD, "flags": _WORDS},
    "personality": {"domain": WORD, "flags": _WORDS},
    "timeOffsets": Map({"secs": _I64, "nanosecs": _U32}),
}  # fmt: skip

CONFIG = {
    "ociVersion": WORD,
    "process": PROCESS,
    "root": {"path": WORD, "readonly": FLAG},
    "hostname": WORD,
    "domainname": WORD,
    "mounts": [
        {
            "destination": WORD, "type": WORD, "source": WORD, "options": _WORDS,
            "uidMappings": _ID_MAPPINGS, "gidMappings": _ID_MAPPINGS,
        }
    ],
    "hooks": dict.fromkeys(
        ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"), _HOOKS
    ),
    "annotations": Map(FREE_WORD),
    "linux": _LINUX,
}  # fmt: skip


def fit(value: "Any", kind: "Any") -> "Any":
    """The value, in the shape of its kind; objects and lists are changed in place. Raises Misfit."""
    shape = type(kind)
    if shape is Word:
        return _fit_word(value, kind)
    if shape is dict:
        return _fit_object(value, kind)
    if shape is list:
        return _fit_list(value, kind[0])
    if shape is Whole:
        if type(value) is not int:
            raise Misfit(f"must be a whole number, not {_what(value)}")
        if not kind.low <= value <= kind.high:
            raise Misfit(f"must be a number from {kind.low} to {kind.high}")
        return value
    if shape is Map:
        return _fit_map(value, kind.kind)
    if type(value) is not bool:
        raise Misfit(f"must be true or false, not {_what(value)}")
    return value


def _fit_word(value: "Any", kind: Word) -> str:
    if type(value) is not str:
        raise Misfit(f"must be a string, not {_what(value)}")
    if "\0" in value and not kind.free:
        raise Misfit("must not contain a NUL byte")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Misfit("must be Unicode, and has half of a surrogate pair") from None
    return value


def _fit_object(value: "Any", kinds: "dict[str, Any]") -> "dict[str, Any]":
    if type(value) is not dict:
        raise Misfit(f"must be an object, not {_what(value)}")
    for given, inner in tuple(value.items()):
        name = given if given in kinds else _in_another_case(given, kinds)
        if name != given or inner is None:
            del value[given]
        if name is None or inner is None or (name != given and name in value):
            continue
        try:
            value[name] = fit(inner, kinds[name])
        except Misfit as misfit:
            misfit.path.append(f".{name}")
            raise
    return value


def _in_another_case(given: "Any", kinds: "dict[str, Any]") -> str | None:
    """Go's decoder takes names in any case, and so do those who write for it: a limit that is overlooked would be none."""
    lowered = given.lower()
    return next((name for name in kinds if name.lower() == lowered), None)


def _fit_list(value: "Any", kind: "Any") -> "list[Any]":
    if type(value) is not list:
        raise Misfit(f"must be a list, not {_what(value)}")
    for index, inner in enumerate(value):
        try:
            value[index] = _nothing(kind) if inner is None else fit(inner, kind)
        except Misfit as misfit:
            misfit.path.append(f"[{index}]")
            raise
    return value


def _fit_map(value: "Any", kind: "Any") -> "dict[str, Any]":
    if type(value) is not dict:
        raise Misfit(f"must be an object, not {_what(value)}")
    for name, inner in tuple(value.items()):
        try:
            _fit_word(name, WORD)
            value[name] = _nothing(kind) if inner is None else fit(inner, kind)
        except Misfit as misfit:
            misfit.path.append(f"[{name!a}]")
            raise
    return value


def _nothing(kind: "Any") -> "Any":
    """What stands for null where there must be something."""
    shape = type(kind)
    return "" if shape is Word else 0 if shape is Whole else False if shape is Flag else [] if shape is list else {}


def _what(value: "Any") -> str:
    """A value's type as JSON names it."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number with a point",
    }
    return names.get(type(value), "null")
