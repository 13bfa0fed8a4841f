"""``/api/events``: the log, page by page or as it grows."""

from typing import Any
from urllib.parse import urlencode

from labctl.db import reading
from labctl.events import queries
from labctl.events.wire import event_to_wire
from labctl.http import body, render
from labctl.http.resource import Mount, Request, Resource
from labctl.http.waiting import Waiting
from labctl.settings import Settings

_MOST = 2**63 - 1


class EventsController(Resource):
    """The log of events, for those with the right to read it."""

    def __init__(self, settings: Settings, mount: Mount, waiting: Waiting) -> None:
        """Take what applies to this mount, and the places for requests that wait."""
        self.settings = settings
        self.mount = mount
        self.waiting = waiting

    def get(self, request: Request) -> Any:
        """List events after ``after=SEQ``, of one ``kind=`` or ``subject=``; ``wait=SECONDS`` waits for the first one.

        ``next`` is the number to go on from.
        """
        seq = body.integer(request, "after", 0, least=0, most=_MOST)
        limit = body.integer(request, "limit", 100, least=1, most=1000)
        kind, subject = body.text(request, "kind"), body.text(request, "subject")
        assert seq is not None and limit is not None

        def find() -> list[dict[str, Any]]:
            with reading() as session:
                found = queries.after(session, seq, kind=kind, subject=subject, limit=limit)
                return [event_to_wire(event) for event in found]

        events = self.waiting.until(find, request)
        following = events[-1]["seq"] if events else seq
        query = {**request.query, "after": following}
        more = f"{request.base_url()}?{urlencode(query, errors='surrogateescape')}" if len(events) == limit else None
        return render.with_next({"events": events, "next": following}, more)
