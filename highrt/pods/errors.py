"""What the manager's callers are told. Each has a text for people; CRI maps the classes to gRPC codes of the same names."""


class PodError(Exception):
    """Something failed inside; the text says what."""


class NotFound(PodError):
    """There is no pod or container of that ID."""


class AlreadyExists(PodError):
    """The name is taken; the text names by whom."""


class FailedPrecondition(PodError):
    """The pod or container is in a state that does not allow it."""


class InvalidArgument(PodError):
    """The request itself is wrong; the text says what to change."""


class TooSlow(PodError):
    """A reader of events does not keep up."""
