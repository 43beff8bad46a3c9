"""JSON at the cost of its C half: the json module takes 9 ms to import, what it wraps takes none.

The private C functions are those that json itself uses since Python 2.7; where they are missing, json serves.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _as_object(pairs: "list[tuple[str, Any]]") -> "dict[str, Any]":
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!a} is given twice in one object")
    return values


try:
    import _json

    class _Context:
        """What the C scanner asks for (json.decoder.JSONDecoder has the same attributes)."""

        strict = True
        object_hook = None
        parse_float, parse_int = float, int

        def __init__(self, pairs_hook: "Any" = None) -> None:
            self.memo: dict[str, str] = {}
            self.object_pairs_hook = pairs_hook

        @staticmethod
        def parse_constant(name: str) -> None:
            raise ValueError(f"{name} is not allowed in JSON")

    _scan = _json.make_scanner(_Context())  # type: ignore[arg-type]
    _scan_once = _json.make_scanner(_Context(_as_object))  # type: ignore[arg-type]

    def loads(text: str) -> "Any":
        """Parses JSON. Raises ValueError, with the place, for text that is none."""
        return _load(text, _scan)

    def loads_once(text: str) -> "Any":
        """The same, and refuses an object that has a name twice: whoever checks such a text may read another than who uses it."""
        return _load(text, _scan_once)

    def _load(text: str, scan: "Any") -> "Any":
        start = len(text) - len(text.lstrip(" \t\r\n"))
        try:
            value, end = scan(text, start)
        except StopIteration as stop:
            raise ValueError(f"expecting a value at character {stop.value}") from None
        except SystemError:  # what the C half raises for most faults is of the json module, which is not loaded
            import json

            json.loads(text)
            raise
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if text[end:].strip(" \t\r\n"):
            raise ValueError(f"extra data at character {end}")
        return value

    _encode = _json.make_encoder(None, None, _json.encode_basestring_ascii, None, ":", ",", False, False, False)  # type: ignore[arg-type]

    def dumps(value: "Any") -> str:
        """The value as JSON."""
        return "".join(_encode(value, 0))

except (ImportError, AttributeError, TypeError):
    from json import dumps, loads  # type: ignore[assignment]

    def loads_once(text: str) -> "Any":
        return loads(text, object_pairs_hook=_as_object)  # type: ignore[call-arg]


def pretty(value: "Any", indent: str, at: str = "\n") -> str:
    """The value as JSON for people, a member a line. at: what begins a line, for this value's closing bracket."""
    inner = at + indent
    if isinstance(value, dict) and value:
        members = [f"{dumps(name)}: {pretty(member, indent, inner)}" for name, member in value.items()]
        return "{" + inner + f",{inner}".join(members) + at + "}"
    if isinstance(value, list | tuple) and value:
        return "[" + inner + f",{inner}".join([pretty(member, indent, inner) for member in value]) + at + "]"
    return dumps(value)
