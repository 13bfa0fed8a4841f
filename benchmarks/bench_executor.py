"""Measure the ansible executor by itself against ansible-runner: ``python -m benchmarks.bench_executor``.

Pings 1, 10 and 50 names of one sshd of its own, and one host over a local connection, with the same inventory, the same
settings and as many forks, by turns, several times after a first one that counts for nothing; prints the medians and
the ratio. ansible-runner is measured inside a process that has imported it, as a worker would use it; it is no requirement
of labctl: ``--runner`` names a Python that has ansible-runner 2.4.3 and the ansible-core of requirements.txt.

Then it applies a role that does next to nothing in many steps, and tells how many results of it arrive in a second, and
how many lines the way from Ansible to the worker could carry.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from labctl.remote.executor import Order
from labctl.remote.executors.ansible import AnsibleExecutor, AnsibleRun
from labctl.remote.states import Operation, Status
from tests.remote.ansible_lab import Lab
from tests.sshd import Sshd

SIZES = (1, 10, 50)
RUNNER = """
import json, os, sys, tempfile, time
import ansible_runner
asked = json.loads(sys.stdin.readline())
os.chdir(asked["workdir"])
os.environ["PATH"] = os.path.dirname(sys.executable) + ":" + os.environ["PATH"]
for hosts in sys.stdin:
    with tempfile.TemporaryDirectory() as directory:
        began = time.monotonic()
        run = ansible_runner.run(
            private_data_dir=directory, host_pattern=hosts.strip(), module="ping", inventory=asked["inventory"],
            forks=asked["forks"], quiet=True,
        )
        took = time.monotonic() - began
    print(json.dumps([took, run.status]), flush=True)
"""


def ping(executor: AnsibleExecutor, hosts: list[str]) -> float:
    began = time.monotonic()
    run = executor.begin(Order("bench", Operation.PING, tuple(hosts), {}, 600))
    results = []
    while not run.ended:
        results += run.read(1)
    took = time.monotonic() - began
    assert run.error is None and [result.status for result in results] == [Status.OK] * len(hosts), run.error
    return took


class Runner:
    """A process that has imported ansible-runner."""

    def __init__(self, python: str, lab: Lab, forks: int) -> None:
        self._process = subprocess.Popen(
            [python, "-c", RUNNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        inventory = str(lab.directory / "inventory")
        self._say(json.dumps({"workdir": str(lab.directory), "inventory": inventory, "forks": forks}))

    def ping(self, hosts: list[str]) -> float:
        """Give the seconds that it takes."""
        self._say(",".join(hosts))
        while not (line := self._process.stdout.readline()).startswith("["):
            assert line, "it has ended"
        took, status = json.loads(line)
        assert status == "successful", status
        return took

    def close(self) -> None:
        """End it."""
        with self._process:
            pass

    def _say(self, line: str) -> None:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def compare(times: int, ours: Callable[[], float], theirs: Callable[[], float] | None) -> tuple[float, float]:
    """Measure both by turns; the first round counts for nothing."""
    rounds = [(ours(), theirs() if theirs else float("nan")) for _ in range(times + 1)][1:]
    return statistics.median(a for a, _ in rounds), statistics.median(b for _, b in rounds)


def events(executor: AnsibleExecutor, hosts: list[str]) -> tuple[int, float]:
    arguments = {"role": "chatty", "partial": None, "extra_vars": {}}
    run = executor.begin(Order("bench", Operation.DEPLOY, tuple(hosts), arguments, 600))
    number, first = 0, 0.0
    while not run.ended:
        results = run.read(1)
        if results and not number:
            first = time.monotonic()
        number += len(results)
    assert run.error is None
    return number, number / (time.monotonic() - first)


def capacity(number: int) -> float:
    """Read lines as the supervised process writes them, without Ansible."""
    ours, theirs = socket.socketpair()
    values = {"name": "chatty : step", "return_data": json.dumps({"msg": "Hello world!", "changed": False})}
    line = json.dumps({"host": "web1", "status": 1, "values": values}).encode() + b"\n"

    def write() -> None:
        with theirs:
            for _ in range(number):
                theirs.sendall(line)

    run = AnsibleRun(ours)
    threading.Thread(target=write).start()
    began = time.monotonic()
    read = 0
    while not run.ended:
        read += len(run.read(1))
    assert read == number
    return number / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runner", default=sys.executable, help="a Python with ansible-runner; empty: without it")
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    forks = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as directory:
        sshd = Sshd(Path(directory) / "sshd").start()
        executor = runner = None
        try:
            lab = Lab(Path(directory) / "lab", sshd)
            names = [f"node{number}" for number in range(max(SIZES))]
            here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
            lab.write_inventory({**{name: {} for name in names}, "here": here}, lab.common)
            executor = AnsibleExecutor({"workdir": str(lab.directory), "concurrency": forks}, Path("unused"))
            runner = Runner(options.runner, lab, forks) if options.runner else None
            print(f"forks {forks}; medians of {options.times}")
            print(f"{'ping':24}{'executor':>12}{'ansible-runner':>16}{'ratio':>8}")
            for what, hosts in [("local, 1 host", ["here"]), *((f"ssh, {n} hosts", names[:n]) for n in SIZES)]:
                ours, theirs = compare(
                    options.times, partial(ping, executor, hosts), partial(runner.ping, hosts) if runner else None
                )
                print(f"{what:24}{ours:>10.2f} s{theirs:>14.2f} s{ours / theirs:>8.2f}", flush=True)
            number, rate = events(executor, ["here"])
            print(f"a role of one host: {number} results, {rate:.0f}/s")
            print(f"from Ansible's process to the worker: {capacity(100_000):.0f} lines/s")
        finally:
            for one in (executor, runner):
                if one is not None:
                    one.close()
            sshd.close()


if __name__ == "__main__":
    main()
