"""JSON at the cost of its C half: the json module takes 9 ms to import, what it wraps takes none.

The private C functions are those that json itself uses since Python 2.7; where they are missing, json serves.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    import _json

    class _Context:
        """What the C scanner asks for (json.decoder.JSONDecoder has the same attributes)."""

        strict = True
        object_hook = object_pairs_hook = None
        parse_float, parse_int = float, int

        def __init__(self) -> None:
            self.memo: dict[str, str] = {}

        @staticmethod
        def parse_constant(name: str) -> None:
            raise ValueError(f"{name} is not allowed in JSON")

    _scan = _json.make_scanner(_Context())  # type: ignore[arg-type]

    def loads(text: str) -> "Any":
        """Parses JSON. Raises ValueError, with the place, for text that is none."""
        start = len(text) - len(text.lstrip(" \t\r\n"))
        try:
            value, end = _scan(text, start)
        except StopIteration as stop:
            raise ValueError(f"expecting a value at character {stop.value}") from None
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
    from json import dumps, loads  # type: ignore[assignment]  # noqa: F401
