"""The wire between highrt and a monitor: frames of JSON on a unix stream socket (docs/highrt.md, "The monitor's wire").

A frame is its length (4 bytes, big endian) and that many bytes of JSON. Descriptors travel with the first byte of the frame
that announces them in `fds`. JSON goes through the C half of the json module, whose Python half would cost every monitor
a megabyte; the private functions are those that json itself has used since Python 2.7, and where they are missing, json serves.
"""

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSIONS = (1, 1)
"""The oldest and the newest version of the protocol that this code speaks."""

MAX_FRAME_BYTES = 16 << 20
MAX_DESCRIPTORS = 8
_HEAD = struct.Struct(">I")


class WireError(Exception):
    """What came over the socket is not the protocol."""


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
    _encode = _json.make_encoder(None, None, _json.encode_basestring_ascii, None, ":", ",", False, False, False)  # type: ignore[arg-type]

    def loads(text: str) -> "Any":
        """Parses JSON. Raises ValueError."""
        try:
            value, end = _scan(text, 0)
        except (StopIteration, RecursionError):
            raise ValueError("not JSON") from None
        if text[end:].strip(" \t\r\n"):
            raise ValueError(f"extra data at character {end}")
        return value

    def dumps(value: "Any") -> str:
        """The value as JSON, in ASCII."""
        return "".join(_encode(value, 0))

except (ImportError, AttributeError, TypeError):
    from json import dumps, loads  # type: ignore[assignment]


def frame(message: "dict[str, Any]") -> bytes:
    """A message as it goes over the socket. Raises WireError for one that is too long."""
    data = dumps(message).encode()
    if len(data) > MAX_FRAME_BYTES:
        raise WireError(f"a message of {len(data)} bytes is longer than the {MAX_FRAME_BYTES} that a frame may have")
    return _HEAD.pack(len(data)) + data


class Decoder:
    """Puts messages together from the pieces that a stream delivers."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> "list[dict[str, Any]]":
        """The messages that are complete now. Raises WireError."""
        self._buffer += data
        found = []
        while len(self._buffer) >= _HEAD.size:
            (length,) = _HEAD.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise WireError(f"a frame of {length} bytes is announced: more than {MAX_FRAME_BYTES}")
            end = _HEAD.size + length
            if len(self._buffer) < end:
                break
            try:
                message = loads(self._buffer[_HEAD.size : end].decode())
            except ValueError as error:
                raise WireError(f"a frame is no JSON: {error}") from None
            if not isinstance(message, dict):
                raise WireError("a frame holds no JSON object")
            del self._buffer[:end]
            found.append(message)
        return found
