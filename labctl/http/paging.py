"""Pages of a list: ``count`` and ``page`` as old clients ask, and a cursor that is as fast on the last page."""

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from labctl.errors import Invalid
from labctl.http import body
from labctl.http.resource import Request
from labctl.paging import DEFAULT_COUNT, Page
from labctl.settings import Settings

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Microseconds since the epoch, or before it, and an id.
_CURSOR = re.compile(r"(-?[0-9]{1,18})-([0-9]{1,18})")
_MICROSECOND = timedelta(microseconds=1)


def page_of(request: Request, settings: Settings) -> Page:
    """Read ``count``, ``page`` (from 1) and ``after``; raises :class:`Invalid` that says what is allowed."""
    if not request.environ.get("QUERY_STRING"):
        return Page()
    count = body.integer(request, "count", DEFAULT_COUNT, least=1, most=settings.max_count)
    page = body.integer(request, "page", 1, least=1, most=1_000_000)
    assert count is not None and page is not None
    cursor = body.text(request, "after")
    return Page(count, (page - 1) * count, None if cursor is None else _read(cursor))


def next_url(request: Request, page: Page, rows: int, last: tuple[datetime, int] | None, **instead: str) -> str | None:
    """Give the URL of the rows after ``last``, or None if there were fewer than asked for: the list ends there.

    ``instead`` are parameters of the query that must say something else there.
    """
    if last is None or rows < page.count:
        return None
    return url_with(request, **instead, after=f"{(last[0] - _EPOCH) // _MICROSECOND}-{last[1]}")


def url_with(request: Request, **instead: str) -> str:
    """Give the URL that was asked for with other parameters, and without ``page``."""
    query = {name: value for name, value in {**request.query, **instead}.items() if name != "page"}
    return f"{request.own_url()}?{urlencode(query, errors='surrogateescape')}"


def _read(cursor: str) -> tuple[datetime, int]:
    if match := _CURSOR.fullmatch(cursor):
        with suppress(OverflowError):
            return _EPOCH + int(match[1]) * _MICROSECOND, int(match[2])
    raise Invalid("must be a cursor out of a Link header", field="after")
