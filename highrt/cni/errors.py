"""What goes wrong with a pod's network."""


class CniError(Exception):
    """A plugin failed; the text names it and holds its own message. code: the plugin's (CNI specification, Error)."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class NotConfigured(CniError):
    """There is no usable network configuration yet; the text says where one is expected."""
