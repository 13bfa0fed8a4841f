"""Home directories and ``labctl up`` processes for the acceptance tests."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .lab import Up, until


def remove(directory: Path) -> None:
    """Remove a directory in which a process that was just killed may still be at work."""

    def gone() -> bool:
        shutil.rmtree(directory, ignore_errors=True)
        return not directory.exists()

    until(gone, f"{directory} can be removed")


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that is not there yet, under one that only this user may enter, as clones often lie."""
    directory = Path(tempfile.mkdtemp(prefix="labctl-"))
    yield directory / "home"
    remove(directory)


@pytest.fixture
def start() -> Iterator[Callable[..., Up]]:
    """Start labctl up; at the end of the test every process is gone."""
    started: list[Up] = []

    def start(*arguments: object, **options: object) -> Up:
        started.append(Up(*arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for up in started:
        up.close()


@pytest.fixture(scope="module")
def lab() -> Iterator[Up]:
    """One running labctl, for the tests that leave it running."""
    directory = Path(tempfile.mkdtemp(prefix="labctl-"))
    up = Up(directory / "home")
    try:
        yield up.wait_until_ready()
    finally:
        up.close()
        remove(directory)
