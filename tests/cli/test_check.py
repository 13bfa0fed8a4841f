"""``labctl check``: what it says of a configuration, and that nothing secret is in it."""

import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from labctl import migrations
from labctl.settings import Settings
from labctl.up.remote import EXAMPLE

from .test_cli import labctl

WORKDIR = {"plugin": "ansible", "workdir": str(EXAMPLE)}


class Checked:
    """What it said: by what it is about, and in all."""

    def __init__(self, done: "subprocess.CompletedProcess[str]") -> None:
        assert done.stderr == ""
        self.code = done.returncode
        self.text = done.stdout
        self.lines = done.stdout.splitlines()

    @property
    def wrong(self) -> list[str]:
        """What is wrong."""
        return [line.removeprefix("wrong  ") for line in self.lines if line.startswith("wrong  ")]

    @property
    def right(self) -> list[str]:
        """What is as it should be."""
        return [line.removeprefix("ok     ") for line in self.lines if line.startswith("ok     ")]


@pytest.fixture
def check(settings: Settings, tmp_path: Path) -> Any:
    """Check a configuration that is right but for what is given, in a file."""

    def check(**given: Any) -> Checked:
        values = {"database_url": settings.database_url, "home": str(tmp_path), "executor": {"plugin": "fake"}, **given}
        config = tmp_path / "config.py"
        config.write_text("".join(f"{name} = {value!r}\n" for name, value in values.items()))
        return Checked(labctl("", "check", LABCTL_CONFIG=str(config)))

    return check


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_configuration_that_is_right_has_one_line_for_everything(check: Any) -> None:
    checked = check()

    assert (checked.code, checked.wrong) == (0, [])
    assert [line.partition(":")[0] for line in checked.right] == ["settings", "database", "vms", "remote"]
    assert checked.right[-1] == "remote: fake knows 3 hosts"
    assert "not real" in checked.text


def test_the_example_of_labctl_up_is_right(check: Any) -> None:
    checked = check(executor=WORKDIR)

    assert checked.wrong == []
    assert checked.right[-1] == "remote: ansible knows 3 hosts"


def test_everything_that_is_wrong_is_said_at_once(check: Any, tmp_path: Path) -> None:
    checked = check(
        database_url=f"postgresql://labctl:hidden@127.0.0.1:{closed_port()}/labctl",
        api_user="farm",
        pools=[{"name": "one", "provider": "nosuch"}],
        executor={"plugin": "ansible", "workdir": str(tmp_path / "nowhere")},
        ldap_urls=[f"ldap://127.0.0.1:{closed_port()}"],
        ldap_base="dc=example",
    )

    assert checked.code == 1
    assert {line.partition(":")[0] for line in checked.wrong} == {"settings", "database", "vms", "remote", "ldap"}
    assert "hidden" not in checked.text


def test_mistakes_in_the_settings_come_first_and_alone(check: Any) -> None:
    checked = check(port="x", web_threads=0, nosuch=1)

    assert checked.code == 1
    assert len(checked.lines) == 4
    assert all(line.startswith("settings: ") for line in checked.wrong)
    assert [name for name in ("port", "web_threads", "nosuch") if name not in checked.text] == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"api_user": "farm"}, "settings: api_key: "),
        ({"api_key": "of the farm"}, "settings: api_user: "),
        ({"database_pool_size": 4}, "settings: database_pool_size: less than web_threads (16)"),
        ({"ldap_base": "dc=example"}, "settings: ldap_urls: "),
        ({"database_url": "mysql://root@localhost/labctl"}, "database: database_url must begin with postgresql://"),
        ({"database_url": ""}, "database: database_url: not set, and no labctl up runs in "),
        ({"providers": {"lab": {"plugin": "nosuch"}}, "pools": []}, "vms: providers.lab.plugin: "),
        ({"executor": {"plugin": "nosuch"}}, "remote: executor"),
        ({"executor": {**WORKDIR, "nosuch": 1}}, "remote: executor"),
        ({"executor": {**WORKDIR, "inventory": "nosuch"}}, "remote: inventory: "),
        ({"executor": {"plugin": "ansible", "workdir": "/nowhere"}}, "remote: workdir: "),
        ({"remote_plugins": "/nowhere"}, "remote: remote_plugins: "),
    ],
)
def test_one_mistake_is_one_line_that_names_it(check: Any, given: dict[str, Any], words: str) -> None:
    checked = check(**given)

    assert checked.code == 1
    (said,) = checked.wrong
    assert said.startswith(words)
    for value in given.values():
        if isinstance(value, dict) and "nosuch" in value.values():
            assert "nosuch" in said
    assert "of the farm" not in checked.text


def test_what_ansible_needs_and_is_not_there_is_wrong(check: Any, tmp_path: Path) -> None:
    (tmp_path / "inventory").write_text("# nobody\n")
    checked = check(executor={"plugin": "ansible", "workdir": str(tmp_path)})

    assert [line.split(": ")[:2] for line in checked.wrong] == [
        ["remote", "playbooks"],
        ["remote", "playbooks"],
        ["remote", "inventory"],
    ]
    assert ["_deploy.yml" in checked.wrong[0], "roles" in checked.wrong[1], "no hosts" in checked.wrong[2]] == [
        True
    ] * 3


def test_a_schema_that_is_not_current_is_wrong(check: Any, committed: Any, settings: Settings) -> None:
    migrations.downgrade(settings.database_url, "-1")
    try:
        checked = check()
    finally:
        migrations.upgrade(settings.database_url)

    (said,) = checked.wrong
    assert "labctl db upgrade" in said


def test_a_plugin_that_breaks_is_a_finding_among_the_others(check: Any, tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "broken.py").write_text("1 / 0\n")
    checked = check(remote_plugins=str(tmp_path / "plugins"))

    assert checked.code == 1
    assert all(line.startswith("remote: ") and "broken" in line for line in checked.wrong)
    assert [line.partition(":")[0] for line in checked.right] == ["settings", "database", "vms", "remote"]
