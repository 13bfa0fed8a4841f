"""Pages of a list: ``count`` and ``page`` as old clients ask, and a cursor that is as fast on the last page as on the first."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from labctl.errors import Invalid
from labctl.http import body
from labctl.http.resource import Request
from labctl.settings import Settings

DEFAULT_COUNT = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Page:
    """What part of a list is asked for: ``count`` rows, after ``offset`` rows or after the row at the cursor."""

    count: int = DEFAULT_COUNT
    offset: int = 0
    #: The time and the id of the last row seen.
    after: tuple[datetime, int] | None = None


def page_of(request: Request, settings: Settings) -> Page:
    """Read ``count``, ``page`` (from 1) and ``after``; raises :class:`Invalid` that says what is allowed."""
    if not request.environ.get("QUERY_STRING"):
        return Page()
    count = body.integer(request, "count", DEFAULT_COUNT, least=1, most=settings.max_count)
    page = body.integer(request, "page", 1, least=1, most=1_000_000)
    assert count is not None and page is not None
    cursor = body.text(request, "after")
    return Page(count, (page - 1) * count, None if cursor is None else _read(cursor))


def next_url(request: Request, page: Page, rows: int, last: tuple[datetime, int] | None) -> str | None:
    """Give the URL of the rows after ``last``, or None if there were fewer than asked for, so that the list is at its end."""
    if last is None or rows < page.count:
        return None
    query = {name: value for name, value in request.GET.items() if name != "page"}
    query["after"] = f"{(last[0] - _EPOCH) // _MICROSECOND}-{last[1]}"
    return f"{request.path_url}?{urlencode(query)}"


def _read(cursor: str) -> tuple[datetime, int]:
    time, dash, row = cursor.partition("-")
    if dash and time.isascii() and time.isdigit() and row.isascii() and row.isdigit() and len(cursor) < 40:
        try:
            at = _EPOCH + int(time) * _MICROSECOND
        except OverflowError:
            at = None
        if at is not None and int(row) < 2**63:
            return at, int(row)
    raise Invalid("must be a cursor out of a Link header", field="after")
