"""The maintenance sessions of ``labctl demo``: one that is done, one that has failed and one that waits."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from labctl.cli.hosts import GROUP

SESSIONS = "/v1/maintenance"
#: What the demo knows its own sessions by, in their ``metadata``.
MARK = {"about": "labctl demo"}
#: Seconds that all of it may take, and how many of the last sessions are looked through for those of an earlier demo.
PATIENCE = 120
MOST = 100
DONE, FAILED = "MAINTENANCE_DONE", "MAINTENANCE_FAILED"
_TIME = "%Y-%m-%d %H:%M:%S"

Send = Callable[..., Any]


class Busy(Exception):
    """Another session has the hosts, or too many sessions go on; says which."""


@dataclass
class Kept:
    """What was left behind: the state of each session, and why there are none."""

    states: list[str] = field(default_factory=list)
    reason: str = ""

    def __str__(self) -> str:
        """Count them."""
        done, failed = self.states.count(DONE), self.states.count(FAILED)
        return f"{done} done, {failed} failed, {len(self.states) - done - failed} waiting"


def maintain(send: Send, pause: Callable[[float], object] = time.sleep) -> Kept:
    """Hold sessions over hosts of the example that nobody uses; ``send`` talks to labctl: method, path, body.

    Deletes those that an earlier demo has left, and leaves every host alone that is not of the example. Nothing is
    done on the hosts but to ask how long they have been up.
    """
    demo, kept = _Demo(send, pause), Kept()
    demo.delete_earlier()
    hosts = send("GET", f"/target?pattern={quote(GROUP)}")
    try:
        free, others = demo.sort(hosts)
        if free is None or not others:
            return Kept(reason="they take a host of the example that nobody uses, and another one")
        soon = _written(datetime.now(UTC))
        tomorrow = _written(datetime.now(UTC) + timedelta(days=1))
        uptime = {"plugin": "command", "type": "host", "metadata": {"command": "uptime"}}
        fails = {"plugin": "dummy", "type": "host", "metadata": {"fail": 1, "reason": "there is no such firmware"}}
        begins = {"plugin": "dummy", "type": "pre"}
        ends = {"plugin": "dummy", "type": "post"}
        kept.states.append(demo.watch(demo.post([free], soon, [begins, uptime, ends])))
        kept.states.append(demo.watch(demo.post([free], soon, [uptime, fails])))
        kept.states.append(demo.state(demo.post(others, tomorrow, [begins, uptime, ends])))
    except Busy as error:
        kept.reason = str(error)
    return kept


class _Demo:
    def __init__(self, send: Send, pause: Callable[[float], object]) -> None:
        self.send = send
        self.pause = pause
        self.deadline = time.monotonic() + PATIENCE
        self.deleted: set[str] = set()

    def delete_earlier(self) -> None:
        """Delete what an earlier demo has left; its hosts are free for others soon after that."""
        for sid in self.send("GET", f"{SESSIONS}?count={MOST}")["session_id"]:
            if MARK.items() <= self.send("GET", f"{SESSIONS}/{sid}?steps=0")["metadata"].items():
                self.send("DELETE", f"{SESSIONS}/{sid}")
                self.deleted.add(sid)

    def sort(self, hosts: Sequence[str]) -> tuple[str | None, list[str]]:
        """Choose a host that nobody uses, and name the others; those that other sessions have are left out.

        Waits for those that the earlier demo had.
        """
        while True:
            plan = self.send("POST", f"{SESSIONS}/plan", _body(hosts, _written(datetime.now(UTC)), []))
            taken = {each["host"]: each.get("session_id") for each in plan["conflicts"]}
            if self.deleted.isdisjoint(taken.values()) or time.monotonic() > self.deadline:
                break
            self.pause(0.3)
        usable = [host for host in plan["hosts"] if host["host"] not in taken]
        # It will be out of service: rather one that is nothing but a name in the inventory.
        unused = sorted((len(host["kinds"]), host["host"]) for host in usable if not host["instances"])
        free = unused[0][1] if unused else None
        return free, [host["host"] for host in usable if host["host"] != free]

    def post(self, hosts: Sequence[str], maintenance_at: str, actions: Sequence[Mapping[str, Any]]) -> str:
        """Begin a session."""
        return str(self.send("POST", SESSIONS, _body(hosts, maintenance_at, actions))["session_id"])

    def watch(self, sid: str) -> str:
        """Wait for the end of a session; gives its state."""
        while (state := self.state(sid)) not in (DONE, FAILED) and time.monotonic() < self.deadline:
            self.pause(0.3)
        return state

    def state(self, sid: str) -> str:
        """Give the state of a session."""
        return str(self.send("GET", f"{SESSIONS}/{sid}?steps=0")["state"])


def _body(hosts: Sequence[str], maintenance_at: str, actions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    # Whoever has VMs there is asked, but need not answer: nobody may be looking.
    metadata = {**MARK, "no_answer": "wait"}
    asked = {"hosts": list(hosts), "actions": list(actions), "maintenance_at": maintenance_at, "metadata": metadata}
    return {"state": "MAINTENANCE", "workflow": "default", **asked}


def _written(when: datetime) -> str:
    return when.strftime(_TIME)
