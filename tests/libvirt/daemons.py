"""libvirt daemons of the test's own, for an ordinary user (qemu:///session), who own nothing outside one directory."""

import getpass
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from labctl.up import binaries, process
from labctl.vms.providers.libvirt_hypervisor import Hypervisor

#: Where the daemons live, and the process whose they are: libvirt adds up to 83 characters, and a socket may have 107.
DIRECTORY = "/tmp/lvt-{}"
PROGRAMS = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def until(condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """Wait for something, and give it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} seconds"
        time.sleep(0.02)
    return found


class Daemon:
    """One libvirtd and the directory where everything of it is; ``images`` is its storage pool ``default``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # libvirt does not serve root's session.
        self.user = binaries.unprivileged_user() if os.getuid() == 0 else None
        self.images = directory / "images"
        for each in (directory, self.images, *(directory / name for name in ("run", "cache", "data"))):
            each.mkdir(mode=0o700, exist_ok=True)
            self.give(each)
        configuration = directory / "libvirt" / "libvirtd.conf"
        configuration.parent.mkdir(mode=0o700)
        # No VM is migrated between two hypervisors that seem to be the same.
        configuration.write_text(f'host_uuid = "{uuid.uuid4()}"\n')
        for each in (configuration.parent, configuration):
            self.give(each)
        self.socket = directory / "run" / "libvirt" / "libvirt-sock"
        self.uri = f"qemu+unix:///session?{urlencode({'socket': self.socket})}"
        self.process: subprocess.Popen[bytes] | None = None

    def give(self, path: Path) -> None:
        """Make a file the user's under whom the daemon and its guests run."""
        if self.user:
            os.chown(path, *self.user)

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        with (self.directory / "log").open("ab") as log:
            self.process = process.spawn(
                ["libvirtd"],
                death_signal=signal.SIGTERM,
                environ={
                    "PATH": PROGRAMS,
                    "HOME": str(self.directory),
                    "XDG_CONFIG_HOME": str(self.directory),
                    "XDG_RUNTIME_DIR": str(self.directory / "run"),
                    "XDG_CACHE_HOME": str(self.directory / "cache"),
                    "XDG_DATA_HOME": str(self.directory / "data"),
                },
                user=self.user,
                cwd=self.directory,
                output=log.fileno(),
            )
        until(self.socket.exists, f"libvirtd of {self.directory} listens")

    def kill(self) -> None:
        """End the daemon; its guests live on."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()

    def connect(self) -> Any:
        import libvirt

        return libvirt.open(self.uri)

    def make_storage_pool(self) -> None:
        """Define the pool, off and not started by itself, as a hypervisor may have it after a restart."""
        self.connect().storagePoolDefineXML(
            f"<pool type='dir'><name>default</name><target><path>{self.images}</path></target></pool>"
        )

    def files(self) -> set[str]:
        return {path.name for path in self.images.iterdir()}

    def guests(self) -> list[int]:
        """List the processes of the guests."""
        return guests(self.directory)


def host(hypervisor: Hypervisor) -> str:
    """Name the host of a hypervisor after the directory of its daemon: all of them are on one."""
    socket = Path(parse_qs(urlsplit(hypervisor.uri).query)["socket"][0])
    hypervisor.last_host = socket.parents[2].name
    return hypervisor.last_host


def guests(directory: Path) -> list[int]:
    """List the processes of the guests that a daemon with this directory has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            arguments = path.read_bytes()
            if b"qemu" in arguments and os.fsencode(directory / "libvirt") in arguments:
                found.append(int(path.parent.name))
    return found


def make_directory() -> Path:
    """Make a directory in which daemons can live, once what a killed test has left is gone."""
    for path in Path("/").glob(DIRECTORY.format("[0-9]*")[1:]):
        if path.owner() == getpass.getuser() and not Path(f"/proc/{path.name.partition('-')[2]}").exists():
            remove(path)
    directory = Path(DIRECTORY.format(os.getpid()))
    directory.mkdir(mode=0o755)
    return directory


def remove(directory: Path) -> None:
    """Remove a directory with its daemons' guests."""
    for each in directory.iterdir():
        for pid in guests(each):
            print(f"a guest was left, process {pid}", file=sys.stderr)
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), f"the guest {pid} ends")
    shutil.rmtree(directory)
