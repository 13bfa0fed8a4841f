"""Processes that are found and signalled, with real ones: none goes on because another one ended before it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from labctl import processes
from tests.acceptance.lab import until

#: Takes the place of this process: it adopts what its children leave, as who looks after processes does.
PROGRAM = """
import os, signal, subprocess, sys, time
from labctl import processes
processes.adopt_orphans()
def find():
    return processes.descendants(os.getpid())
def begin(command, number=1):
    for _ in range(number):
        subprocess.Popen(["/bin/sh", "-c", command])
def collect(seconds=20):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.01)
        except ChildProcessError:
            return True
    return False
"""


def run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return done.stdout


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_parents_come_before_their_children_and_what_is_left_out_goes_with_all_below_it() -> None:
    command = "sh -c 'sleep 60; true' & sh -c 'sleep 60; true'; true"
    shells = [subprocess.Popen(["/bin/sh", "-c", command], start_new_session=True) for _ in range(20)]
    pids = [shell.pid for shell in shells]
    try:
        until(lambda: len(processes.descendants(*pids)) == 80, "all of them run")
        found = processes.descendants(*pids)
        places = {pid: place for place, pid in enumerate([*pids, *found])}
        assert all(places[parent(pid)] < places[pid] for pid in found)

        first = processes.descendants(pids[0])
        others = processes.descendants(*pids, without=[first[0]])
        assert len(others) == 78 and first[0] not in others
    finally:
        processes.send_to_all(lambda: processes.descendants(*pids) + pids, signal.SIGKILL)
        for shell in shells:
            shell.wait()


def test_no_shell_goes_on_with_its_next_command_when_it_and_its_child_are_signalled(tmp_path: Path) -> None:
    file = tmp_path / "never"
    program = """
begin("sleep 60; echo x >> " + sys.argv[2], 100)
while len(find()) < 200:
    time.sleep(0.01)
processes.send_to_all(find, signal.Signals[sys.argv[1]])
print(collect(), find())
"""
    for number in ("SIGTERM", "SIGKILL"):
        assert run(program, number, str(file)) == "True []\n"
        assert not file.exists()


def test_what_is_started_meanwhile_gets_the_signal_as_well() -> None:
    program = """
for _ in range(5):
    begin("while :; do sleep 60 & sleep 0.001; done", 4)
    time.sleep(0.1)
    processes.send_to_all(find, signal.SIGKILL)
    print(collect(1), find())
    while not collect(0.1):
        processes.send_to_all(find, signal.SIGKILL)
"""
    assert run(program) == "True []\n" * 5


def test_what_has_a_way_to_clean_up_does_so(tmp_path: Path) -> None:
    file = tmp_path / "cleaned"
    program = """
begin("exec 2>/dev/null; trap 'echo bye > %s; exit' TERM; sleep 60" % sys.argv[1])
while len(find()) < 2:
    time.sleep(0.01)
processes.send_to_all(find, signal.SIGTERM)
print(collect(), find())
"""
    assert run(program, str(file)) == "True []\n"
    assert file.read_text() == "bye\n"


def test_a_process_that_stopped_before_ends_too() -> None:
    program = """
begin("kill -STOP $$; sleep 60", 3)
time.sleep(0.2)
processes.send_to_all(find, signal.SIGTERM)
print(collect(), find())
"""
    started = time.monotonic()
    assert run(program) == "True []\n"
    assert time.monotonic() < started + 10


def test_another_users_process_is_told_and_not_waited_for() -> None:
    program = """
begin("sleep 600 & sleep 60", 2)
while len(find()) < 6:
    time.sleep(0.01)
theirs = {pid for pid in find() if open(f"/proc/{pid}/cmdline").read().split("\\0")[1] == "600"}
kill = os.kill
def refuse(pid, number):
    if pid in theirs:
        raise PermissionError
    kill(pid, number)
os.kill = refuse
looks = []
started = time.monotonic()
told = processes.send_to_all(lambda: looks.append(1) or find(), signal.SIGTERM)
print(told == theirs, time.monotonic() < started + processes.STOP_WITHIN / 2, len(looks) < 50)
os.kill = kill
while set(find()) != theirs:
    time.sleep(0.01)
processes.send_to_all(find, signal.SIGKILL)
print(collect())
"""
    assert run(program) == "True True True\nTrue\n"
