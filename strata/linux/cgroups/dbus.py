"""D-Bus, as far as a client of systemd needs it: calls, their answers, and signals, over a unix socket.

A codec of our own, because lowrt runs without site-packages, and starts in milliseconds: it needs nothing but a socket and the
dozen types of the wire. A variant is a pair (signature, value), a struct or dict entry a tuple, an array a list or bytes.

https://dbus.freedesktop.org/doc/dbus-specification.html
"""

import _socket
import os
import time
from _struct import calcsize, pack, pack_into, unpack_from

from strata.linux import namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Variant = tuple[str, Any]

_NUMBERS = {"y": "B", "b": "I", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d"}
"""Type → its letter in `struct`."""
_ALIGNMENT = {"y": 1, "b": 4, "n": 2, "q": 2, "i": 4, "u": 4, "x": 8, "t": 8, "d": 8, "s": 4, "o": 4, "g": 1, "a": 4, "v": 1,
              "(": 8, "{": 8}  # fmt: skip
_CALL, _RETURN, _ERROR, _SIGNAL = 1, 2, 3, 4
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _SENDER, _SIGNATURE = range(1, 9)
_LONGEST = 1 << 27  # a message that is longer breaks the specification
_CONNECT_TRIES = 7


class Refusal(OSError):
    """An error that the other side answers with. name: like org.freedesktop.systemd1.UnitExists."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text or name)
        self.name = name


class Message:
    """A message that was received. fields: of its header, by number."""

    def __init__(self, kind: int, fields: "dict[int, Any]", arguments: "list[Any]") -> None:
        self.kind, self.fields, self.arguments = kind, fields, arguments


class Connection:
    """To a message bus, or (without `bus`) straight to a peer. Every wait ends after `seconds`, with TimeoutError."""

    def __init__(self, address: str, *, bus: bool, seconds: float = 30.0) -> None:
        """address: as in DBUS_SYSTEM_BUS_ADDRESS; the first that can be connected to. Raises OSError."""
        self._seconds, self._serial, self._received = seconds, 0, b""
        self.signals: list[Message] = []
        self._socket = _connect(address, seconds)
        try:
            self._authenticate()
            if bus:
                self.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def call(
        self, destination: str, path: str, interface: str, member: str, signature: str = "", *arguments: "Any"
    ) -> "list[Any]":  # fmt: skip
        """Calls a method and returns what it answers. Raises Refusal, OSError."""
        self._serial += 1
        fields = [
            (_PATH, ("o", path)), (_INTERFACE, ("s", interface)), (_MEMBER, ("s", member)), (_DESTINATION, ("s", destination)),
        ]  # fmt: skip
        if signature:
            fields.append((_SIGNATURE, ("g", signature)))
        self._socket.sendall(encode(_CALL, self._serial, fields, signature, arguments))
        deadline = time.monotonic() + self._seconds
        while True:
            message = self._read_message(deadline)
            if message.kind == _SIGNAL:
                self.signals.append(message)
            elif message.fields.get(_REPLY_SERIAL) == self._serial:
                if message.kind == _ERROR:
                    texts = [text for text in message.arguments if isinstance(text, str)]
                    raise Refusal(message.fields.get(_ERROR_NAME, ""), texts[0] if texts else "")
                return message.arguments

    def wait_for_signal(self, member: str, first: int, value: "Any") -> "list[Any]":
        """The arguments of the next signal of that name whose argument number `first` is `value`, also one from before."""
        deadline = time.monotonic() + self._seconds
        while True:
            while self.signals:
                message = self.signals.pop(0)
                arguments = message.arguments
                if message.fields.get(_MEMBER) == member and len(arguments) > first and arguments[first] == value:
                    return arguments
            message = self._read_message(deadline)
            if message.kind == _SIGNAL:
                self.signals.append(message)

    def _authenticate(self) -> None:
        """By what the kernel tells the other side of this process (EXTERNAL, RFC 4422); in a user namespace without naming a
        user, as the number would be another one there.

        All of it in one go, as systemd's own clients do: what its server reads together with the last line, as it may when a
        call follows at once, it does not look at before more comes.
        """
        name = f" {str(os.geteuid()).encode().hex()}" if namespaces.in_first_user_namespace() else "\r\nDATA"
        self._socket.sendall(f"\0AUTH EXTERNAL{name}\r\nBEGIN\r\n".encode())
        deadline = time.monotonic() + self._seconds
        while (answer := self._read_line(deadline)).startswith(b"DATA"):
            continue
        if not answer.startswith(b"OK"):
            raise PermissionError(13, f"D-Bus does not accept this user: {answer.decode(errors='replace')}")

    def _read_line(self, deadline: float) -> bytes:
        while b"\r\n" not in self._received:
            self._receive(deadline)
        line, _, self._received = self._received.partition(b"\r\n")
        return line

    def _read_message(self, deadline: float) -> Message:
        while len(self._received) < 16 or len(self._received) < (size := message_size(self._received)):
            self._receive(deadline)
        data, self._received = self._received[:size], self._received[size:]
        return decode(data)

    def _receive(self, deadline: float) -> None:
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = self._socket.recv(65536)
        except TimeoutError:
            raise TimeoutError(110, f"D-Bus does not answer within {self._seconds:.0f} s") from None
        if not data:
            raise ConnectionResetError(104, "D-Bus has closed the connection")
        self._received += data


def _connect(addresses: str, seconds: float) -> "_socket.socket":
    failed: OSError = FileNotFoundError(2, f"no D-Bus address that can be used: {addresses!r}")
    for address in addresses.split(";"):
        transport, _, pairs = address.partition(":")
        options = dict(pair.partition("=")[::2] for pair in pairs.split(","))
        name = _unescape(options["path"]) if "path" in options else "\0" + _unescape(options.get("abstract", ""))
        if transport != "unix" or name == "\0":
            continue
        for attempt in range(_CONNECT_TRIES):
            sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
            sock.settimeout(seconds)
            try:
                sock.connect(name)
                return sock
            except BlockingIOError as error:  # as many are waiting as may
                failed = OSError(error.errno, f"connect to {address}: {error.strerror}")
                sock.close()
                time.sleep(0.1 * 2**attempt)
            except OSError as error:
                failed = OSError(error.errno, f"connect to {address}: {error.strerror}")
                sock.close()
                break
    raise failed


def _unescape(text: str) -> str:
    """A value of an address: %2d is a byte."""
    first, *rest = text.split("%")
    return first + "".join(chr(int(part[:2], 16)) + part[2:] for part in rest)


# --- messages


def encode(kind: int, serial: int, fields: "list[tuple[int, Variant]]", signature: str, arguments: "tuple[Any, ...]") -> bytes:
    """A whole message, in little endian. fields: of the header, (number, variant)."""
    body = bytearray()
    for one, argument in zip(split(signature), arguments, strict=True):
        _put(body, one, argument)
    message = bytearray(pack("<BBBBII", ord("l"), kind, 0, 1, len(body), serial))
    _put(message, "a(yv)", fields)
    _align(message, 8)
    return bytes(message + body)


def message_size(data: bytes) -> int:
    """The length of the message that begins so, of which 16 bytes must be there. Raises OSError for what is no message."""
    order = "<" if data[0] == ord("l") else ">"
    body, _, fields = unpack_from(f"{order}III", data, 4)
    size: int = (16 + fields + 7) // 8 * 8 + body
    if data[0] not in b"lB" or size > _LONGEST:
        raise OSError(74, "what D-Bus sends is no message")
    return size


def decode(data: bytes) -> Message:
    """A whole message. Raises OSError."""
    reader = _Reader(data, "<" if data[0] == ord("l") else ">")
    try:
        reader.place = 12
        fields = {number: value for number, (_, value) in reader.take("a(yv)")}
        reader.align(8)
        return Message(data[1], fields, [reader.take(one) for one in split(fields.get(_SIGNATURE, ""))])
    except (ValueError, KeyError, IndexError, ArithmeticError, TypeError) as error:
        raise OSError(74, f"what D-Bus sends is no message: {error}") from None


def split(signature: str) -> list[str]:
    """The complete types of a signature: a(sv)u is a(sv), u."""
    found, place = [], 0
    while place < len(signature):
        end = _end(signature, place)
        found.append(signature[place:end])
        place = end
    return found


def _end(signature: str, place: int) -> int:
    """Where the type that begins there ends. Raises ValueError."""
    if place >= len(signature):
        raise ValueError(f"signature {signature!r} ends too early")
    letter = signature[place]
    if letter == "a":
        return _end(signature, place + 1)
    if letter in "({":
        close = ")" if letter == "(" else "}"
        place += 1
        while signature[place : place + 1] != close:
            place = _end(signature, place)
        return place + 1
    if letter not in _ALIGNMENT:
        raise ValueError(f"signature {signature!r}: no type {letter!r}")
    return place + 1


def _align(out: bytearray, to: int) -> None:
    out += bytes(-len(out) % to)


def _put(out: bytearray, kind: str, value: "Any") -> None:
    letter = kind[0]
    _align(out, _ALIGNMENT[letter])
    if letter in _NUMBERS:
        out += pack("<" + _NUMBERS[letter], value)
    elif letter in "so":
        data = value.encode()
        out += pack("<I", len(data)) + data + b"\0"
    elif letter == "g":
        out += pack("B", len(value)) + value.encode() + b"\0"
    elif letter == "v":
        _put(out, "g", value[0])
        _put(out, value[0], value[1])
    elif letter == "a":
        place = len(out)
        out += bytes(4)
        _align(out, _ALIGNMENT[kind[1]])
        start = len(out)
        for item in value:
            _put(out, kind[1:], item)
        pack_into("<I", out, place, len(out) - start)
    else:
        for one, item in zip(split(kind[1:-1]), value, strict=True):
            _put(out, one, item)


class _Reader:
    def __init__(self, data: bytes, order: str) -> None:
        self._data, self._order, self.place = data, order, 0

    def align(self, to: int) -> None:
        self.place += -self.place % to

    def take(self, kind: str) -> "Any":
        letter = kind[0]
        self.align(_ALIGNMENT[letter])
        if letter in _NUMBERS:
            number = self._number(_NUMBERS[letter])
            return bool(number) if letter == "b" else number
        if letter in "sog":
            return self._text(self._number("B" if letter == "g" else "I"))
        if letter == "v":
            inner = self.take("g")
            return inner, self.take(inner)
        if letter == "a":
            size = self._number("I")
            self.align(_ALIGNMENT[kind[1]])
            end = self.place + size
            if end > len(self._data):
                raise ValueError("an array is longer than its message")
            found = []
            while self.place < end:
                found.append(self.take(kind[1:]))
            return found
        return tuple(self.take(one) for one in split(kind[1:-1]))

    def _number(self, form: str) -> "Any":
        size = calcsize(form)
        if self.place + size > len(self._data):
            raise ValueError("it ends too early")
        (number,) = unpack_from(self._order + form, self._data, self.place)
        self.place += size
        return number

    def _text(self, size: int) -> str:
        data = self._data[self.place : self.place + size]
        if len(data) < size:
            raise ValueError("it ends too early")
        self.place += size + 1
        return data.decode()
