"""Events as JSON."""

from typing import Any


def event_to_wire(event: Any) -> dict[str, Any]:
    """Shape one event, a row of its table; ``at`` is RFC 3339 in UTC."""
    return {
        "seq": event.seq,
        "at": event.at.isoformat().replace("+00:00", "Z"),
        "kind": event.kind,
        "subject": event.subject,
        "actor": event.actor,
        "request_id": event.request_id,
        "data": event.data,
    }
