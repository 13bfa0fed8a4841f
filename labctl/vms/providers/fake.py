"""VMs that are not real: each is a small file. Made for tests, for demonstrations, and to show what goes wrong.

Nothing boots here, and nobody can log in anywhere. The files are the world of the provider: all processes that share
the directory see the same VMs, and a VM outlives every process, however that one ends. It can be told to be slow, to
fail, to hang, to lie and to lose VMs, by its options or, while it runs, by a file ``faults.json`` in its directory that
holds some of them.
"""

import contextlib
import fcntl
import math
import os
import random
import threading
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from labctl import clock
from labctl.vms.provider import Failed, Found, Misconfigured, NoCapacity, Provider, Wanted

Rate = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
MIGRATIONS = {"no": (), "cold": ("migrate",), "live": ("migrate", "live_migrate")}


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Options:
    """The provider's entry of the setting."""

    #: Where the files are; each labctl needs a directory of its own, which all its workers see.
    directory: Annotated[str, Field(min_length=1)]
    #: From the request to make a VM until it is made, and from there until it runs: the least and the most.
    clone_seconds: tuple[Seconds, Seconds] = (0, 0)
    boot_seconds: tuple[Seconds, Seconds] = (0.5, 1.5)
    #: Whether it can migrate VMs: not, by starting them anew, or live, too.
    migrates: Literal["no", "cold", "live"] = "no"
    #: From the request to migrate a VM until it is done: the least and the most.
    migrate_seconds: tuple[Seconds, Seconds] = (0, 0)
    #: Hypervisors that VMs are said to be on, the emptiest first; empty: one, called as the provider.
    hosts: list[str] = Field(default_factory=list)
    #: How many VMs fit; 0: any number.
    capacity: Annotated[int, Field(ge=0)] = 0
    #: The part of the requests to make a VM that fail, half of them with the VM half made.
    failure_rate: Rate = 0
    #: Templates that fail every time, and those that are not there.
    broken: list[str] = Field(default_factory=list)
    unknown: list[str] = Field(default_factory=list)
    #: The part of the VMs that vanish some time after they began to run: the least and the most seconds.
    vanish_rate: Rate = 0
    vanish_seconds: tuple[Seconds, Seconds] = (0, 60)
    #: The part of the VMs that a list leaves out, though never twice in a row.
    forget_rate: Rate = 0
    #: The part of all calls that hang, and for how long.
    hang_rate: Rate = 0
    hang_seconds: Seconds = 600
    #: The address that every VM says it has; empty: none.
    address: str = ""
    #: Makes chance repeat itself.
    seed: int | None = None

    @model_validator(mode="after")
    def _ranges(self) -> "Options":
        for name in ("clone_seconds", "boot_seconds", "migrate_seconds", "vanish_seconds"):
            least, most = getattr(self, name)
            if least > most:
                raise ValueError(f"{name}: {least:g} is more than {most:g}")
        return self


_OPTIONS = TypeAdapter(Options)
#: A VM as its file has it.
Record = dict[str, Any]


class FakeProvider(Provider):
    """Nothing but files."""

    keeps_files: ClassVar[bool] = True

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        """Validate the options; the directory is made when the first VM is."""
        self.name = name
        self._given = _validated(options)
        self.capabilities = frozenset(("disk", "snapshot", "revert", *MIGRATIONS[self._given.migrates]))
        self.directory = Path(self._given.directory)
        self._vms = self.directory / "vms"
        self._random = random.Random(self._given.seed)  # noqa: S311

    # The contract

    def create(self, wanted: Wanted) -> None:
        """Write the VM's file, half made at first; asking again completes it."""
        options = self._called()
        if wanted.template in options.unknown:
            raise Misconfigured(f"there is no template {wanted.template}")
        fails = wanted.template in options.broken or self._random.random() < options.failure_rate
        if fails and self._random.random() < 0.5:
            raise Failed(f"{wanted.template} cannot be cloned, as it was told")
        with self._alone():
            if self._read(wanted.name) is None:
                if options.capacity and len(self._files()) >= options.capacity:
                    raise NoCapacity(f"there is room for {options.capacity} VMs")
                record = {"template": wanted.template, "host": self._place(options, wanted.avoid)}
                self._write(wanted.name, {**record, "boots_at": None, "disks": {}, "snapshots": []})
        self._wait(self._random.uniform(*options.clone_seconds))
        if fails:
            raise Failed(f"the clone of {wanted.template} is only half made, as it was told")
        with self._changing(wanted.name) as record:
            if record["boots_at"] is None:
                runs = record["boots_at"] = _now() + self._random.uniform(*options.boot_seconds)
                if self._random.random() < options.vanish_rate:
                    record["vanishes_at"] = runs + self._random.uniform(*options.vanish_seconds)

    def look_up(self, name: str) -> Found | None:
        """Read the VM's file."""
        options = self._called()
        record = self._read(name)
        if record is None or self._vanishes(name, record):
            return None
        running = record["boots_at"] is not None and record["boots_at"] <= _now()
        return Found(running, (options.address,) if running and options.address else (), record["host"])

    def destroy(self, name: str) -> None:
        """Remove the VM's file."""
        self._called()
        with self._alone():
            self._path(name).unlink(missing_ok=True)

    def names(self) -> Set[str]:
        """List the files, but for some that are forgotten this time."""
        options = self._called()
        names = {name for name in self._files() if not self._vanishes(name, self._read(name))}
        if not options.forget_rate:
            return names
        with self._alone():
            notes = self.directory / "forgotten.json"
            before = set(orjson.loads(notes.read_bytes())) if notes.exists() else set()
            forgotten = {name for name in sorted(names - before) if self._random.random() < options.forget_rate}
            _replace(notes, sorted(forgotten))
        return names - forgotten

    def add_disk(self, name: str, number: int, gigabytes: int) -> None:
        """Note the disk in the VM's file."""
        self._called()
        with self._changing(name) as record:
            record["disks"][str(number)] = gigabytes

    def snapshot(self, name: str, snapshot: str) -> None:
        """Note the snapshot in the VM's file."""
        self._called()
        with self._changing(name) as record:
            if snapshot not in record["snapshots"]:
                record["snapshots"].append(snapshot)

    def revert(self, name: str, snapshot: str) -> None:
        """Note in the VM's file that it was set back."""
        self._called()
        with self._changing(name) as record:
            if snapshot not in record["snapshots"]:
                raise Failed(f"{name} has no snapshot {snapshot}")
            record["reverted_to"] = snapshot

    def migrate(self, name: str, avoid: Set[str], *, live: bool) -> None:
        """Note another hypervisor in the VM's file; it boots there, if this is not to be noticed by its guest."""
        options = self._called()
        if ("live_migrate" if live else "migrate") not in self.capabilities:
            super().migrate(name, avoid, live=live)
        if (record := self._read(name)) is not None and record["host"] in avoid:
            self._wait(self._random.uniform(*options.migrate_seconds))
        with self._changing(name) as record:
            if record["host"] in avoid:
                record["host"] = self._place(options, avoid)
                if not live:
                    record["boots_at"] = _now() + self._random.uniform(*options.boot_seconds)

    # Its faults

    def _called(self) -> Options:
        """Give the options that hold for this call, which hangs first if it is one of those."""
        faults = self.directory / "faults.json"
        options = self._given
        with contextlib.suppress(FileNotFoundError):
            options = _validated({**asdict(options), **orjson.loads(faults.read_bytes())})
        if self._random.random() < options.hang_rate:
            self._wait(options.hang_seconds)
        return options

    def _wait(self, seconds: float) -> None:
        if seconds:
            threading.Event().wait(seconds)

    def _vanishes(self, name: str, record: Record | None) -> bool:
        """Tell whether a VM is gone, now or before, by nobody's wish."""
        if record is not None and record.get("vanishes_at", math.inf) > _now():
            return False
        if record is not None:
            self._path(name).unlink(missing_ok=True)
        return True

    def _place(self, options: Options, avoid: Set[str]) -> str:
        """Choose the hypervisor with the fewest VMs among those that are in service."""
        load = dict.fromkeys(sorted(set(options.hosts or [self.name]) - avoid), 0)
        if not load:
            raise NoCapacity("all hypervisors are out of service")
        if len(load) > 1:
            for name in self._files():
                if (record := self._read(name)) is not None and record["host"] in load:
                    load[record["host"]] += 1
        return min(load, key=lambda host: load[host])

    # Its files

    def _path(self, name: str) -> Path:
        return self._vms / f"{name}.json"

    def _files(self) -> set[str]:
        try:
            return {entry.removesuffix(".json") for entry in os.listdir(self._vms) if entry.endswith(".json")}
        except FileNotFoundError:
            return set()

    def _read(self, name: str) -> Record | None:
        try:
            record: Record = orjson.loads(self._path(name).read_bytes())
        except FileNotFoundError:
            return None
        return record

    def _write(self, name: str, record: Record) -> None:
        _replace(self._path(name), record)

    @contextlib.contextmanager
    def _changing(self, name: str) -> Iterator[Record]:
        """Change a VM's file while nobody else does; one that was removed meanwhile does not come back."""
        with self._alone():
            record = self._read(name)
            if record is None:
                raise Failed(f"there is no VM {name}")
            yield record
            self._write(name, record)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads and processes out; the kernel lets go of what a killed one held."""
        self._vms.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _validated(options: Mapping[str, Any]) -> Options:
    try:
        return _OPTIONS.validate_python(dict(options))
    except ValidationError as error:
        lines = (f"{'.'.join(str(part) for part in e['loc']) or 'options'}: {e['msg']}" for e in error.errors())
        raise Misconfigured("\n".join(lines)) from error


def _replace(path: Path, content: Any) -> None:
    """Write a file so that it is there as a whole or not at all."""
    new = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    new.write_bytes(orjson.dumps(content))
    new.replace(path)


def _now() -> float:
    return clock.now().timestamp()
