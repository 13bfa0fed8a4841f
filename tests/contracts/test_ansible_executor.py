"""Ansible, with a real sshd, under the contract of executors."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from labctl.remote.executor import Executor
from labctl.remote.executors.ansible import AnsibleExecutor
from tests.remote.ansible_lab import Lab
from tests.sshd import Sshd

from .executor import ExecutorContract


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, sshd: Sshd) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), sshd)


@pytest.fixture(scope="module")
def shared(lab: Lab) -> Iterator[Executor]:
    """Most tests share one: to start one takes half a second."""
    executor = make_one(lab)
    yield executor
    executor.close()


def make_one(lab: Lab) -> Executor:
    # Half as many connections for each step, where Ansible lets the lab choose.
    environment = {"ANSIBLE_PIPELINING": "1"}
    return AnsibleExecutor(
        {"workdir": str(lab.directory), "concurrency": 5, "environment": environment}, Path("unused")
    )


class TestAnsibleExecutor(ExecutorContract):
    """Ansible; one of its hosts has a name that a pattern or an address would be taken apart at."""

    hosts: ClassVar = ("web1", "web:3")
    dead = "dead"
    service = "labctl-test"
    role = "web"
    bad_role = "broken"

    @pytest.fixture
    def make(self, lab: Lab) -> Callable[[], Executor]:
        return lambda: make_one(lab)

    @pytest.fixture
    def executor(self, shared: Executor) -> Executor:
        return shared
