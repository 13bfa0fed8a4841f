"""The providers that need nothing but this machine, under the contract of providers."""

from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from labctl.vms.provider import Provider
from labctl.vms.providers.fake import FakeProvider

from .provider import ProviderContract


class TestFakeProvider(ProviderContract):
    """The fake, with a world in a directory."""

    unknown = "no-such-template"

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        return tmp_path / "world"

    @pytest.fixture
    def make(self, directory: Path) -> Callable[[], Provider]:
        return lambda: FakeProvider("fake", {"directory": str(directory), "unknown": [self.unknown]})

    def check_disks(self, provider: Provider, name: str, gigabytes: list[int]) -> None:
        assert isinstance(provider, FakeProvider)
        file = provider.directory / "vms" / f"{name}.json"
        assert list(orjson.loads(file.read_bytes())["disks"].values()) == gigabytes


class TestClumsyFakeProvider(TestFakeProvider):
    """The fake that needs time for each clone, so that two of them meet."""

    @pytest.fixture
    def make(self, directory: Path) -> Callable[[], Provider]:
        options = {"directory": str(directory), "unknown": [self.unknown], "clone_seconds": (0.02, 0.05)}
        return lambda: FakeProvider("fake", options)


class TestMigratingFakeProvider(TestFakeProvider):
    """The fake that has hypervisors, and can take VMs from one to the other."""

    @pytest.fixture
    def make(self, directory: Path) -> Callable[[], Provider]:
        options = {"directory": str(directory), "unknown": [self.unknown], "hosts": ["one", "two"], "migrates": "live"}
        return lambda: FakeProvider("fake", options)
