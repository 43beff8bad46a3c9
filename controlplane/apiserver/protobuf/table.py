"""The messages of the wire, read from `table.txt` at first use.

A message's line is its name (`core.v1.Pod`); below it one line a field: number, JSON name, type. Types are protobuf's scalars,
names of messages, and those of `SPECIAL`; `[]` before a type is a list, `map:` a map of strings to it, `>` a message whose
fields stand among its parent's in JSON, and `!` behind it says that a zero on the wire counts (Go's pointers, and what JSON
always writes). The name `-` is that of a message which is a plain list in JSON.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

SCALARS = frozenset({"string", "bytes", "bool", "int32", "int64", "uint32", "uint64", "double"})
MESSAGES_WITH_A_FORM = frozenset({"Quantity", "IntOrString", "Time", "MicroTime", "RawExtension", "FieldsV1"})
SPECIAL = SCALARS | MESSAGES_WITH_A_FORM
"""What the codec itself knows how to write: it ends the search for messages."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field. shape: one, list, map or inline; kind: the type of one value; keep_zero: whether a zero on the wire counts."""

    number: int
    name: str
    kind: str
    shape: str
    keep_zero: bool


@dataclass(slots=True)
class Message:
    """A message: its fields by number, in the order of the numbers."""

    fields: dict[int, Field] = field(default_factory=dict)

    @property
    def is_list(self) -> bool:
        return any(one.name == "-" for one in self.fields.values())


@cache
def messages() -> dict[str, Message]:
    """All messages by name."""
    found: dict[str, Message] = {}
    current = Message()
    for line in Path(__file__).with_name("table.txt").read_text().splitlines():
        if not line.startswith(" "):
            current = found[line] = Message()
            continue
        number, name, kind = line.split()
        shape = "one"
        for prefix, named in (("[]", "list"), ("map:", "map"), (">", "inline")):
            if kind.startswith(prefix):
                kind, shape = kind.removeprefix(prefix), named
        current.fields[int(number)] = Field(int(number), name, kind.rstrip("!"), shape, kind.endswith("!"))
    return found


def message_of(api_version: str, kind: str) -> str:
    """The message of a kind: ("rbac.authorization.k8s.io/v1", "Role") is rbac.v1.Role."""
    group, _, version = api_version.rpartition("/")
    return f"{group.partition('.')[0] or 'core'}.{version}.{kind}"
