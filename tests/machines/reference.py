"""Machines as the database keeps them."""

import json
from typing import Any

from sqlalchemy.orm import Session

from labctl.machines import queries


def machine(session: Session, name: str) -> Any:
    """Give one machine as on the wire, None if there is none."""
    document = queries.machine(session, name)
    return None if document is None else json.loads(document)


def machines(session: Session, chosen: dict[str, Any]) -> list[Any]:
    """List machines as on the wire."""
    return [json.loads(document) for document in queries.machines(session, chosen)]
