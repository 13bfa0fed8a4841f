"""Restarting a service on many hosts, some at a time, as long as all goes well."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from labctl.remote.executor import SERVICE, Result
from labctl.remote.states import Operation, Status
from labctl.remote.task import Operate, Task

BAD = (Status.FAILED, Status.UNREACHABLE)


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Options:
    """What a request says under ``taskopts``."""

    #: The name of the service, in lower case as the operation ``service`` has it.
    service: Annotated[
        str, StringConstraints(strict=True, strip_whitespace=True, to_lower=True, min_length=1, max_length=256)
    ]
    #: How many hosts are restarted at a time.
    batch: Annotated[int, Field(ge=1, strict=True)] = 1
    #: Whether it is reloaded instead of restarted.
    graceful: Annotated[bool, Field(strict=True)] = False
    #: A command that exits with 0 on a host that is well; empty: the host must answer a ping.
    health: Annotated[str, Field(max_length=100_000, strict=True)] = ""
    #: How often a host that is not well is asked again, and the seconds before that.
    retries: Annotated[int, Field(ge=0, le=1000, strict=True)] = 5
    interval: Annotated[float, Field(ge=0, le=3600, strict=True)] = 2


_OPTIONS = TypeAdapter(Options)


class RollingRestart(Task):
    """A service is restarted batch by batch; the first batch that is not well afterwards is the last one."""

    type: ClassVar[str] = "rolling"

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Validate the options."""
        try:
            self._options = _OPTIONS.validate_python(dict(options))
        except ValidationError as error:
            lines = (f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors())
            raise ValueError("\n".join(lines)) from error
        if not SERVICE.fullmatch(self._options.service):
            raise ValueError(f"service: {self._options.service!r} is no name of a service")

    def run(self, hosts: Sequence[str], operate: Operate) -> Iterator[Result]:
        """Restart and look, batch by batch."""
        size = self._options.batch
        batches = [hosts[first : first + size] for first in range(0, len(hosts), size)]
        for number, batch in enumerate(batches, 1):
            which = f"batch {number} of {len(batches)}"
            good = True
            for results in (self._restart(which, batch, operate), self._look(which, batch, operate)):
                for result in results:
                    good = good and result.status not in BAD
                    yield result
                if not good:
                    return

    def _restart(self, which: str, batch: Sequence[str], operate: Operate) -> Iterator[Result]:
        verb = "reload" if self._options.graceful else "restart"
        step = f"{verb} {self._options.service} ({which})"
        yield from _announced(step, batch)
        arguments = {"start": True, "restart": True, "graceful": self._options.graceful}
        for result in operate(Operation.SERVICE, batch, name=self._options.service, **arguments):
            said = str(result.values.get("message", "")) or f"{verb}ed"
            yield Result(result.host, result.status, {"name": step, "return_data": said})

    def _look(self, which: str, batch: Sequence[str], operate: Operate) -> Iterator[Result]:
        """Ask the hosts until all are well, or for the last time."""
        step = f"check {self._options.service} ({which})"
        yield from _announced(step, batch)
        left = list(batch)
        for attempt in range(self._options.retries + 1):
            if attempt:
                operate.wait(self._options.interval)
            unwell: dict[str, Result] = {}
            for result in self._ask(left, operate):
                if result.status in BAD:
                    unwell[result.host] = result
                else:
                    left.remove(result.host)
                    yield Result(result.host, Status.OK, {"name": step, "return_data": _said(result) or "well"})
            if not left:
                return
        for host in left:
            last = unwell.get(host, Result(host, Status.UNREACHABLE, {"message": "no answer"}))
            said = _said(last) or "not well"
            yield Result(host, last.status, {"name": step, "return_data": f"after {attempt + 1} checks: {said}"})

    def _ask(self, hosts: Sequence[str], operate: Operate) -> Iterator[Result]:
        if self._options.health:
            return operate(Operation.EXECUTE, tuple(hosts), command=self._options.health)
        return operate(Operation.PING, tuple(hosts))


def _announced(step: str, hosts: Sequence[str]) -> Iterator[Result]:
    for host in hosts:
        yield Result(host, Status.ANNOUNCE, {"name": step, "return_data": ""})


def _said(result: Result) -> str:
    """Give what a check has said, for people."""
    values = result.values
    parts = [str(values.get(key) or "").strip() for key in ("message", "stdout", "stderr")]
    if values.get("rtc"):
        parts.insert(0, f"exit status {values['rtc']}")
    return ": ".join(dict.fromkeys(part for part in parts if part))
