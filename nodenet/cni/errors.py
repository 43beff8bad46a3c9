"""Errors as CNI reports them (spec, section 5, "Error")."""

INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIG = 7
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50
INTERNAL = 100
"""From 100 on codes are a plugin's own: what the kernel or another program refused."""
NO_ADDRESSES = 101
CHECK_FAILED = 102


class CniError(Exception):
    """A failure that goes to the caller. code: one of the above; message: short; details: what may help to end it."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details
