"""How tokens look on the wire."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from labctl.tokens.service import Shown


def time_to_wire(time: datetime) -> str:
    """Write a time as ``YYYY-MM-DD HH:MM:SS +0000``."""
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S +0000")


def tokens_to_wire(tokens: Iterable[Shown]) -> dict[str, Any]:
    """Write a user's tokens, keyed by their ids: the secrets are not stored."""
    shown = {
        token.public_id: {
            "created": time_to_wire(token.created),
            "last": time_to_wire(token.last_used) if token.last_used else "never",
        }
        for token in tokens
    }
    return {"ok": True, **shown}


def token_to_wire(asked: str, token: Shown, running: list[str]) -> dict[str, Any]:
    """Write one token, keyed by what was ``asked`` for; ``last`` and ``vms`` are there only if there is something."""
    shown: dict[str, Any] = {"user": token.user, "created": time_to_wire(token.created)}
    if token.last_used:
        shown["last"] = time_to_wire(token.last_used)
    if running:
        shown["vms"] = {"running": running}
    return {"ok": True, asked: shown}
