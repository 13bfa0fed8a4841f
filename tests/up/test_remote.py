"""What labctl up leaves in its home directory for operations on hosts."""

import stat
from pathlib import Path
from typing import Any

import pytest

from labctl.settings import Settings
from labctl.up.remote import EXAMPLE, prepare


def files(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def test_the_first_start_leaves_an_inventory_a_play_and_a_role(tmp_path: Path) -> None:
    prepare(Settings(), tmp_path)

    assert files(tmp_path / "remote") == files(EXAMPLE)
    assert {"inventory", "playbooks/_deploy.yml", "playbooks/roles/motd/tasks/main.yml"} <= files(EXAMPLE).keys()
    assert list(tmp_path.iterdir()) == [tmp_path / "remote"]


def test_what_is_there_is_never_changed(tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "inventory").write_text("mine\n")
    prepare(Settings(), tmp_path)

    assert files(tmp_path / "remote") == {"inventory": "mine\n"}


def test_a_start_after_one_that_was_killed_in_the_middle_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "remote.new" / "playbooks").mkdir(parents=True)
    (tmp_path / "remote.new" / "playbooks" / "_deploy.yml").write_text("half")
    prepare(Settings(), tmp_path)

    assert files(tmp_path / "remote") == files(EXAMPLE)
    assert not (tmp_path / "remote.new").exists()


def test_the_user_can_change_what_comes_from_files_that_cannot_be_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "example" / "playbooks").mkdir(parents=True)
    (tmp_path / "example" / "playbooks" / "_deploy.yml").write_text("[]\n")
    (tmp_path / "example" / "playbooks" / "_deploy.yml").chmod(0o444)
    (tmp_path / "example" / "playbooks").chmod(0o555)
    monkeypatch.setattr("labctl.up.remote.EXAMPLE", tmp_path / "example")
    prepare(Settings(), tmp_path)

    for path in (tmp_path / "remote").rglob("*"):
        assert path.stat().st_mode & stat.S_IWUSR
    (tmp_path / "example" / "playbooks").chmod(0o755)


@pytest.mark.parametrize("executor", [{"plugin": "ansible", "workdir": "/srv/ansible"}, {"plugin": "fake"}])
def test_nothing_is_left_where_the_settings_say_what_to_use(tmp_path: Path, executor: dict[str, Any]) -> None:
    prepare(Settings(executor=executor), tmp_path)

    assert list(tmp_path.iterdir()) == []
