"""What docs/maintenance.rst shows is true."""

import json
import re
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session
from webtest import TestApp

from labctl.maintenance import wire
from labctl.maintenance.workflows import hints

from .asking import URLS, add_hosts, ask, credential

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "maintenance.rst").read_text()


def bodies() -> list[Any]:
    """Give what is sent in the examples."""
    return [json.loads(found.replace("DIGITS", "0" * 64)) for found in re.findall(r"-d '(.+?)'", PAGE, re.DOTALL)]


def test_the_session_of_the_page_is_begun(app: TestApp, session: Session) -> None:
    app.extra_environ["HTTP_X_AUTH_TOKEN"] = credential(session, "doctor", rights=["maintenance"])["X-Auth-Token"]
    add_hosts(session, "lab01", "lab02", "lab03")

    sid = app.post_json(URLS[0], bodies()[0]).json["session_id"]
    vms = ["vm1", "vm2"]
    ask(session, sid, "alice", "PLANNED_MAINTENANCE", instances=vms, allowed_actions=["MIGRATE", "OWN_ACTION"])
    alice = credential(session, "alice")
    _, subscription, _, answer, edit = bodies()
    app.put_json(f"{URLS[0]}/subscriptions/alice", subscription, headers=alice)
    assert app.put_json(f"{URLS[0]}/{sid}/alice", answer, headers=alice).json == answer
    assert app.put_json(f"{URLS[0]}/{sid}", edit).status_int == 200


def test_the_page_lists_all_hints() -> None:
    assert re.findall(r"^``(\w+)``  +(?:1|``\"\w+\"``|none) ", PAGE, re.MULTILINE) == list(
        hints.Hints.__dataclass_fields__
    )


def test_the_page_lists_all_edits() -> None:
    editing = PAGE[PAGE.index("\nEditing\n") : PAGE.index("\nDeleting\n")]
    assert all(f'"{name}":' in editing for name in wire.EDITS)
