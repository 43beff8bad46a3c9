"""SPDY/3.1 framing: several streams over one connection, as Kubernetes' streaming commands use it.

exec, attach and port-forward of older clients upgrade a connection to SPDY/3.1; newer ones tunnel the same bytes through
WebSocket messages. Both come here as a `Channel`. Of the protocol (SPDY draft 3.1) this has what those clients send:
SYN_STREAM, SYN_REPLY, RST_STREAM, DATA, HEADERS, PING, GOAWAY; SETTINGS and WINDOW_UPDATE are read and left alone, because
the peers neither send credit nor wait for it. Back-pressure is the connection's own: a stream that nobody reads holds the
reading of the connection up.
"""

import asyncio
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Protocol

SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9
FLAG_FIN = 1
PROTOCOL_ERROR, INVALID_STREAM, REFUSED_STREAM, CANCEL = 1, 2, 3, 5

_VERSION = 3
_FRAME_LIMIT = 1024 * 1024
_HEADER_LIMIT = 64 * 1024
_DATA_CHUNK = 32 * 1024
_STREAM_LIMIT = 1000
_UNREAD_LIMIT = 256 * 1024

_NAMES = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length content-location "
    "content-md5 content-range content-type date etag expect expires from host if-match if-modified-since if-none-match "
    "if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate proxy-authorization range "
    "referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get "
    "status 200_OK version HTTP/1.1 url public set-cookie keep-alive origin"
)
_REST = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden"
    "404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,"
    "publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = (
    b"".join(struct.pack(">I", len(name)) + name.replace("_", " ").encode() for name in _NAMES.split(" ")) + _REST.encode()
)
"""What the compression of headers starts from (SPDY draft 3, section 2.6.10.1)."""


class SpdyError(Exception):
    """The peer broke the protocol, or the connection is gone."""


class Channel(Protocol):
    """The connection beneath: a stream of bytes."""

    async def read(self) -> bytes:
        """Some bytes; none at the end."""

    async def write(self, data: bytes) -> None:
        """Raises OSError where the peer is gone."""

    async def close(self) -> None:
        """Sends what was written, then ends the connection."""


class Stream:
    """One stream. Each direction is closed on its own: `read` returns nothing after the peer's end, `close` ends ours."""

    def __init__(self, connection: "Connection", stream_id: int, headers: Mapping[str, str]) -> None:
        self.id = stream_id
        self.headers = headers
        self._connection = connection
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._remote_closed = self._local_closed = False
        self._reset = False

    async def read(self) -> bytes:
        """Some bytes of the peer's; none when it has closed its side. Raises SpdyError when it has reset the stream."""
        while not self._unread:
            if self._reset:
                raise SpdyError(f"stream {self.id} was reset")
            if self._remote_closed:
                return b""
            self._changed.clear()
            await self._changed.wait()
        data = b"".join(self._unread)
        self._unread.clear()
        self._unread_bytes = 0
        self._room.set()
        return data

    async def write(self, data: bytes) -> None:
        """Raises SpdyError where either side has ended the stream, OSError where the connection is gone."""
        for start in range(0, len(data), _DATA_CHUNK):
            if self._local_closed or self._reset:
                raise SpdyError(f"stream {self.id} is closed")
            await self._connection.send_data(self.id, data[start : start + _DATA_CHUNK])

    async def close(self) -> None:
        """Ends our side; what the peer still sends can be read."""
        if not self._local_closed and not self._reset:
            self._local_closed = True
            await self._connection.send_data(self.id, b"", fin=True)
            self._connection.forget_if_done(self)

    async def reset(self, status: int = CANCEL) -> None:
        """Ends both sides at once."""
        if not self.done:
            self.end(reset=True)
            await self._connection.send_reset(self.id, status)
            self._connection.forget_if_done(self)

    @property
    def done(self) -> bool:
        return self._reset or (self._local_closed and self._remote_closed)

    async def deliver(self, data: bytes) -> None:
        """For the connection: hands received bytes over, and waits while too many are unread."""
        if data and not self._remote_closed and not self._reset:
            self._unread.append(data)
            self._unread_bytes += len(data)
            self._changed.set()
            if self._unread_bytes > _UNREAD_LIMIT:
                self._room.clear()
                await self._room.wait()

    def end(self, *, reset: bool = False) -> None:
        """For the connection: the peer has closed its side, or reset the stream."""
        self._remote_closed = True
        self._reset = self._reset or reset
        self._changed.set()
        self._room.set()


class Connection:
    """Both ends of a SPDY connection.

    channel: the bytes. on_stream: called with each stream that the peer opens, before its data; it must not block.
    server: which stream numbers are the peer's (clients open odd ones).
    """

    def __init__(self, channel: Channel, on_stream: Callable[[Stream], None] | None = None, *, server: bool = True) -> None:
        self._channel = channel
        self._on_stream = on_stream
        self._next_id = 2 if server else 1
        self._peer_parity = 1 if server else 0
        self._last_peer_id = 0
        self._streams: dict[int, Stream] = {}
        self._deflate = zlib.compressobj(wbits=15, zdict=DICTIONARY)
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._sending = asyncio.Lock()
        self._gone = False

    async def run(self) -> None:
        """Reads frames until the peer ends the connection; all streams are ended then.

        Raises SpdyError where the peer breaks the protocol, OSError where the connection breaks.
        """
        buffer = bytearray()
        try:
            while data := await self._channel.read():
                buffer += data
                while len(buffer) >= 8:
                    first, second = struct.unpack_from(">II", buffer)
                    flags, length = second >> 24, second & 0xFFFFFF
                    if length > _FRAME_LIMIT:
                        raise SpdyError(f"a frame of {length} bytes is longer than the limit of {_FRAME_LIMIT}")
                    if len(buffer) < 8 + length:
                        break
                    payload = bytes(buffer[8 : 8 + length])
                    del buffer[: 8 + length]
                    if first >> 31:
                        if first >> 16 & 0x7FFF != _VERSION:
                            raise SpdyError(f"SPDY version {first >> 16 & 0x7FFF} is not spoken here, only {_VERSION}")
                        if (first & 0xFFFF) == GOAWAY:
                            return
                        await self._control(first & 0xFFFF, flags, payload)
                    else:
                        await self._data(first, flags, payload)
        except (struct.error, zlib.error, UnicodeDecodeError) as error:
            raise SpdyError(f"a frame cannot be read: {error}") from error
        finally:
            self._gone = True
            for stream in self._streams.values():
                stream.end()
            self._streams.clear()

    async def open(self, headers: Mapping[str, str]) -> Stream:
        """Opens a stream with these headers."""
        async with self._sending:
            stream_id = self._next_id
            self._next_id += 2
            stream = self._streams[stream_id] = Stream(self, stream_id, dict(headers))
            body = struct.pack(">IIH", stream_id, 0, 0) + self._packed(headers)
            await self._channel.write(_control_frame(SYN_STREAM, 0, body))
        return stream

    async def ping(self, ping_id: int) -> None:
        await self._send(PING, struct.pack(">I", ping_id))

    async def close(self) -> None:
        """Says that no more streams are taken, sends what is under way, and ends the connection."""
        for stream in self._streams.values():
            stream.end()
        if not self._gone:
            self._gone = True
            await self._send(GOAWAY, struct.pack(">II", self._last_peer_id, 0))
        await self._channel.close()

    async def send_data(self, stream_id: int, data: bytes, *, fin: bool = False) -> None:
        async with self._sending:
            await self._channel.write(struct.pack(">II", stream_id, (FLAG_FIN if fin else 0) << 24 | len(data)) + data)

    async def send_reset(self, stream_id: int, status: int) -> None:
        await self._send(RST_STREAM, struct.pack(">II", stream_id, status))

    def forget_if_done(self, stream: Stream) -> None:
        if stream.done:
            self._streams.pop(stream.id, None)

    async def _send(self, kind: int, payload: bytes) -> None:
        async with self._sending:
            await self._channel.write(_control_frame(kind, 0, payload))

    async def _data(self, stream_id: int, flags: int, payload: bytes) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            # Data may cross our reset or close on the way: only a stream that never was is an error of the peer's.
            if stream_id > self._last_peer_id:
                await self.send_reset(stream_id, INVALID_STREAM)
            return
        await stream.deliver(payload)
        if flags & FLAG_FIN:
            stream.end()
            self.forget_if_done(stream)

    async def _control(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == SYN_STREAM:
            await self._syn_stream(flags, payload)
        elif kind in (SYN_REPLY, HEADERS):
            (stream_id,) = struct.unpack_from(">I", payload)
            # Unpacked even where nobody wants them: the compression's state runs on from block to block.
            self._unpacked(payload[4:])
            if flags & FLAG_FIN and (stream := self._streams.get(stream_id)):
                stream.end()
                self.forget_if_done(stream)
        elif kind == RST_STREAM:
            (stream_id,) = struct.unpack_from(">I", payload)
            if stream := self._streams.pop(stream_id, None):
                stream.end(reset=True)
        elif kind == PING:
            (ping_id,) = struct.unpack(">I", payload)
            if ping_id % 2 == self._peer_parity:
                await self._send(PING, payload)
        elif kind not in (SETTINGS, WINDOW_UPDATE):
            raise SpdyError(f"unknown control frame {kind}")

    async def _syn_stream(self, flags: int, payload: bytes) -> None:
        stream_id = struct.unpack_from(">I", payload)[0] & 0x7FFFFFFF
        headers = self._unpacked(payload[10:])
        if stream_id % 2 != self._peer_parity or stream_id <= self._last_peer_id:
            raise SpdyError(f"stream number {stream_id} does not follow {self._last_peer_id}")
        self._last_peer_id = stream_id
        if self._on_stream is None or len(self._streams) >= _STREAM_LIMIT:
            await self.send_reset(stream_id, REFUSED_STREAM)
            return
        stream = self._streams[stream_id] = Stream(self, stream_id, headers)
        async with self._sending:
            body = struct.pack(">I", stream_id) + self._packed({})
            await self._channel.write(_control_frame(SYN_REPLY, 0, body))
        if flags & FLAG_FIN:
            stream.end()
        self._on_stream(stream)

    def _packed(self, headers: Mapping[str, str]) -> bytes:
        block = struct.pack(">I", len(headers))
        for name, value in headers.items():
            for text in (name.lower().encode(), value.encode()):
                block += struct.pack(">I", len(text)) + text
        return self._deflate.compress(block) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def _unpacked(self, packed: bytes) -> dict[str, str]:
        block = self._inflate.decompress(packed, _HEADER_LIMIT)
        if self._inflate.unconsumed_tail:
            raise SpdyError(f"headers of more than {_HEADER_LIMIT} bytes")
        texts: list[str] = []
        (count,) = struct.unpack_from(">I", block)
        at = 4
        for _ in range(2 * count):
            (length,) = struct.unpack_from(">I", block, at)
            if at + 4 + length > len(block):
                raise SpdyError("a header is longer than its block")
            texts.append(block[at + 4 : at + 4 + length].decode())
            at += 4 + length
        return dict(zip(texts[::2], texts[1::2], strict=True))


def _control_frame(kind: int, flags: int, payload: bytes) -> bytes:
    return struct.pack(">II", 0x80000000 | _VERSION << 16 | kind, flags << 24 | len(payload)) + payload
