"""labctl up with a pool of real guests, and a user of it over HTTP."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import requests

from labctl.vms.providers.libvirt import LibvirtProvider

from ..acceptance.conftest import remove
from ..acceptance.lab import PATIENCE, Up, until
from .daemons import Daemon
from .test_guest import read, write


class User:
    """Somebody with a token, who uses the pools of a lab as vmpooler's clients do."""

    def __init__(self, up: Up) -> None:
        self.up = up
        self.headers = {"X-AUTH-TOKEN": (up.home / "admin.token").read_text().strip()}

    def ask(self, method: str, path: str, status: int = 200, **arguments: Any) -> Any:
        url = f"{self.up.url}/api/v1/{path}"
        answer = requests.request(method, url, headers=self.headers, timeout=PATIENCE, **arguments)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def vm(self, name: str) -> Any:
        return self.ask("GET", f"vm/{name}")[name]

    def has_happened(self, kind: str, name: str) -> bool:
        """Tell whether the log of events has something of a VM; nothing may have failed."""
        told = self.up.get("/api/events", params={"subject": f"vms/{name}"}, headers=self.headers).json()["events"]
        assert not [event for event in told if event["kind"].endswith("_failed")], told
        return kind in {event["kind"] for event in told}

    def ready(self) -> set[str]:
        """List the VMs that have become ready."""
        told = self.up.get("/api/events", params={"kind": "vm.ready"}, headers=self.headers).json()["events"]
        return {event["subject"].removeprefix("vms/") for event in told}


@pytest.fixture
def lab(daemon: Daemon, options: dict[str, Any], provider: LibvirtProvider) -> Iterator[Up]:
    """A labctl whose only pool is one guest of the daemon's."""
    directory = Path(tempfile.mkdtemp(prefix="labctl-"))
    entry = {"plugin": "libvirt", "uris": daemon.uri, "list_interval": 2, **options}
    pool = {"name": "tiny", "provider": "libvirt", "size": 1}
    up = Up(
        directory / "home",
        LABCTL_POOLS=orjson.dumps([pool]).decode(),
        LABCTL_PROVIDERS=orjson.dumps({"libvirt": entry}).decode(),
        LABCTL_VM_CONFIG_API="true",
    )
    try:
        yield up
    finally:
        up.close()
        for name in provider.names():
            provider.destroy(name)
        remove(directory)


def test_a_user_takes_a_guest_out_of_its_pool_works_with_it_and_gives_it_back(
    lab: Up, daemon: Daemon, provider: LibvirtProvider, guest: Callable[..., Any], timed: Callable[[str], Any]
) -> None:
    with timed("lab: start of labctl up"):
        lab.wait_until_ready()
    user = User(lab)
    with timed("lab: filling the pool"):
        until(user.ready, "the pool is full")
    (name,) = user.ready()
    assert provider.names() == {name}

    with timed("lab: checkout"):
        taken = user.ask("POST", "vm/tiny")
    assert taken["ok"] and taken["tiny"]["hostname"] == name
    with timed("lab: the next guest is ready"):
        until(lambda: user.ready() > {name}, "the place in the pool is filled")
    (second,) = user.ready() - {name}
    seen = user.vm(name)
    assert (seen["state"], seen["template"], seen["lifetime"]) == ("running", "tiny", 12)
    assert (seen["ip"], seen["host"]) == ("", os.uname().nodename)
    console = guest(daemon, name)
    console.wait_until_ready()

    user.ask("PUT", f"vm/{name}", json={"lifetime": 3, "tags": {"job": "e2e"}})
    seen = user.vm(name)
    assert (seen["lifetime"], seen["tags"]) == (3, {"job": "e2e"})
    assert 2.9 < seen["remaining"] <= 3

    with timed("lab: disk"):
        assert user.ask("POST", f"vm/{name}/disk/1", 202)[name] == {"disk": "+1gb"}
        until(lambda: user.has_happened("vm.disk_done", name), "the disk is there")
    assert user.vm(name)["disk"] == ["+1gb"]
    until(lambda: "vdb" in console.do("ls /sys/block"), "the guest sees its disk")
    assert console.do("cat /sys/block/vdb/size") == str(1024**3 // 512)
    console.do("echo before > /tmp/state")
    console.do(write("vdb", "before"))

    with timed("lab: snapshot"):
        snapshot = user.ask("POST", f"vm/{name}/snapshot", 202)[name]["snapshot"]
        until(lambda: user.has_happened("vm.snapshot_done", name), "the snapshot is finished")
    assert user.vm(name)["snapshots"] == [snapshot]
    console.do("echo after > /tmp/state")
    console.do(write("vdb", "after"))
    with timed("lab: revert"):
        user.ask("POST", f"vm/{name}/snapshot/{snapshot}", 202)
        until(lambda: user.has_happened("vm.revert_done", name), "the VM is as it was")
    console = guest(daemon, name)
    assert [console.do(each) for each in ("cat /tmp/state", read("vdb"))] == ["before"] * 2

    with timed("lab: destroying"):
        user.ask("DELETE", f"vm/{name}")
        until(lambda: user.has_happened("vm.destroyed", name), "the VM is gone")
    assert user.vm(name)["state"] == "destroyed"
    assert user.ask("GET", "status")["pools"]["tiny"]["ready"] == 1
    assert provider.names() == {second}
    user.ask("POST", "config/poolsize", 201, json={"tiny": "0"})
    until(lambda: user.has_happened("vm.destroyed", second), "the pool is empty")
    assert user.ready() == {name, second}
    assert (daemon.files(), daemon.guests()) == ({"tiny.qcow2"}, [])
    assert lab.stop() == 0
    assert provider.names() == set()
