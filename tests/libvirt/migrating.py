"""Workers that migrate the VM ``fox``, one of which is killed in the middle."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson

from labctl.vms.provider import Failed
from labctl.vms.providers.libvirt import LibvirtProvider

from .daemons import Daemon, until

ROOT = Path(__file__).resolve().parents[2]
WORKER = """
import sys, orjson
from labctl.vms.providers.libvirt import LibvirtProvider
from labctl.vms.providers.libvirt_hypervisor import Hypervisor
from tests.libvirt import daemons
Hypervisor.host = daemons.host
options, avoid, live = orjson.loads(sys.argv[1])
LibvirtProvider("libvirt", options).migrate("fox", {avoid}, live=live)
"""


def kill_in_the_middle(options: dict[str, Any], source: str, target: Daemon, *, live: bool) -> None:
    """Have a worker migrate the VM, and kill it as soon as there is something of that on the target."""
    arguments = orjson.dumps([options, source, live]).decode()
    worker = subprocess.Popen([sys.executable, "-c", WORKER, arguments], cwd=ROOT)
    try:
        until(lambda: target.guests() if live else len(target.files()) > 1, "the VM is being migrated")
    finally:
        worker.kill()
    assert worker.wait() < 0, "the worker was faster"


def migrate(provider: LibvirtProvider, source: str, *, live: bool) -> None:
    """Migrate the VM; libvirt may not be done yet with the worker that was killed."""

    def is_migrated() -> bool:
        assert provider.names() == {"fox"}
        try:
            provider.migrate("fox", {source}, live=live)
        except Failed:
            return False
        return True

    until(is_migrated, "the VM is migrated")
