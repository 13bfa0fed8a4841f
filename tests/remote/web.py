"""Hosts there are, somebody who may use them, and a worker that does what a test says: the web's side of operations."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import transaction
from labctl.remote import running
from labctl.remote.models import RemoteHost, RemoteInventory
from labctl.remote.running import Piece, Taken
from labctl.remote.states import HostState, JobState
from labctl.tokens import service as tokens

#: Hosts with their groups; some have names that look like patterns.
HOSTS: dict[str, list[str]] = {
    "db1": ["db"],
    "fe80::1": [],
    "web1": ["web", "front"],
    "web2": ["web"],
    "web:1": [],
    "[x]": [],
}


def add_hosts(session: Session, hosts: Mapping[str, list[str]] = HOSTS, error: str | None = None) -> None:
    """Write the inventory as a worker has read it."""
    session.merge(RemoteInventory(id=1, read=clock.now(), error=error))
    for name, groups in hosts.items():
        session.merge(RemoteHost(name=name, groups=groups))
    session.flush()


def add_user(session: Session, name: str = "alice", rights: tuple[str, ...] = ("remote",)) -> dict[str, str]:
    """Add a user with a token, and give the header to send it with."""
    tokens.add_user(session, name, rights=list(rights))
    return {"X-AUTH-TOKEN": tokens.create_token(session, name)}


def piece(host: str, state: HostState | None = HostState.CHANGED, **values: Any) -> Piece:
    """Make a piece of output."""
    return Piece(host, json.dumps({"status": 5, **values}), state)


def claim() -> Taken:
    """Begin the oldest job that waits."""
    with transaction() as session:
        return running.claim(session, "worker", 1, 30)[0]


def write(taken: Taken, *pieces: Piece) -> None:
    """Write output."""
    with transaction() as session:
        assert running.write(session, taken, pieces)


def finish(taken: Taken, *pieces: Piece, state: JobState = JobState.DONE, error: str = "") -> None:
    """End a job."""
    with transaction() as session:
        assert running.finish(session, taken, pieces, state=state, error=error)


def carry_out(*pieces: Piece, state: JobState = JobState.DONE, error: str = "") -> Taken:
    """Begin and end the oldest job that waits."""
    taken = claim()
    finish(taken, *pieces, state=state, error=error)
    return taken


def stream_of(text: str) -> list[Any]:
    """Read JSON values that follow each other without anything but white space between them."""
    decoder, values, place = json.JSONDecoder(), [], 0
    text = text.strip()
    while place < len(text):
        value, place = decoder.raw_decode(text, place)
        values.append(value)
        while place < len(text) and text[place].isspace():
            place += 1
    return values
