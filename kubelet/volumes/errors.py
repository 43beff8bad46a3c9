"""Why a volume cannot be made."""


class VolumeError(Exception):
    """Its text is shown to users in a FailedMount event."""
