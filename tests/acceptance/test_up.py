"""``labctl up``, as a person and a process manager see it."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

import labctl
from labctl.tokens.secrets import new_secret
from labctl.up import postgres
from labctl.up.child import Child

from .lab import READY, Up, alive, descendants, free_port, identity, until

Start = Callable[..., Up]


def password_of(home: Path) -> str:
    return (home / "postgres.password").read_text().strip()


#: Root's own Python may lie where nobody else can go.
PYTHONS = (sys.executable, f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}")
MODULES = os.pathsep.join([str(Path(labctl.__file__).parent.parent), *filter(None, sys.path)])


def can_run_labctl(python: str, user: str) -> bool:
    command = [python, "-c", "import labctl.cli.main"]
    try:
        done = subprocess.run(
            command, env={"PYTHONPATH": MODULES}, cwd="/", capture_output=True, timeout=30, **identity(user)
        )
    except OSError:
        return False
    return done.returncode == 0


def one_line(up: Up) -> str:
    """Give the only line on standard error that is not a line of the log."""
    lines = [line for line in up.messages.splitlines() if line.startswith("labctl up:")]
    assert len(lines) == 1, up.messages
    return lines[0]


def test_ready_is_said_on_one_line_and_then_labctl_answers(lab: Up) -> None:
    assert lab.said.splitlines() == [
        f"{READY}{lab.url}/",
        f"The first admin's token is in {lab.home}/admin.token",
    ]
    assert lab.get("/_health").status_code == 204


def test_the_first_admins_token_is_for_this_user_only_and_works(lab: Up) -> None:
    token = lab.home / "admin.token"

    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    secret = token.read_text().strip()
    assert lab.get("/api/events", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    assert lab.get("/api/events", headers={"Authorization": f"Bearer {secret}x"}).status_code == 401


def test_the_database_wants_a_password_and_keeps_what_it_commits(lab: Up) -> None:
    url = (lab.home / "database.url").read_text().strip()
    assert stat.S_IMODE((lab.home / "database.url").stat().st_mode) == 0o600

    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(url.replace(password_of(lab.home), "guess"))
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        for name, value in {"fsync": "on", "synchronous_commit": "on", "server_encoding": "UTF8"}.items():
            cursor.execute("SELECT current_setting(%s)", (name,))
            assert cursor.fetchone() == (value,)


def test_other_commands_find_the_database_of_a_running_labctl(lab: Up) -> None:
    command = [sys.executable, "-m", "labctl.cli.main", "user", "list"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LABCTL_")}

    done = subprocess.run(
        command, env={**environ, "LABCTL_HOME": str(lab.home)}, capture_output=True, text=True, timeout=30
    )

    assert done.returncode == 0, done.stderr
    assert "admin" in done.stdout


def test_second_up_on_one_home_says_so_and_exits_1(lab: Up, start: Start) -> None:
    second = start(lab.home)

    assert second.wait() == 1
    assert one_line(second) == f"labctl up: another labctl up runs in {lab.home}"
    assert lab.healthy()


def test_a_port_in_use_is_named_and_nothing_is_left_running(lab: Up, home: Path, start: Start) -> None:
    other = start(home, port=lab.port)

    assert other.wait() == 1
    assert f"cannot listen on 127.0.0.1 port {lab.port}: Address already in use" in one_line(other)
    assert not (home / "postgres").exists()


def test_a_killed_gunicorn_master_is_replaced_and_its_processes_end(lab: Up) -> None:
    master, processes = lab.master, lab.web_processes
    assert processes

    os.kill(master, signal.SIGKILL)

    until(lambda: not any(map(alive, [master, *processes])), "gunicorn's processes end with their master")
    until(lab.healthy, "labctl answers again")
    assert lab.master != master
    assert "child_ended child=web" in lab.messages


def test_a_killed_web_process_is_replaced(lab: Up) -> None:
    victim = lab.web_processes[0]

    os.kill(victim, signal.SIGKILL)

    until(lambda: victim not in lab.web_processes and len(lab.web_processes) == 2, "there are two web processes again")
    until(lab.healthy, "labctl answers")


def test_a_killed_worker_is_replaced(lab: Up) -> None:
    victim = lab.worker
    started = lab.messages.count("worker_started")

    os.kill(victim, signal.SIGKILL)

    until(lambda: lab.messages.count("worker_started") > started, "there is a worker again")
    assert lab.worker != victim
    assert "child_ended child=worker" in lab.messages


def test_a_killed_database_comes_back_on_its_port_and_labctl_recovers(lab: Up) -> None:
    victim = lab.database
    url = (lab.home / "database.url").read_text()

    os.kill(victim, signal.SIGKILL)

    until(lambda: "child_ended child=database" in lab.messages, "the end of the database is noticed")
    until(lab.healthy, "labctl answers again")
    assert lab.database != victim
    assert (lab.home / "database.url").read_text() == url


def test_a_stop_signal_ends_every_process_and_a_second_start_reuses_the_data(home: Path, start: Start) -> None:
    first = start(home).wait_until_ready()
    token = (home / "admin.token").read_text()
    processes = descendants(first.pid)
    assert len(processes) >= 5

    assert first.stop() == 0, first.messages
    assert not [line for pid, line in processes.items() if alive(pid)]
    assert not (home / "database.url").exists()
    assert "child_killed" not in first.messages
    log = "".join(path.read_text() for path in (home / "postgres" / "log").iterdir())
    assert "database system is shut down" in log

    second = start(home).wait_until_ready()
    assert (home / "admin.token").read_text() == token
    headers = {"Authorization": f"Bearer {token.strip()}"}
    assert second.get("/api/events", headers=headers).status_code == 200
    processes = descendants(second.pid)

    # Ctrl-C
    assert second.stop(signal.SIGINT) == 0, second.messages
    assert not [line for pid, line in processes.items() if alive(pid)]


def test_a_stop_while_labctl_starts_leaves_nothing(home: Path, start: Start) -> None:
    up = start(home)
    until(lambda: "child_started child=database" in up.messages, "the database starts")
    processes = descendants(up.pid)

    assert up.stop() == 0, up.messages
    assert not [line for pid, line in processes.items() if alive(pid)]
    assert READY not in up.said


def test_sigkill_leaves_nothing_and_the_next_start_is_as_any_other(home: Path, start: Start) -> None:
    up = start(home).wait_until_ready()
    processes = descendants(up.pid)
    assert len(processes) >= 5
    # A client in the middle of something must not keep a process alive.
    with socket.create_connection(("127.0.0.1", up.port)) as client:
        client.sendall(b"GET /_health HTTP/1.1\r\n")

        up.process.kill()
        up.wait()
        # At once, while the processes of the first may still be on their way out.
        second = start(home, port=up.port).wait_until_ready()

    assert not [line for pid, line in processes.items() if alive(pid)]
    assert second.healthy()
    assert second.stop() == 0


def test_a_token_that_was_written_but_not_committed_becomes_the_first_admins(home: Path, start: Start) -> None:
    home.mkdir(mode=0o700)
    token = new_secret()
    (home / "admin.token").write_text(token)

    up = start(home).wait_until_ready()

    assert (home / "admin.token").read_text().strip() == token
    assert up.get("/api/events", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_a_database_elsewhere_is_used_instead_of_one_of_its_own(home: Path, start: Start) -> None:
    with postgres.running(home.with_name("elsewhere")) as url:
        up = start(home, LABCTL_DATABASE_URL=url).wait_until_ready()

        assert up.healthy()
        assert not (home / "postgres").exists()
        assert up.stop() == 0, up.messages


def test_an_ordinary_user_can_run_labctl(start: Start) -> None:
    if os.geteuid() != 0:
        pytest.skip("the other tests run as an ordinary user already")
    python = next((python for python in PYTHONS if can_run_labctl(python, "nobody")), None)
    if python is None:
        pytest.skip("an ordinary user cannot reach this checkout and its Python")
    directory = Path(tempfile.mkdtemp(prefix="labctl-"))
    shutil.chown(directory, "nobody")
    try:
        up = start(directory / "home", user="nobody", python=python, PYTHONPATH=MODULES).wait_until_ready()

        assert up.healthy()
        assert up.stop() == 0
    finally:
        shutil.rmtree(directory)


def test_a_child_that_keeps_ending_is_started_again_after_pauses_that_double_up_to_a_limit() -> None:
    now = 0.0
    child = Child("false", lambda: subprocess.Popen(["false"]), clock=lambda: now)
    child.start()
    pauses = []
    for _ in range(8):
        assert child.process is not None
        child.process.wait()
        pause = child.tend()
        assert pause is not None
        pauses.append(pause)
        now += pause
        assert child.tend() is None

    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert child.process is not None
    child.process.wait()
    now += 60
    assert child.tend() == 0.5
    assert child.last_end == "status 1"


def test_a_child_that_cannot_be_started_is_tried_again() -> None:
    now = 0.0
    child = Child("missing", lambda: subprocess.Popen(["/nonexistent"]), clock=lambda: now)

    assert child.tend() == 0.5
    assert child.process is None
    now = 0.5
    assert child.tend() == 1


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"LABCTL_WEB_THREADS": "none"}, "web_threads: "),
        ({"LABCTL_CONFIG": "/nonexistent.py"}, "LABCTL_CONFIG: there is no file /nonexistent.py"),
        ({"LABCTL_HOST": "192.0.2.1"}, "cannot listen on 192.0.2.1"),
        ({"LABCTL_PG_BIN": "/nonexistent"}, "LABCTL_PG_BIN: /nonexistent does not hold"),
        ({"LABCTL_DATABASE_URL": "mysql://host/name"}, "must begin with postgresql://"),
        ({"LABCTL_HOME": "/proc/labctl"}, "cannot use /proc/labctl"),
    ],
)
def test_what_is_wrong_is_said_on_one_line_and_exits_1(
    home: Path, start: Start, environ: dict[str, str], words: str
) -> None:
    up = start(home, **environ)

    assert up.wait() == 1
    assert words in one_line(up)
    assert "Traceback" not in up.messages


def test_an_unreachable_database_is_named_without_its_password(home: Path, start: Start) -> None:
    up = start(home, LABCTL_DATABASE_URL=f"postgresql://labctl:hush@127.0.0.1:{free_port()}/labctl")

    assert up.wait() == 1
    assert "cannot reach the database of LABCTL_DATABASE_URL on 127.0.0.1" in one_line(up)
    assert "hush" not in up.messages


def test_a_failing_initdb_is_reported_and_leaves_no_half_made_data(home: Path, start: Start, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    versions = 'case "$*" in *--version*) echo "(PostgreSQL) 15.1"; exit;; *--show*) exit;; esac'
    for name, last_words in {"postgres": "", "initdb": "echo 'initdb: error: the moon is full' >&2; exit 1"}.items():
        script = f"#!/bin/sh\n{versions}\n{last_words}\n"
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    for directory in (tmp_path, *list(tmp_path.parents)[:-2]):
        directory.chmod(0o755)

    up = start(home, LABCTL_PG_BIN=str(programs))

    assert up.wait() == 1
    assert one_line(up).endswith("initdb ended with status 1: initdb: error: the moon is full")
    assert not list(home.glob("postgres.new"))
    assert not (home / "postgres").exists()
