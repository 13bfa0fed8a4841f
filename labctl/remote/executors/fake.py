"""An executor that is not real: it reaches no host, waits as long as it is told, and says what it is told to say.

Made for tests, for demonstrations, and to show what goes wrong: by its options, or while it runs by a file
``faults.json`` in its directory that holds some of them, it is slow, fails, lies, hangs or gives output by the
thousand. Of a command line it knows ``echo WORDS``, ``sleep SECONDS``, ``exit NUMBER`` and ``false``, one after
another with ``;`` between them; whatever else it is given goes well.
"""

import contextlib
import queue
import random
import re
import shlex
import threading
import time
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from labctl.remote.executor import TIMED_OUT, Executor, Failed, Misconfigured, Order, Result, Run
from labctl.remote.states import Operation, Status

Rate = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Options:
    """The setting ``executor`` less ``plugin``."""

    #: The names of the hosts, or how many there are (``fake-1``, ``fake-2``, ...).
    hosts: Annotated[int, Field(ge=0, le=100_000)] | list[Annotated[str, Field(min_length=1)]] = 3
    #: The hosts of each group, beside the group ``fake`` of all hosts.
    groups: dict[str, list[str]] = Field(default_factory=dict)
    #: How long each operation takes on a host.
    seconds: dict[Operation, Seconds] = Field(default_factory=dict)
    #: Steps of a deploy.
    steps: Annotated[int, Field(ge=0)] = 3
    #: Results of a deploy in a second, all hosts together; 0: as the seconds say.
    rate: Annotated[float, Field(ge=0)] = 0
    #: Hosts on which everything fails, that cannot be reached, and that never answer.
    failing: list[str] = Field(default_factory=list)
    unreachable: list[str] = Field(default_factory=list)
    silent: list[str] = Field(default_factory=list)
    #: Roles that fail on every host.
    broken: list[str] = Field(default_factory=list)
    #: Hosts that are left out of the results although the operation ends.
    forgotten: list[str] = Field(default_factory=list)
    #: The part of the hosts on which an operation fails, or that it does not reach.
    failure_rate: Rate = 0
    unreachable_rate: Rate = 0
    #: Why no operation can be begun, why each ends with an error of the executor, and why the inventory is not there.
    begin_error: str = ""
    run_error: str = ""
    hosts_error: str = ""
    #: Whether each operation ends with an error that nobody has thought of.
    crash: bool = False
    #: Whether there are results of hosts that nobody asked for, and each result comes twice.
    lies: bool = False
    #: How long it takes to cancel an operation.
    cancel_seconds: Seconds = 0
    #: Makes chance repeat itself.
    seed: int | None = None


_OPTIONS = TypeAdapter(Options)
#: The arguments of each operation, and their types.
ARGUMENTS: dict[Operation, dict[str, tuple[type, ...]]] = {
    Operation.PING: {},
    Operation.FACTER: {},
    Operation.SERVICE: {"name": (str,), "start": (bool,), "restart": (bool,), "graceful": (bool,)},
    Operation.EXECUTE: {"command": (str,)},
    Operation.DEPLOY: {"role": (str,), "partial": (list, tuple, type(None)), "extra_vars": (dict,)},
}
#: What is to come, and when: seconds after the beginning.
Script = Iterator[tuple[float, Result]]


class FakeExecutor(Executor):
    """Nothing but threads that wait."""

    def __init__(self, options: Mapping[str, Any], home: Path) -> None:
        """Validate the options."""
        self._given = _validated(options)
        self._home = home
        self._random = random.Random(self._given.seed)  # noqa: S311
        self._runs: set[FakeRun] = set()
        self._lock = threading.Lock()

    def check(self) -> list[str]:
        """Say what it was told to say."""
        options = self._options()
        if options.hosts_error:
            return [options.hosts_error]
        return [] if self.hosts() else ["hosts: there are none"]

    def hosts(self) -> Mapping[str, Set[str]]:
        """Give the hosts of the options."""
        options = self._options()
        if options.hosts_error:
            raise Failed(options.hosts_error)
        names = options.hosts if isinstance(options.hosts, list) else [f"fake-{n + 1}" for n in range(options.hosts)]
        groups = {name: {"fake"} for name in names}
        for group, members in options.groups.items():
            for name in members:
                groups.setdefault(name, {"fake"}).add(group)
        return groups

    def begin(self, order: Order) -> Run:
        """Begin to wait."""
        options = self._options()
        if options.begin_error:
            raise Failed(options.begin_error)
        known = ARGUMENTS.get(order.operation)
        if known is None:
            raise Misconfigured(f"this executor cannot {order.operation}")
        if strange := sorted(order.arguments.keys() ^ known.keys()):
            raise Failed(f"{order.operation}: arguments that are unknown or missing: {', '.join(strange)}")
        for name, types in known.items():
            if not isinstance(order.arguments[name], types):
                raise Failed(f"{order.operation}: {name} is of the wrong type")
        if unknown := [host for host in order.hosts if host not in self.hosts()]:
            raise Failed(f"no such host: {', '.join(unknown)}")
        run = FakeRun(options, self._script(options, order), silent=bool(set(order.hosts) & set(options.silent)))
        with self._lock:
            self._runs = {one for one in self._runs if not one.over} | {run}
        return run

    def close(self) -> None:
        """Cancel everything."""
        for run in tuple(self._runs):
            run.cancel()
            run.join(10)

    def _options(self) -> Options:
        """Give the options that hold at the moment."""
        with contextlib.suppress(FileNotFoundError):
            return _validated({**asdict(self._given), **orjson.loads((self._home / "faults.json").read_bytes())})
        return self._given

    # What it says

    def _script(self, options: Options, order: Order) -> Script:
        seconds = options.seconds.get(order.operation, 0.0)
        answering = [host for host in order.hosts if host not in options.silent and host not in options.forgotten]
        if order.operation == Operation.DEPLOY:
            script = self._deploy(options, order, answering, seconds)
        else:
            results = [self._result(options, order, host, seconds) for host in answering]
            script = iter(sorted(results, key=lambda one: one[0]))
        return _lied(script) if options.lies else script

    def _status(self, options: Options, host: str, good: Status) -> Status:
        if host in options.unreachable or self._random.random() < options.unreachable_rate:
            return Status.UNREACHABLE
        if host in options.failing or self._random.random() < options.failure_rate:
            return Status.FAILED
        return good

    def _result(self, options: Options, order: Order, host: str, seconds: float) -> tuple[float, Result]:
        good = Status.OK if order.operation in (Operation.PING, Operation.FACTER) else Status.CHANGED
        status = self._status(options, host, good)
        values: dict[str, Any] = {}
        if status in (Status.FAILED, Status.UNREACHABLE):
            values["message"] = "as it was told (not a real host)"
        if order.operation == Operation.FACTER:
            values["facts"] = {"hostname": host, "real": False} if status == good else {}
        elif order.operation == Operation.EXECUTE:
            took, rtc, said = _shell(order.arguments["command"], order.timeout)
            seconds += took if status != Status.UNREACHABLE else 0
            if status == Status.UNREACHABLE:
                values |= {"rtc": None, "stdout": "", "stderr": values["message"]}
            else:
                rtc = rtc or int(status == Status.FAILED)
                status = Status.FAILED if rtc else status
                values |= {"rtc": rtc, "stdout": said, "stderr": values.get("message", "")}
                if rtc == TIMED_OUT and took >= order.timeout:
                    values["message"] = f"timed out after {order.timeout:g} s"
        return seconds, Result(host, status, values)

    def _deploy(self, options: Options, order: Order, answering: list[str], seconds: float) -> Script:
        role = order.arguments["role"]
        good = Status.FAILED if role in options.broken else Status.CHANGED
        last = {host: self._status(options, host, good) for host in answering}
        left = list(answering)
        number = 0
        for step in range(1, options.steps + 1):
            name = f"{role} : step {step} of {options.steps} (not real)"
            at = (step - 1) * seconds / options.steps
            for host in left:
                yield at, Result(host, Status.ANNOUNCE, {"name": name, "return_data": ""})
            for host in tuple(left):
                number += 1
                at = number / options.rate if options.rate else step * seconds / options.steps
                final = step == options.steps or last[host] == Status.UNREACHABLE
                status = last[host] if final else Status.OK
                yield at, Result(host, status, {"name": name, "return_data": f"{role} on {host}: {status.name}"})
                if status == Status.UNREACHABLE:
                    left.remove(host)


class FakeRun(Run):
    """A thread that says everything in its time."""

    def __init__(self, options: Options, script: Script, *, silent: bool) -> None:
        """Begin; ``silent``: it does not end by itself."""
        self._options = options
        self._script = script
        self._silent = silent
        self._results: queue.SimpleQueue[Result | None] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._ended = False
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, name="fake-run", daemon=True)
        self._thread.start()

    def read(self, wait: float) -> list[Result]:
        """Give what was said meanwhile."""
        found: list[Result] = []
        try:
            one = self._results.get(timeout=wait) if wait > 0 else self._results.get_nowait()
            while one is not None:
                found.append(one)
                one = self._results.get_nowait()
            self._results.put(None)
            # What came before the end is given before it is told.
            self._ended = not found
            if not found and self._options.crash:
                raise RuntimeError("nobody has thought of this")
        except queue.Empty:
            pass
        return found

    @property
    def ended(self) -> bool:
        """Tell whether everything was said and read."""
        return self._ended

    @property
    def error(self) -> str | None:
        """Give the error it was told to end with."""
        return self._error if self._ended else None

    @property
    def over(self) -> bool:
        """Tell whether nothing goes on any more, read or not."""
        return not self._thread.is_alive()

    def cancel(self) -> None:
        """Stop waiting."""
        self._cancelled.set()

    def join(self, timeout: float) -> None:
        """Wait for the thread."""
        self._thread.join(timeout)

    def _run(self) -> None:
        began = time.monotonic()
        cancelled = False
        for at, result in self._script:
            if cancelled := self._cancelled.wait(max(0.0, began + at - time.monotonic())):
                break
            self._results.put(result)
        if self._silent and not cancelled:
            cancelled = self._cancelled.wait()
        if cancelled:
            threading.Event().wait(self._options.cancel_seconds)
        else:
            self._error = self._options.run_error or None
        self._results.put(None)


def _lied(script: Script) -> Script:
    for number, (at, result) in enumerate(script):
        yield at, result
        yield at, result
        yield at, Result(f"nobody-{number}", result.status, result.values)


def _shell(line: str, timeout: float) -> tuple[float, int, str]:
    """Tell how long a command line takes, how it exits and what it says, as far as this knows commands.

    When its time is up it ends where it is.
    """
    seconds, rtc, said = 0.0, 0, ""
    for command in line.split(";"):
        try:
            words = shlex.split(command)
        except ValueError:
            return seconds, 2, said
        match words:
            case ["echo", *rest]:
                said += " ".join(rest) + "\n"
            case ["sleep", number] if re.fullmatch(r"[0-9]+(\.[0-9]+)?", number):
                seconds += float(number)
                if seconds >= timeout:
                    return timeout, TIMED_OUT, said
            case ["exit", number] if re.fullmatch("[0-9]{1,3}", number):
                return seconds, int(number) % 256, said
        rtc = int(words == ["false"])
    return seconds, rtc, said


def _validated(options: Mapping[str, Any]) -> Options:
    try:
        return _OPTIONS.validate_python(dict(options))
    except ValidationError as error:
        lines = (f"{'.'.join(str(part) for part in e['loc']) or 'options'}: {e['msg']}" for e in error.errors())
        raise Misconfigured("\n".join(lines)) from error
