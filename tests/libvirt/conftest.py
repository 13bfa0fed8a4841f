"""Two hypervisors of the tests' own, with a base volume that boots; ``make test-libvirt`` gets what that needs."""

import importlib.util
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from labctl.vms.providers.libvirt import LibvirtProvider
from labctl.vms.providers.libvirt_hypervisor import Hypervisor

from . import daemons, image
from .daemons import Daemon
from .guest import Guest

#: Where make test-libvirt has put a kernel; without it these tests are left out.
KERNEL = os.environ.get("LABCTL_GUEST_KERNEL", "")
#: What took how long, in the order of things.
TIMES: list[tuple[str, float]] = []


@pytest.fixture(scope="session")
def needs() -> None:
    if not KERNEL:
        pytest.skip("a real guest boots in make test-libvirt, which installs what it needs")
    programs = ("qemu-system-x86_64", "qemu-img", "libvirtd", "busybox", "grub-mkimage")
    missing = [program for program in programs if not shutil.which(program, path=daemons.PROGRAMS)]
    missing += [] if importlib.util.find_spec("libvirt") else ["labctl[libvirt]"]
    assert not missing, f"make test-libvirt did not install {missing}"


@pytest.fixture(scope="session")
def two(needs: None) -> Iterator[tuple[Daemon, Daemon]]:
    """Start two libvirtds, each with the base volume ``tiny`` in its storage pool."""
    directory = daemons.make_directory()
    started = []
    try:
        image.build(Path(KERNEL), directory / "tiny.raw")
        for name in ("a", "b"):
            daemon = Daemon(directory / name)
            started.append(daemon)
            base = daemon.images / "tiny.qcow2"
            subprocess.run(["qemu-img", "convert", "-O", "qcow2", directory / "tiny.raw", base], check=True)
            daemon.give(base)
            daemon.start()
            daemon.make_storage_pool()
        yield started[0], started[1]
    finally:
        for daemon in started:
            daemon.kill()
        daemons.remove(directory)


@pytest.fixture
def daemon(two: tuple[Daemon, Daemon]) -> Iterator[Daemon]:
    """The first of them; a test leaves nothing on it."""
    yield two[0]
    assert two[0].files() == {"tiny.qcow2"}
    assert two[0].guests() == []
    assert two[0].connect().listAllDomains() == []


@pytest.fixture
def both(two: tuple[Daemon, Daemon], daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Daemon]]:
    """Both of them, as if on hosts ``a`` and ``b``; a test leaves nothing on them."""
    monkeypatch.setattr(Hypervisor, "host", daemons.host)
    yield {each.directory.name: each for each in two}
    assert [(each.files(), each.guests()) for each in two] == [({"tiny.qcow2"}, [])] * 2
    assert [each.connect().listAllDomains() for each in two] == [[], []]


@pytest.fixture
def between(both: dict[str, Daemon], options: dict[str, Any]) -> dict[str, Any]:
    """Give the options of a provider that migrates VMs between both."""
    # The guests do not know what it means to shut down.
    more = {"live_migration": "tcp://127.0.0.1", "shutdown_seconds": 0.1}
    return {"uris": [each.uri for each in both.values()], **options, **more}


@pytest.fixture
def options() -> dict[str, Any]:
    return {"network": "user", "memory_mb": 128, "cpus": 1, "domain_type": "qemu"}


@pytest.fixture
def provider(daemon: Daemon, options: dict[str, Any]) -> LibvirtProvider:
    return LibvirtProvider("libvirt", {"uris": daemon.uri, **options})


@pytest.fixture
def guest() -> Iterator[Callable[[Daemon, str], Guest]]:
    """Talk to a guest; wait until it is ready."""
    opened = []

    def connect(daemon: Daemon, name: str) -> Guest:
        opened.append(Guest(daemon.connect().lookupByName(name)))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


@pytest.fixture
def timed() -> Callable[[str], Any]:
    """Note how long a block takes, for the table at the end."""

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        TIMES.append((what, time.monotonic() - start))

    return timed


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for what, seconds in TIMES:
        terminalreporter.write_line(f"{what:<40} {seconds:6.2f} s")
