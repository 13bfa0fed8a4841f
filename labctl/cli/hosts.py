"""The operations on hosts of ``labctl demo``, on the hosts of the example that ``labctl up`` begins with."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

#: The group of the hosts that are nobody's.
GROUP = "example"
#: Seconds that all of it may take.
PATIENCE = 120
DONE, RUNNING = 0, 1


@dataclass
class Operated:
    """What was done: how many operations, on how many hosts, and how many of them did not end well."""

    operations: int = 0
    hosts: int = 0
    failed: int = 0


def operate(send: Callable[..., Any], pause: Callable[[float], object] = time.sleep) -> Operated:
    """Run some operations, one of which fails, and wait for them; ``send`` talks to labctl: method, path, body.

    Leaves every host alone that is not of the example.
    """
    hosts = send("GET", f"/target?pattern={quote(GROUP)}")
    if not hosts:
        return Operated()
    wanted: list[tuple[str, dict[str, Any]]] = [
        ("/ping", {"targets": hosts}),
        ("/facter", {"targets": hosts[:1]}),
        ("/execute", {"targets": hosts, "cmd": "uptime"}),
        ("/execute", {"targets": hosts[-1:], "cmd": "ls /no/such/directory"}),
        ("/deploy", {"targets": hosts, "role": "motd", "extra_vars": {"greeting": "The demo was here."}}),
    ]
    waiting = [send("POST", path, body)["jid"] for path, body in wanted]
    done = Operated(len(waiting), len(hosts))
    deadline = time.monotonic() + PATIENCE
    while waiting and time.monotonic() < deadline:
        states = {jid: send("GET", f"/jobs/{jid}")["state"] for jid in waiting}
        done.failed += sum(state not in (DONE, RUNNING) for state in states.values())
        waiting = [jid for jid in waiting if states[jid] == RUNNING]
        if waiting:
            pause(0.3)
    return done
