"""What goes wrong, with the step it went wrong in: `mount proc on /proc: permission denied`."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from strata.linux.descriptors import Socket


class RuntimeFailure(Exception):
    """A command's failure; the text is for people. status: the command's exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def reason(error: BaseException) -> str:
    """Why it failed, in lower case as the field writes it, without Python's decoration."""
    if isinstance(error, OSError) and error.errno:
        text = error.strerror or os.strerror(error.errno)
        if text == os.strerror(error.errno):
            text = text[:1].lower() + text[1:]
        return f"{error.filename}: {text}" if error.filename else text
    return str(error) or type(error).__name__


def send_failure(report: "Socket", error: BaseException) -> None:
    """Sends what failed to whoever waits for it."""
    status = error.status if isinstance(error, RuntimeFailure) else 1
    try:
        # write(2), because a seccomp filter that is on already has it more often than sendto(2).
        os.write(report.fileno(), b"e%d " % status + reason(error).encode(errors="surrogateescape"))
    except OSError:
        pass


def received_failure(message: bytes) -> RuntimeFailure:
    """The failure that `send_failure` sent."""
    status, _, text = message[1:].partition(b" ")
    return RuntimeFailure(f"unable to start container process: {text.decode(errors='replace')}", int(status or b"1"))
