"""The labctl command, as a person at a shell sees it."""

import os
import subprocess
import sys

import pytest
from sqlalchemy import Engine

from labctl.settings import Settings


def labctl(url: str, *arguments: str, typed: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LABCTL_")}
    return subprocess.run(
        [sys.executable, "-m", "labctl.cli.main", *arguments],
        env={**environ, "LABCTL_DATABASE_URL": url, **more},
        input=typed,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_users_are_added_listed_given_passwords_and_removed(committed: Engine, settings: Settings) -> None:
    url = settings.database_url

    added = labctl(url, "user", "add", "ana", "--right", "events", "--password-stdin", typed="secret\n")
    assert (added.returncode, added.stdout) == (0, "added ana\n"), added.stderr
    listed = labctl(url, "user", "list").stdout
    assert "ana" in listed
    assert "events" in listed
    assert "secret" not in listed
    twice = labctl(url, "user", "add", "ana", "--no-password")
    assert (twice.returncode, twice.stderr) == (1, "labctl: user ana already exists\n")
    assert labctl(url, "user", "password", "ana", "--password-stdin", typed="other\n").returncode == 0
    assert labctl(url, "user", "remove", "ana").returncode == 0
    gone = labctl(url, "user", "remove", "ana")
    assert (gone.returncode, gone.stderr) == (1, "labctl: there is no user ana\n")


def test_a_token_is_shown_once_listed_by_its_id_and_revoked(committed: Engine, settings: Settings) -> None:
    url = settings.database_url
    labctl(url, "user", "add", "ana", "--admin", "--no-password")

    secret = labctl(url, "token", "create", "ana", "--scope", "events", "--days", "1").stdout.strip()
    assert len(secret) == 32
    listed = labctl(url, "token", "list", "ana").stdout
    assert secret not in listed
    assert "events" in listed
    public_id = listed.splitlines()[-1].split()[0]
    assert labctl(url, "token", "revoke", public_id).stdout == "revoked\n"
    assert labctl(url, "token", "revoke", secret).stderr == "labctl: there is no such token\n"


@pytest.mark.parametrize(
    ("environ", "words"),
    [({"LABCTL_PORT": "x"}, "port"), ({"LABCTL_CONFIG": "/nowhere/config.py"}, "/nowhere/config.py")],
)
def test_bad_settings_are_named_and_nothing_is_done(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], words: str
) -> None:
    command = [sys.executable, "-m", "labctl.cli.main", "user", "list"]
    done = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_that_cannot_be_reached_is_one_line(settings: Settings) -> None:
    done = labctl("postgresql://nobody:hidden@127.0.0.1:1/none", "user", "list")

    assert done.returncode == 1
    assert done.stderr == "labctl: the database cannot be reached at the moment\n"


def test_every_command_has_a_help_text() -> None:
    top = labctl("", "--help").stdout
    for command in ("up", "worker", "check", "db", "user", "token", "demo"):
        assert command in top
        assert labctl("", command, "--help").stdout.startswith("Usage:")
