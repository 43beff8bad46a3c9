"""The monitor's wire: frames in pieces, and what is no frame."""

import pytest

from highrt.monitor import wire


def test_frames_may_come_in_any_pieces() -> None:
    messages = [{"id": "1", "do": "start"}, {"text": "ä\n\x00\udc80", "n": [1, 2.5, None, True]}, {}]
    data = b"".join(wire.frame(message) for message in messages)
    for size in (1, 3, len(data)):
        decoder, found = wire.Decoder(), []
        for start in range(0, len(data), size):
            found += decoder.feed(data[start : start + size])
        assert found == messages


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02[]", b"\x00\x00\x00\x01x"])
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.Decoder().feed(data)


def test_a_message_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(wire.WireError, match="longer"):
        wire.frame({"text": "x" * wire.MAX_FRAME_BYTES})
