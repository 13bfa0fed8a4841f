"""Events as JSON."""

from typing import Any

from labctl.events.models import Event


def event_to_wire(event: Event) -> dict[str, Any]:
    """Shape one event; ``at`` is RFC 3339 in UTC."""
    return {
        "seq": event.seq,
        "at": event.at.isoformat().replace("+00:00", "Z"),
        "kind": event.kind,
        "subject": event.subject,
        "actor": event.actor,
        "request_id": event.request_id,
        "data": event.data,
    }
