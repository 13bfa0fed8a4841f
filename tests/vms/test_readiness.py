"""Whether a VM can be given away, by what its provider says, by a port, and by a command over ssh."""

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.pools import Check
from labctl.vms.provider import Found
from labctl.vms.readiness import trouble
from tests.acceptance.lab import until
from tests.sshd import Sshd

HERE = Found(True, ("127.0.0.1",))
Ssh = Callable[[str], Path]


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ssh:
    """Put a program in the place of ssh that notes its arguments and then does as the given lines of shell say."""

    def install(lines: str) -> Path:
        said = tmp_path / "said"
        program = tmp_path / "ssh"
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {said}\n{lines}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return said

    return install


def test_a_vm_that_does_not_run_is_not_ready_whatever_the_check() -> None:
    assert trouble(Check(kind="tcp"), Found(False), "vm1") == "it does not run"


def test_a_vm_that_runs_is_ready_where_nothing_else_is_asked_for() -> None:
    assert trouble(Check(), Found(True), "vm1") is None


def test_a_vm_is_ready_when_its_port_can_be_connected_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert trouble(Check(kind="tcp", port=port), HERE, "vm1") is None
    assert trouble(Check(kind="tcp", port=port), HERE, "vm1") == f"port {port} of 127.0.0.1: Connection refused"


def test_a_vm_without_an_address_is_asked_by_its_name() -> None:
    found = trouble(Check(kind="tcp"), Found(True), "vm1.invalid")
    assert found is not None and found.startswith("port 22 of vm1.invalid: ")


def test_a_command_reaches_the_vm_word_by_word_and_asks_nobody(ssh: Ssh) -> None:
    said = ssh("exit 0")
    check = Check(kind="ssh", port=2222, user="ada", key="/k", command=["test", "-e", "/a b; rm *"])
    assert trouble(check, HERE, "vm1") is None
    words = said.read_text().splitlines()

    assert words[:6] == ["-p", "2222", "-l", "ada", "-i", "/k"] and "BatchMode=yes" in words
    assert words[-3:] == ["--", "127.0.0.1", "test -e '/a b; rm *'"]


def test_the_exit_code_of_the_command_decides_and_its_last_words_are_the_reason(ssh: Ssh) -> None:
    ssh("echo first >&2; echo still booting >&2; exit 3")
    assert trouble(Check(kind="ssh"), HERE, "vm1") == "ssh 127.0.0.1: exit 3 still booting"


def test_a_command_that_takes_too_long_is_ended(ssh: Ssh) -> None:
    ssh("exec sleep 60")
    assert trouble(Check(kind="ssh", timeout=0.2), HERE, "vm1") == "ssh 127.0.0.1: no answer within 0.2 s"


# With a real sshd


def log_in(sshd: Sshd, *command: str, **changes: object) -> str | None:
    values = {"port": sshd.port, "user": sshd.user, "key": str(sshd.key), "command": list(command), **changes}
    return trouble(Check(kind="ssh", **values), HERE, "vm1")  # type: ignore[arg-type]


def test_a_vm_is_ready_when_a_command_on_it_succeeds(sshd: Sshd, tmp_path: Path) -> None:
    said = tmp_path / "it's here; really"
    assert log_in(sshd, "touch", str(said)) is None
    assert said.exists()


def test_a_vm_is_not_ready_while_a_command_on_it_fails(sshd: Sshd, tmp_path: Path) -> None:
    assert log_in(sshd, "test", "-e", str(tmp_path / "booted")) == "ssh 127.0.0.1: exit 1"
    (tmp_path / "booted").touch()
    assert log_in(sshd, "test", "-e", str(tmp_path / "booted")) is None


def test_the_reason_is_what_the_command_said_last(sshd: Sshd) -> None:
    assert log_in(sshd, "sh", "-c", "echo first >&2; echo still booting >&2; exit 3") == (
        "ssh 127.0.0.1: exit 3 still booting"
    )


def test_a_vm_that_does_not_know_the_key_is_not_ready(sshd: Sshd) -> None:
    assert log_in(sshd, "true", key=str(sshd.other_key)) == (
        f"ssh 127.0.0.1: exit 255 {sshd.user}@127.0.0.1: Permission denied (publickey)."
    )


def test_a_vm_on_which_the_command_hangs_is_not_ready(sshd: Sshd) -> None:
    assert log_in(sshd, "sleep", "600", timeout=1) == "ssh 127.0.0.1: no answer within 1 s"


def test_a_vm_that_takes_the_connection_and_is_silent_is_not_ready(sshd: Sshd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert log_in(sshd, "true", port=port, timeout=0.5) == "ssh 127.0.0.1: no answer within 0.5 s"


def test_a_vm_on_which_no_sshd_listens_yet_is_not_ready(sshd: Sshd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert log_in(sshd, "true", port=port) == (
        f"ssh 127.0.0.1: exit 255 ssh: connect to host 127.0.0.1 port {port}: Connection refused"
    )


def test_nothing_is_left_of_an_sshd_that_was_closed(sshd: Sshd, tmp_path: Path) -> None:
    own = Sshd(tmp_path / "sshd").start()
    with subprocess.Popen(["ssh", *own.ssh_options, "127.0.0.1", "setsid sleep 600 & sleep 600"]) as client:
        until(lambda: len(own.descendants()) > 3, "the commands run")
        own.close()
        assert client.wait(30) == 255
    assert not own.descendants()
