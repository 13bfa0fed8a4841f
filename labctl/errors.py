"""The closed list of what can go wrong; which HTTP status each becomes is a matter of the tree's dialect."""


class LabError(Exception):
    """Something went wrong."""

    def __init__(self, message: str | None = None, *, field: str | None = None) -> None:
        """``message`` defaults to the class's docstring; ``field`` names the offending input, if one does."""
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.field = field
        super().__init__(self.message)


class Invalid(LabError):
    """The request is not valid."""


class Unauthenticated(LabError):
    """Valid credentials are required."""

    def __init__(self, message: str | None = None, *, field: str | None = None, retry_after: int | None = None) -> None:
        """``retry_after``: for how many seconds no credential of this user is looked at."""
        super().__init__(message, field=field)
        self.retry_after = retry_after


class Forbidden(LabError):
    """This is not allowed."""


class NotFound(LabError):
    """There is no such thing."""


class Conflict(LabError):
    """This contradicts the present state."""


class Exhausted(LabError):
    """Not enough is free at the moment."""


class Unavailable(LabError):
    """The service cannot answer at the moment."""

    def __init__(self, message: str | None = None, *, field: str | None = None, retry_after: int = 5) -> None:
        """``retry_after`` is what the client is told to wait, in seconds."""
        super().__init__(message, field=field)
        self.retry_after = retry_after


class MethodNotAllowed(LabError):
    """This method is not allowed here."""

    def __init__(self, allowed: list[str]) -> None:
        """``allowed`` goes into the Allow header."""
        super().__init__(f"This method is not allowed here; allowed: {', '.join(allowed)}")
        self.allowed = allowed
