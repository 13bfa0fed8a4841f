"""What part of a list is asked for."""

from dataclasses import dataclass
from datetime import datetime

DEFAULT_COUNT = 100


@dataclass(frozen=True, slots=True)
class Page:
    """``count`` rows, after ``offset`` rows, or after the row at the cursor."""

    count: int = DEFAULT_COUNT
    offset: int = 0
    #: The time and the id of the last row seen.
    after: tuple[datetime, int] | None = None
