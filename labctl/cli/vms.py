"""The VMs of ``labctl demo``: users take some and give some back."""

import random
from collections.abc import Callable, Sequence
from typing import Any

#: How many VMs of a pool are taken, if so many are ready.
MOST = 2
JOBS = ("reproducer", "rgw-multisite", "package-install", "docs-preview")


class Empty(Exception):
    """Somebody was faster: too few VMs are ready."""


def take_vms(send: Callable[..., Any], chance: random.Random, users: Sequence[str]) -> tuple[int, int]:
    """Take VMs, tag them, and give some back; ``send`` is how to talk to labctl: method, path, body.

    Takes only what is not real, and nothing out of pools of which somebody has VMs. Gives how many were taken, and how
    many of them given back.
    """
    told = send("GET", "/api/status/?view=pools")
    taken = returned = 0
    for name in told["status"].get("fake", ()):
        pool = told["pools"][name]
        count = 0 if pool["running"] else min(MOST, pool["ready"])
        for number in range(count):
            try:
                given = send("POST", "/api/vm/", {name: 1})
            except Empty:
                break
            vm = f"/api/vm/{given[name]['hostname']}/"
            send("PUT", vm, {"tags": {"user": chance.choice(users), "job": chance.choice(JOBS)}})
            taken += 1
            # The first of each pool stays.
            if number and chance.random() < 0.5:
                send("DELETE", vm)
                returned += 1
    return taken, returned
