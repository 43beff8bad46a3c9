"""The signal that asks a container to end: CRI's, else the image's, else SIGTERM."""

import signal

from strata.protocols import cri_pb2
from strata.protocols.cri_pb2 import Signal

_FROM_MIN = 15  # of real-time signals, those up to here are counted from the first, the rest from the last


def stop_signal(asked: int, of_image: str) -> int:
    """asked: CRI's stop_signal. of_image: `StopSignal` of its configuration, a name with or without SIG, or a number."""
    if asked != Signal.SIGNAL_RUNTIME_DEFAULT:
        return number(Signal.Name(asked).removeprefix("SIGNAL_"))
    return number(of_image) if of_image else int(signal.SIGTERM)


def of_number(found: int) -> Signal:
    """CRI's signal of a number; RUNTIME_DEFAULT for one that has none there."""
    offset = found - signal.SIGRTMIN
    if offset < 0:
        name = signal.Signals(found).name if found in [*signal.Signals] else ""
    elif offset <= _FROM_MIN:
        name = f"SIGRTMINPLUS{offset}" if offset else "SIGRTMIN"
    else:
        name = f"SIGRTMAXMINUS{signal.SIGRTMAX - found}" if found < signal.SIGRTMAX else "SIGRTMAX"
    known: Signal = getattr(cri_pb2, f"SIGNAL_{name}", Signal.SIGNAL_RUNTIME_DEFAULT)
    return known


def number(text: str) -> int:
    """A signal by number or name, RTMIN+3 and CRI's RTMINPLUS3 too; SIGTERM where there is no such one."""
    name = text.upper().removeprefix("SIG").replace("PLUS", "+").replace("MINUS", "-")
    if name.isdigit():
        return int(name) if 0 < int(name) < signal.NSIG else int(signal.SIGTERM)
    for base, start in (("RTMIN", signal.SIGRTMIN), ("RTMAX", signal.SIGRTMAX)):
        rest = name.removeprefix(base)
        if rest != name and (not rest or rest[1:].isdigit()):
            return int(start) + int(rest or 0)
    found = getattr(signal, f"SIG{name}", None)
    return int(found) if isinstance(found, signal.Signals) else int(signal.SIGTERM)
