"""A real sshd of the tests' own, on a free port of this machine, with keys of its own; for root and ordinary users."""

import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from labctl.up import process

#: sshd wants to be called by its absolute path: it starts itself anew for each connection.
PROGRAM = "/usr/sbin/sshd"
#: Seconds for what takes a tenth of one on a quiet machine.
PATIENCE = 30
#: What this sshd gives to each command, so that those can be found that have outlived their connection.
MARK = "LABCTL_TEST_SSHD"

CONFIGURATION = """
{addresses}
Port {port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
UsePAM no
StrictModes no
UseDNS no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
PrintLastLog no
MaxStartups 1000
MaxSessions 1000
AcceptEnv LABCTL_*
SetEnv {mark}={directory} HOME={home}
Subsystem sftp internal-sftp
LogLevel VERBOSE
"""


def missing() -> str:
    """Say why there can be no sshd here, empty if there can."""
    if not Path(PROGRAM).exists():
        return "openssh-server is not installed; make test installs it where it may"
    if not shutil.which("ssh") or not shutil.which("ssh-keygen"):
        return "openssh-client is not installed"
    return ""


class Sshd:
    """One sshd: log in as ``user`` with the key file ``key`` on ``port`` of 127.0.0.1, and of ::1 where ``has_ipv6``.

    ``known_hosts`` is a file that knows its host key, ``ssh_options`` are what ``ssh`` needs to log in without it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        # What the user's own shell does at a login (bash reads ~/.bashrc for a command over ssh) is not what is tested.
        self.home = self.directory / "home"
        self.home.mkdir(exist_ok=True)
        self.log = self.directory / "log"
        self.key = self._make_key("user_key")
        self.other_key = self._make_key("other_key")
        self.host_key = self._make_key("host_key")
        shutil.copy(f"{self.key}.pub", self.directory / "authorized_keys")
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.has_ipv6 = False

    @property
    def known_hosts(self) -> Path:
        """The file is written anew for whoever asks: the port is known only while it runs."""
        public = self.host_key.with_suffix(".pub").read_text().rsplit(" ", 1)[0]
        file = self.directory / "known_hosts"
        file.write_text("".join(f"[{host}]:{self.port} {public}\n" for host in ("127.0.0.1", "::1", "localhost")))
        return file

    @property
    def ssh_options(self) -> list[str]:
        options = ("BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null")
        words = ["-F", "/dev/null", "-p", str(self.port), "-l", self.user, "-i", str(self.key), "-o", "LogLevel=ERROR"]
        return words + [word for option in options for word in ("-o", option)]

    def start(self) -> "Sshd":
        if os.getuid() == 0:
            # Where sshd locks itself in; a machine on which it never ran has none.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        for _ in range(5):
            if self._start():
                return self
        raise AssertionError(f"sshd does not start: {self.log.read_text()}")

    def close(self) -> None:
        """End it, its connections, and the commands that run for them."""
        if self.process is not None:
            # It cannot start another while the others are ended.
            self.process.send_signal(signal.SIGSTOP)
            while left := self.descendants():
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            self.process.kill()
            self.process.wait()
            self.process = None

    def descendants(self) -> set[int]:
        """Find the processes of its connections and of their commands, those too that have left it."""
        parents: dict[int, int] = {}
        found: set[int] = set()
        mark = f"{MARK}={self.directory}".encode()
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    found.add(int(path.name))
        roots = {self.process.pid} if self.process is not None else set()
        while more := {pid for pid, parent in parents.items() if parent in roots | found} - found:
            found |= more
        return {pid for pid in found if not _is_over(pid)}

    def _make_key(self, name: str) -> Path:
        path = self.directory / name
        if not path.exists():
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(path)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        return path

    def _start(self) -> bool:
        """Start on a free port; tells whether that was still free."""
        self.port, self.has_ipv6 = _free_port()
        addresses = ["127.0.0.1", *(["::1"] if self.has_ipv6 else [])]
        text = CONFIGURATION.format(
            addresses="\n".join(f"ListenAddress {address}" for address in addresses),
            port=self.port,
            directory=self.directory,
            mark=MARK,
            home=self.home,
        )
        configuration = self.directory / "sshd_config"
        configuration.write_text(text)
        self.process = process.spawn(
            [PROGRAM, "-D", "-f", configuration, "-E", self.log], death_signal=signal.SIGTERM, cwd="/"
        )
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            if _answers(self.port):
                return True
            assert time.monotonic() < deadline, f"sshd does not answer: {self.log.read_text()}"
        self.process = None
        return False


def _free_port() -> tuple[int, bool]:
    """Find a port that is free, and tell whether it is so for IPv6 too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
        try:
            with socket.socket(socket.AF_INET6) as other:
                other.bind(("::1", port))
            return port, True
        except OSError:
            return port, False


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        select.select([], [], [], 0.02)
        return False


def _is_over(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
