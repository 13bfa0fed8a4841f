"""The ansible executor with a real sshd: nothing goes on when a job, a worker or a process in between has ended."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from labctl import processes
from labctl.remote.carrying import CANCEL_PATIENCE
from labctl.remote.executor import Order, Run
from labctl.remote.executors import ansible_server
from labctl.remote.executors.ansible import AnsibleExecutor
from labctl.remote.states import Operation, Status
from tests.acceptance.lab import alive, until
from tests.contracts.executor import read_all
from tests.sshd import Sshd

from .ansible_lab import Lab

#: A command that is hard to end: it ignores what can be ignored, and has a child in a session of its own.
STUBBORN = """trap '' HUP TERM INT
setsid sh -c 'trap "" HUP TERM INT; echo $$ > {file}.child; sleep 1000' &
echo $$ > {file}
sleep 1000
sleep 1000
"""
#: Seconds that are too few for what is only noticed when something else happens.
SOON = 10
#: Many shells in one command, each of which goes on with a next one. What they wait for begins much later than they do,
#: so that the order of the numbers of processes, by whatever they are sorted, is not that of parents and children.
MANY = """mkfifo {file}.fifo
for i in $(seq 60); do (read go < {file}.fifo; sleep 60; echo x >> {file}) & done
i=0; while [ $i -lt 420 ]; do (:); i=$((i + 1)); done
: > {file}.fifo
echo $$ > {file}.pid
wait
"""
WORKER = """
import sys
from pathlib import Path
from labctl.remote.executor import Order
from labctl.remote.executors.ansible import AnsibleExecutor
from labctl.remote.states import Operation
executor = AnsibleExecutor({"workdir": sys.argv[1]}, Path("unused"))
order = Order("jid", Operation.EXECUTE, ("web1", "here"), {"command": sys.argv[2]}, 600, lease=5)
runs = [executor.begin(order) for _ in range(int((*sys.argv, 1)[3]))]
while True:
    for run in runs:
        run.read(1)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, sshd: Sshd) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), sshd)


@pytest.fixture(scope="module")
def shared(lab: Lab) -> Iterator[AnsibleExecutor]:
    executor = AnsibleExecutor({"workdir": str(lab.directory)}, Path("unused"))
    yield executor
    executor.close()


@pytest.fixture
def executor(lab: Lab) -> Iterator[AnsibleExecutor]:
    executor = AnsibleExecutor({"workdir": str(lab.directory)}, Path("unused"))
    yield executor
    executor.close()


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of its own for what a server writes; short, as paths of sockets must be."""
    directory = Path(tempfile.mkdtemp(prefix="t-"))
    monkeypatch.setenv("TMPDIR", str(directory))
    yield directory
    shutil.rmtree(directory)


def begin(executor: AnsibleExecutor, operation: Operation, host: str, timeout: float = 600, **arguments: Any) -> Run:
    return executor.begin(Order("jid", operation, (host,), arguments, timeout))


def begin_stubborn(executor: AnsibleExecutor, host: str, file: Path, timeout: float = 600) -> tuple[Run, list[int]]:
    run = begin(executor, Operation.EXECUTE, host, timeout, command=STUBBORN.format(file=file))
    return run, [pid_in(file), pid_in(Path(f"{file}.child"))]


def long_role(file: Path) -> dict[str, Any]:
    return {"role": "long", "partial": None, "extra_vars": {"file": str(file)}}


def pid_in(file: Path) -> int:
    return int(until(lambda: file.exists() and file.read_text().strip(), "the command runs"))


def gone(pids: list[int]) -> Callable[[], bool]:
    return lambda: not any(alive(pid) for pid in pids)


def below(pid: int) -> list[int]:
    return processes.descendants(pid)


@pytest.mark.parametrize("host", ["web1", "here"])
def test_a_command_that_is_cancelled_ends_on_its_host_whatever_it_ignores(
    shared: AnsibleExecutor, host: str, tmp_path: Path
) -> None:
    run, pids = begin_stubborn(shared, host, tmp_path / "pid")
    run.cancel()

    until(gone(pids), "the command has ended")
    assert read_all(run) == [] and run.error is None


@pytest.mark.parametrize("host", ["web1", "here"])
def test_no_shell_of_a_command_that_is_cancelled_goes_on_with_what_comes_next(
    shared: AnsibleExecutor, host: str, tmp_path: Path
) -> None:
    file = tmp_path / "never"
    run = begin(shared, Operation.EXECUTE, host, command=MANY.format(file=file))
    pid = pid_in(Path(f"{file}.pid"))
    pids = until(lambda: len(found := below(pid)) == 120 and found, "all of its shells run")
    run.cancel()

    read_all(run)
    until(gone([pid, *pids]), "the command has ended")
    assert not file.exists()


def test_a_step_of_a_role_whose_time_is_up_ends(shared: AnsibleExecutor, tmp_path: Path) -> None:
    run = begin(shared, Operation.DEPLOY, "here", timeout=1, **long_role(tmp_path / "pid"))

    read_all(run)
    assert run.error == "timed out after 1 s"
    # On a busy machine it may not have come to begin.
    pids = [int(text) for file in tmp_path.glob("pid*") if (text := file.read_text().strip())]
    assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize("host", ["web1", "here"])
def test_a_command_whose_time_is_up_ends_and_its_host_tells_what_it_has_said(
    shared: AnsibleExecutor, host: str, tmp_path: Path
) -> None:
    command = "echo so far; echo trouble >&2\n" + STUBBORN.format(file=tmp_path / "pid")
    [result] = read_all(begin(shared, Operation.EXECUTE, host, timeout=3, command=command))

    assert (result.status, result.values["rtc"]) == (Status.FAILED, 124)
    assert result.values["stdout"].startswith("so far\n") and result.values["stderr"].startswith("trouble\n")
    assert result.values["message"] == "timed out after 3 s"
    assert gone([pid_in(tmp_path / "pid"), pid_in(tmp_path / "pid.child")])()


def test_a_step_of_a_role_that_is_cancelled_ends_on_its_host(shared: AnsibleExecutor, tmp_path: Path) -> None:
    run = begin(shared, Operation.DEPLOY, "web1", **long_role(tmp_path / "pid"))
    pid = pid_in(tmp_path / "pid")
    run.cancel()

    until(gone([pid]), "the step has ended")
    read_all(run)


def test_jobs_that_use_the_connection_of_one_that_is_cancelled_go_on(shared: AnsibleExecutor, tmp_path: Path) -> None:
    run, pids = begin_stubborn(shared, "web2", tmp_path / "pid")
    other = begin(shared, Operation.EXECUTE, "web2", command=f"echo $$ > {tmp_path}/other; sleep 5; echo hello")
    pid_in(tmp_path / "other")
    run.cancel()
    until(gone(pids), "the command has ended")

    assert read_all(run) == []
    assert [(result.status, result.values["stdout"]) for result in read_all(other)] == [(Status.CHANGED, "hello\n")]


def test_nothing_is_left_when_the_worker_is_killed(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    command = f"file={file}-$$; " + STUBBORN.format(file="$file").replace("'trap", "'file='$file'; trap")
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(lab.directory), command])
    until(lambda: len(list(tmp_path.glob("pid-*"))) == 4, "the commands run")
    pids = [pid_in(one) for one in tmp_path.glob("pid-*")]
    ours = list(below(worker.pid))
    assert len(ours) > 5
    worker.kill()
    worker.wait()

    until(gone(pids + ours), "everything has ended")


def test_nothing_goes_on_for_longer_than_its_lease_when_the_worker_is_stopped(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    command = f"file={file}-$$; " + STUBBORN.format(file="$file").replace("'trap", "'file='$file'; trap")
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(lab.directory), command])
    try:
        until(lambda: len(list(tmp_path.glob("pid-*"))) == 4, "the commands run")
        pids = [pid_in(one) for one in tmp_path.glob("pid-*")]
        time.sleep(6)
        assert all(alive(pid) for pid in pids), "a worker that only waits is heard of"
        worker.send_signal(signal.SIGSTOP)
        until(gone(pids), "the commands have ended", 5 + SOON)
    finally:
        worker.kill()
        worker.wait()


def test_when_the_server_is_killed_its_jobs_end_and_say_so_and_the_next_one_finds_another(
    executor: AnsibleExecutor, tmp_path: Path
) -> None:
    run, pids = begin_stubborn(executor, "web1", tmp_path / "pid")
    other, others = begin_stubborn(executor, "here", tmp_path / "other")
    os.kill(server_of(others[0]), signal.SIGKILL)

    read_all(run)
    read_all(other)
    until(gone(pids + others), "the commands have ended")
    assert run.error == other.error == "the process that began it has ended"
    assert [result.status for result in read_all(begin(executor, Operation.PING, "web1"))] == [Status.OK]


def test_when_who_looks_after_a_job_is_killed_the_server_does(executor: AnsibleExecutor, tmp_path: Path) -> None:
    other = begin(executor, Operation.EXECUTE, "here", command=f"echo $$ > {tmp_path}/other; sleep 5; echo hello")
    pid_in(tmp_path / "other")
    run, pids = begin_stubborn(executor, "here", tmp_path / "pid")
    os.kill(supervisor_of(pids[0]), signal.SIGKILL)

    until(gone(pids), "the command has ended", SOON)
    read_all(run)
    assert run.error == "the process that carried this out was lost"
    assert [result.values["stdout"] for result in read_all(other)] == ["hello\n"]


def test_a_job_that_is_cancelled_while_who_looks_after_it_is_stopped_ends_before_that_is_told(
    executor: AnsibleExecutor, tmp_path: Path
) -> None:
    other = begin(executor, Operation.EXECUTE, "here", command=f"echo $$ > {tmp_path}/other; sleep 8; echo hello")
    pid_in(tmp_path / "other")
    file = tmp_path / "never"
    run = begin(executor, Operation.EXECUTE, "here", command=MANY.format(file=file))
    pid = pid_in(Path(f"{file}.pid"))
    pids = [supervisor_of(pid), pid, *below(pid)]
    os.kill(pids[0], signal.SIGSTOP)
    run.cancel()

    assert read_all(run, CANCEL_PATIENCE) == []
    assert gone(pids)() and not file.exists()
    assert [result.values["stdout"] for result in read_all(other)] == ["hello\n"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_server_ends_with_its_worker_although_those_who_looked_after_jobs_were_killed(
    lab: Lab, tmp_path: Path, how: signal.Signals
) -> None:
    command = f"echo $$ > {tmp_path}/pid-$$; sleep 1000; echo x >> {tmp_path}/never"
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(lab.directory), command, "6"])
    try:
        until(lambda: len(list(tmp_path.glob("pid-*"))) == 12, "the commands run")
        pids = [pid_in(one) for one in tmp_path.glob("pid-*")]
        [server] = [pid for pid in below(worker.pid) if parent(pid) == worker.pid and is_server(pid)]
        for pid in [pid for pid in below(server) if parent(pid) == server and is_server(pid)]:
            os.kill(pid, signal.SIGKILL)
            # One ends while the server is at work for another.
            time.sleep(0.02)
        if how == signal.SIGTERM:
            until(gone(pids), "the commands have ended", SOON)
    finally:
        worker.send_signal(how)
        worker.wait()

    until(gone([server, *pids]), "everything has ended", SOON)
    assert not (tmp_path / "never").exists()


def test_the_server_does_not_wait_for_ever_for_what_cannot_be_ended() -> None:
    # Linux has no process of this number, so no signal reaches it.
    nobody = 2**22 + 1

    assert not ansible_server.end(lambda: [nobody], longest=0.1)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_what_is_another_users_is_neither_waited_for_nor_said_to_have_ended(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    started = time.monotonic()
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", refuse)
        assert not ansible_server.end(lambda: [sleeper.pid], longest=SOON * 2, collect=lambda: None)
    assert time.monotonic() < started + SOON


def test_one_look_that_misses_a_process_does_not_mean_that_there_is_none(sleeper: subprocess.Popen[bytes]) -> None:
    missed = [True]

    def look() -> list[int]:
        return [] if (missed and missed.pop()) or sleeper.poll() is not None else [sleeper.pid]

    assert ansible_server.end(look, collect=lambda: None)
    assert sleeper.returncode == -signal.SIGKILL


def test_a_job_that_cannot_be_begun_is_lost_alone(lab: Lab, temporary: Path, tmp_path: Path) -> None:
    executor = AnsibleExecutor({"workdir": str(lab.directory)}, Path("unused"))
    command = f"echo $$ > {tmp_path}/pid; until [ -e {tmp_path}/go ]; do sleep 0.1; done; echo hello"
    first = begin(executor, Operation.EXECUTE, "here", command=command)
    server = server_of(pid_in(tmp_path / "pid"))
    [directory] = temporary.glob("labctl-ansible-*")
    # Its directory cannot be made.
    (directory / "job-2").touch()
    second = begin(executor, Operation.PING, "here")
    assert read_all(second) == [] and second.error == "the process that carried this out was lost"
    third = begin(executor, Operation.EXECUTE, "here", command=f"echo $$ > {tmp_path}/third; sleep 2")
    assert server_of(pid_in(tmp_path / "third")) == server
    assert [result.status for result in read_all(third)] == [Status.CHANGED]
    (tmp_path / "go").touch()

    assert [result.values["stdout"] for result in read_all(first)] == ["hello\n"]
    executor.close()


def test_a_job_goes_on_while_its_worker_starts_another_server_for_the_next_one(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path / "lab", sshd)
    executor = AnsibleExecutor({"workdir": str(lab.directory)}, Path("unused"))
    command = f"until [ -e {tmp_path}/go ]; do sleep 0.1; done; echo hello"
    run = executor.begin(Order("jid", Operation.EXECUTE, ("here",), {"command": command}, 60, lease=4))
    # The next server is slow to start.
    wait = f"import os, time\nopen({str(tmp_path / 'starting')!r}, 'w')\n"
    wait += f"while not os.path.exists({str(tmp_path / 'go')!r}):\n    time.sleep(0.05)\n"
    (tmp_path / "sitecustomize.py").write_text(wait)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (lab.directory / "ansible.cfg").write_text("[defaults]\nforks = 3\n")
    with ThreadPoolExecutor() as pool:
        try:
            other = pool.submit(begin, executor, Operation.PING, "here")
            until((tmp_path / "starting").exists, "the other server starts")
            assert run.read(5) == [] and not run.ended and not other.done()
        finally:
            (tmp_path / "go").touch()
        assert [result.status for result in read_all(other.result())] == [Status.OK]

    assert [result.values["stdout"] for result in read_all(run)] == ["hello\n"]
    executor.close()


def test_when_ansible_itself_is_killed_its_job_ends_with_all_that_it_runs(
    executor: AnsibleExecutor, tmp_path: Path
) -> None:
    run, pids = begin_stubborn(executor, "here", tmp_path / "pid")
    supervisor = supervisor_of(pids[0])
    (ansible,) = [pid for pid in below(supervisor) if parent(pid) == supervisor and pids[0] in below(pid)]
    os.kill(ansible, signal.SIGKILL)

    until(gone(pids), "the commands have ended", SOON)
    assert read_all(run) == []
    assert run.error is not None and run.error.startswith("Ansible has ended with SIGKILL")


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def supervisor_of(pid: int) -> int:
    """Find the ancestor of a command on this machine that looks after its job: the child of the server."""
    while not (is_server(parent(pid)) and parent(parent(pid)) == os.getpid()):
        pid = parent(pid)
    return pid


def server_of(pid: int) -> int:
    return parent(supervisor_of(pid))


def is_server(pid: int) -> bool:
    return b"ansible_server" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_closing_ends_every_process_and_removes_what_was_written(lab: Lab, temporary: Path, tmp_path: Path) -> None:
    executor = AnsibleExecutor({"workdir": str(lab.directory)}, Path("unused"))
    run, pids = begin_stubborn(executor, "here", tmp_path / "pid")
    read_all(begin(executor, Operation.PING, "web1"))
    [directory] = temporary.glob("labctl-ansible-*")
    ours = list(below(server_of(pids[0])))
    assert directory.stat().st_mode & 0o777 == 0o700
    executor.close()

    until(gone(pids + ours), "everything has ended")
    read_all(run)
    assert not directory.exists()


def test_secrets_are_on_no_command_line_and_in_no_file_that_stays(lab: Lab, temporary: Path, tmp_path: Path) -> None:
    executor = AnsibleExecutor({"workdir": str(lab.directory)}, Path("unused"))
    extra_vars = {"file": str(tmp_path / "pid"), "password": "s3cret-9371"}
    run = begin(executor, Operation.DEPLOY, "web1", role="long", partial=None, extra_vars=extra_vars)
    pid_in(tmp_path / "pid")
    lines = b"".join(content(path) for path in Path("/proc").glob("[0-9]*/cmdline"))
    environments = b"".join(content(Path(f"/proc/{pid}/environ")) for pid in below(os.getpid()))
    assert b"s3cret-9371" not in lines + environments
    [server] = temporary.glob("labctl-ansible-*")
    run.cancel()
    read_all(run)

    until(lambda: not list(server.glob("job-*")), "the files of the job are gone")
    assert not any(b"s3cret-9371" in content(path) for path in server.rglob("*") if path.is_file())
    executor.close()


def content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("host", ["web1", "here"])
def test_a_command_that_was_cancelled_leaves_no_file_that_tells_it(
    executor: AnsibleExecutor, host: str, tmp_path: Path
) -> None:
    run = begin(executor, Operation.EXECUTE, host, command=f"echo $$ > {tmp_path}/pid; : s3cret-4711; sleep 1000")
    pid = pid_in(tmp_path / "pid")
    run.cancel()
    read_all(run)
    until(gone([pid]), "the command has ended")

    def telling() -> bool:
        # Not by glob: other jobs remove their directories meanwhile, which it does not expect.
        ours = Path(tempfile.gettempdir()).glob("labctl-ansible-*")
        sent = [one for top in (Path.home() / ".ansible/tmp", *ours) for one in os.walk(top)]
        return any(b"s3cret-4711" in content(Path(where) / name) for where, _, names in sent for name in names)

    until(lambda: not telling(), "what was sent is removed")


def test_what_was_unpacked_for_a_command_is_removed_before_it_is_ended(
    sshd: Sshd, temporary: Path, tmp_path: Path
) -> None:
    lab = Lab(tmp_path / "lab", sshd)
    python = lab.directory / "python"
    python.write_text(f'#!/bin/sh\nTMPDIR={temporary} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    lab.write_inventory({"web1": {}}, {**lab.common, "ansible_python_interpreter": str(python)})
    executor = AnsibleExecutor({"workdir": str(lab.directory)}, Path("unused"))
    # What ends it may be killed itself from then on.
    pid, seen = tmp_path / "pid", tmp_path / "seen"
    command = f"trap 'ls {temporary} > {seen}; exit' TERM; echo $$ > {pid}; while :; do sleep 0.1; done"
    run = begin(executor, Operation.EXECUTE, "web1", command=command)
    number = pid_in(pid)
    assert list(temporary.glob("ansible_*_payload_*"))
    run.cancel()
    read_all(run)
    until(gone([number]), "the command has ended")

    assert seen.exists() and "_payload_" not in seen.read_text()
    executor.close()


def test_what_a_killed_server_has_left_is_removed_by_the_next_one(lab: Lab, executor: AnsibleExecutor) -> None:
    old = Path(tempfile.mkdtemp(prefix="labctl-ansible-"))
    (old / "job-1").mkdir()
    (old / "job-1/words").write_text("something")
    executor.hosts()

    assert not old.exists()


def test_a_host_whose_key_is_unknown_is_not_reached(lab: Lab, executor: AnsibleExecutor) -> None:
    known = lab.common["ansible_ssh_common_args"]
    hosts = {"web1": {}, "stranger": {"ansible_ssh_common_args": known.replace("known_hosts", "nothing")}}
    lab.write_inventory(hosts, lab.common)
    [result] = read_all(begin(executor, Operation.PING, "stranger"))

    assert result.status == Status.UNREACHABLE and "Host key verification failed" in result.values["message"]


def test_a_slow_host_and_a_dead_one_keep_nobody_waiting_for_the_others(lab: Lab) -> None:
    slow = lab.directory / "slow-python"
    slow.write_text(f'#!/bin/sh\nsleep 3\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = {"ansible_port": probe.getsockname()[1]}
    hosts = {"slow": {"ansible_python_interpreter": str(slow)}, "dead": dead, "web1": {}}
    lab.write_inventory(hosts, lab.common)
    executor = AnsibleExecutor({"workdir": str(lab.directory), "concurrency": 3}, Path("unused"))
    results = read_all(executor.begin(Order("jid", Operation.PING, tuple(hosts), {}, 60)))
    executor.close()

    assert {result.host: result.status for result in results} == {
        "slow": Status.OK,
        "dead": Status.UNREACHABLE,
        "web1": Status.OK,
    }
    assert results[-1].host == "slow"
