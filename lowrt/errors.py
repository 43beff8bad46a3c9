"""What goes wrong, with the step it went wrong in: `mount proc on /proc: permission denied`."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from strata.linux.descriptors import Socket


class RuntimeFailure(Exception):
    """A command's failure; the text is for people. evidence: what `diagnosis` can explain it by, outside of the container.
    number: the errno of the system call that failed, for whoever can do something about it."""

    evidence = b""
    number = 0


class UsageFailure(RuntimeFailure):
    """A command line that cannot be understood. command: whose help to show, "" for that of lowrt."""

    def __init__(self, command: str, message: str) -> None:
        super().__init__(message)
        self.command = command


def reason(error: BaseException) -> str:
    """Why it failed, in lower case as the field writes it, without Python's decoration."""
    if isinstance(error, OSError) and error.errno:
        text = error.strerror or os.strerror(error.errno)
        if text == os.strerror(error.errno):
            text = text[:1].lower() + text[1:]
        return f"{error.filename}: {text}" if error.filename else text
    return str(error) or type(error).__name__


_step = ""


def step(name: str) -> None:
    """Names what is done from here on, for the failure of a call that says no more than why it failed."""
    global _step
    _step = name


def reason_in_step(error: BaseException) -> str:
    """The reason, and where nobody has worded it yet, what was being done: `join the network namespace: invalid argument`."""
    return f"{_step}: {reason(error)}" if _step and isinstance(error, OSError) else reason(error)


def send_failure(report: "Socket", error: BaseException) -> None:
    """Sends what failed to whoever waits for it."""
    try:
        # write(2), because a seccomp filter that is on already has it more often than sendto(2).
        evidence = error.evidence if isinstance(error, RuntimeFailure) else b""
        os.write(report.fileno(), b"e%b\0%b" % (reason_in_step(error).encode(errors="surrogateescape"), evidence))
    except OSError:
        pass


def received_text(message: bytes) -> str:
    """What failed, of a failure that `send_failure` sent."""
    return message[1:].partition(b"\0")[0].decode(errors="surrogateescape")


def received_failure(message: bytes, during: str = "") -> RuntimeFailure:
    """The failure that `send_failure` sent. during: at what it happened."""
    text, evidence = received_text(message), message.partition(b"\0")[2]
    why = ""
    if evidence:
        from lowrt import diagnosis

        why = diagnosis.of_exec(evidence)
    return RuntimeFailure(f"unable to start container process: {during}{text}{why}")
