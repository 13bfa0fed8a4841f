"""Whether a VM can be given away, by what its provider says, by a port, and by a command over ssh."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.pools import Check
from labctl.vms.provider import Found
from labctl.vms.readiness import trouble

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
