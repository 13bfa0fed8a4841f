"""What the settings say of the executor and of plugins."""

from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from labctl import worker
from labctl.remote import config
from labctl.remote.executor import Misconfigured
from labctl.remote.executors.fake import FakeExecutor
from labctl.settings import Settings, SettingsError

TASK = """
from labctl.remote.task import Task

class {cls}(Task):
    type = "kind"
    {extra}
    def __init__(self, options):
        pass
    def run(self, hosts, operate):
        yield from ()
"""
EXECUTOR = """
from labctl.remote.executors.fake import FakeExecutor

class Own(FakeExecutor):
    name = "own"
"""


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    directory = tmp_path / "plugins"
    directory.mkdir()
    return directory


@pytest.fixture
def configured(settings: Settings, plugins: Path, tmp_path: Path) -> Settings:
    return replace(settings, home=str(tmp_path), remote_plugins=str(plugins), executor={"plugin": "fake"})


def write(directory: Path, name: str, content: str) -> None:
    (directory / name).write_text(dedent(content))


def test_the_executor_that_the_settings_name_is_made_with_their_options(configured: Settings, tmp_path: Path) -> None:
    executor = config.executor(replace(configured, executor={"plugin": "fake", "hosts": ["a"]}))

    assert isinstance(executor, FakeExecutor) and set(executor.hosts()) == {"a"}
    assert executor._home == tmp_path / "remote" and not (tmp_path / "remote").exists()


@pytest.mark.parametrize(
    ("executor", "mistake"),
    [
        ({}, "executor.plugin: must say which executor it is"),
        ({"plugin": 5}, "executor.plugin: must say which executor it is"),
        ({"plugin": "salt"}, "executor.plugin: there is no labctl.executors plugin 'salt'; installed: ansible, fake"),
        ({"plugin": "fake", "color": "red"}, "executor.color: Unexpected keyword argument"),
    ],
)
def test_a_mistake_in_the_setting_is_told_and_ends_the_worker(
    configured: Settings, executor: dict[str, object], mistake: str
) -> None:
    wrong = replace(configured, executor=executor)

    assert config.check(wrong) == [mistake] == config.fatal(wrong)
    with pytest.raises(Misconfigured):
        config.executor(wrong)
    with pytest.raises(SettingsError, match=mistake.partition(":")[0]):
        worker.run(wrong)


def test_every_mistake_is_told_at_once(configured: Settings) -> None:
    wrong = replace(configured, executor={"plugin": "fake", "steps": -1, "rate": "x"}, remote_plugins="/nowhere")

    assert [line.partition(":")[0] for line in config.check(wrong)] == [
        "remote_plugins",
        "executor.steps",
        "executor.rate",
    ]


def test_the_tasks_that_come_with_labctl_are_there(configured: Settings) -> None:
    assert {name: task.type for name, task in config.tasks(configured).items()} == {"rolling_restart": "rolling"}


def test_a_file_in_the_directory_is_a_task_by_its_name(configured: Settings, plugins: Path) -> None:
    write(plugins, "reboot.py", TASK.format(cls="Reboot", extra=""))
    write(plugins, "a.py", TASK.format(cls="Drain", extra='name = "drain"'))
    write(plugins, "b.py", 'name = "wipe"\n' + TASK.format(cls="Wipe", extra=""))
    write(plugins, "_hidden.py", "raise RuntimeError")
    write(plugins, "notes.txt", "not Python")

    assert list(config.tasks(configured)) == ["drain", "reboot", "rolling_restart", "wipe"]
    assert config.check(configured) == []


def test_an_executor_may_come_from_a_file(configured: Settings, plugins: Path) -> None:
    write(plugins, "whatever.py", EXECUTOR)
    own = replace(configured, executor={"plugin": "own", "hosts": 1})

    assert config.check(own) == []
    assert type(config.executor(own)).__name__ == "Own"


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        ("import no_such_module", "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f(:", "cannot be loaded: SyntaxError: "),
        ("raise SystemExit(3)", "cannot be loaded: SystemExit: 3"),
        (TASK.format(cls="A", extra="").replace("run", "walk"), ": A cannot be used: it does not define run"),
        (TASK.format(cls="A", extra="").replace("type =", "kind ="), ": A cannot be used: its attribute type must"),
        (TASK.format(cls="A", extra="name = 5"), ": A cannot be used: its name must be a text"),
        (TASK.format(cls="A", extra='name = "rolling_restart"'), "there is another one called rolling_restart"),
        (TASK.format(cls="A", extra="") + TASK.format(cls="B", extra=""), ": B cannot be used: there is another one"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_reason_and_the_others_are_there(
    configured: Settings, plugins: Path, content: str, mistake: str
) -> None:
    write(plugins, "bad.py", content)
    write(plugins, "good.py", TASK.format(cls="Good", extra=""))
    (found,) = config.check(configured)

    assert found.startswith("remote_plugins: bad.py") and mistake in found
    assert {"good", "rolling_restart"} <= config.tasks(configured).keys()
    assert config.fatal(configured) == []


def test_a_missing_executor_may_be_missing_because_its_file_is_broken(configured: Settings, plugins: Path) -> None:
    write(plugins, "own.py", "import no_such_module")
    found = config.fatal(replace(configured, executor={"plugin": "own"}))

    assert len(found) == 2 and "no_such_module" in found[1]
