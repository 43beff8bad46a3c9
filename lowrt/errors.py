"""What goes wrong, with the step it went wrong in: `mount proc on /proc: permission denied`."""

import os


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
