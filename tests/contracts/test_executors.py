"""The executors that need nothing but this machine, under the contract of executors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from labctl.remote.executor import Executor
from labctl.remote.executors.fake import FakeExecutor

from .executor import ExecutorContract


class TestFakeExecutor(ExecutorContract):
    """The fake as it is."""

    hosts = ("alpha", "beta")
    dead = "dead"
    service = "nginx"
    role = "web"
    bad_role = "bad"
    options: ClassVar[dict[str, Any]] = {
        "hosts": ["alpha", "beta", "dead"],
        "unreachable": ["dead"],
        "broken": ["bad"],
    }

    @pytest.fixture
    def make(self, tmp_path: Path) -> Callable[[], Executor]:
        return lambda: FakeExecutor(self.options, tmp_path / "remote")


class TestSlowFakeExecutor(TestFakeExecutor):
    """The fake that needs time for everything, and to be cancelled."""

    options: ClassVar[dict[str, Any]] = {
        **TestFakeExecutor.options,
        "seconds": dict.fromkeys(("ping", "facter", "service", "execute", "deploy"), 0.2),
        "cancel_seconds": 0.2,
    }
