"""How tokens look on the wire."""

from collections.abc import Iterable
from typing import Any

from labctl import times
from labctl.tokens.service import Shown


def tokens_to_wire(tokens: Iterable[Shown]) -> dict[str, Any]:
    """Write a user's tokens, keyed by their ids: the secrets are not stored."""
    shown = {
        token.public_id: {
            "created": times.to_wire_with_offset(token.created),
            "last": times.to_wire_with_offset(token.last_used) if token.last_used else "never",
        }
        for token in tokens
    }
    return {"ok": True, **shown}


def token_to_wire(asked: str, token: Shown, running: list[str]) -> dict[str, Any]:
    """Write one token, keyed by what was ``asked`` for; ``last`` and ``vms`` are there only if there is something."""
    shown: dict[str, Any] = {"user": token.user, "created": times.to_wire_with_offset(token.created)}
    if token.last_used:
        shown["last"] = times.to_wire_with_offset(token.last_used)
    if running:
        shown["vms"] = {"running": running}
    return {"ok": True, asked: shown}
