"""VMs by libvirt: each is an overlay of a base volume, on the least loaded of the provider's hypervisors."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError, field_validator
from pydantic.dataclasses import dataclass

from labctl.vms.provider import (
    Failed,
    Found,
    Misconfigured,
    NoCapacity,
    Partial,
    Provider,
    ProviderError,
    Unreachable,
    Wanted,
)
from labctl.vms.providers.libvirt_domain import Shape, Text, render
from labctl.vms.providers.libvirt_hypervisor import PATIENCE, Hypervisor, addresses, load, runs
from labctl.vms.providers.libvirt_migration import (
    Journey,
    Place,
    Uncertain,
    has_arrived,
    has_left,
    moves,
    or_uncertain,
    settle,
    whole,
)

T = TypeVar("T")

#: As many as there are names from vdb to vdz.
MOST_DISKS = 25


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Options(Shape):
    """A provider's entry of the setting."""

    #: The hypervisors; of those with equally many VMs the first is taken.
    uris: Annotated[list[Text], Field(min_length=1)] = Field(default_factory=lambda: ["qemu:///system"])
    #: Where base volumes are and overlays go, on each hypervisor: a pool that is a directory.
    storage_pool: Text = "default"
    #: Tells our VMs from those of other labctl on the same hypervisors; empty: ``labctl-`` and the provider's name.
    mark: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]*$")] = ""
    #: VMs on one hypervisor; 0: no limit.
    most_vms: Annotated[int, Field(ge=0)] = 0
    #: How long a guest may take to shut down before its power is taken away, when it is migrated.
    shutdown_seconds: Annotated[float, Field(ge=0)] = 60
    #: Where a hypervisor takes in VMs that run, ``${host}`` being its host name; empty: they cannot be migrated live.
    live_migration: str = ""

    @field_validator("uris", mode="before")
    @classmethod
    def _one_uri(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class LibvirtProvider(Provider):
    """One or more hypervisors with libvirt, see docs/libvirt.rst."""

    capabilities: frozenset[str] = frozenset({"disk", "snapshot", "revert"})

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        """Validate the options, the template of domains among them."""
        mistakes = []
        try:
            load()
        except Misconfigured as error:
            mistakes.append(str(error))
        try:
            self._options = TypeAdapter(Options).validate_python(dict(options))
        except ValidationError as error:
            mistakes += _lines(error)
        try:
            template = options.get("domain_xml", "")
            render(Shape(domain_xml=template if isinstance(template, str) else ""), name="name", disk="disk", kind="")
        except Misconfigured as error:
            mistakes.append(str(error))
        if mistakes:
            raise Misconfigured("\n".join(mistakes))
        mark = self._options.mark or f"labctl-{name}"
        uris = dict.fromkeys(self._options.uris)
        self._hypervisors = [Hypervisor(uri, mark, self._options.storage_pool) for uri in uris]
        if len(self._hypervisors) > 1:
            self.capabilities |= {"migrate", *(["live_migrate"] if self._options.live_migration else [])}
        self._placing = threading.Lock()
        self._turn = threading.Condition()
        self._busy: set[str] = set()

    # Finding

    def _find(self, name: str) -> Place | None:
        """Find a VM; raises :class:`Failed` if it may be on a hypervisor that does not answer."""
        silent, moving = [], []
        for hypervisor in self._hypervisors:
            try:
                if (domain := hypervisor.find(name)) is not None:
                    if not moves((hypervisor, domain)):
                        return hypervisor, domain
                    moving.append((hypervisor, domain))
            except Failed as error:
                silent.append(str(error))
        if silent:
            raise self._silence(silent)
        return whole(moving)

    def _silence(self, silent: list[str]) -> Failed:
        """Say that some hypervisors do not answer, or all of them."""
        kind = Failed if len(silent) == len(self._hypervisors) else Unreachable
        return kind("; ".join(silent))

    def _find_there(self, name: str) -> Place:
        found = self._find(name)
        if found is None:
            raise Failed(f"there is no VM {name}")
        return found

    def look_up(self, name: str) -> Found | None:
        """Tell how a VM does; who cannot be asked may have it."""
        found = self._find(name)
        if found is None:
            return None
        hypervisor, domain = found
        with hypervisor.asked():
            running = runs(domain)
            return Found(running, addresses(domain) if running else (), hypervisor.host())

    def names(self) -> Set[str]:
        """List our domains, and the owners of volumes that have lost their domain."""
        found: set[str] = set()
        hosts: set[str] = set()
        silent: dict[Hypervisor, str] = {}
        for hypervisor in self._hypervisors:
            try:
                there = {*hypervisor.domains(), *(owner for owner, _ in hypervisor.volumes())}
                hosts.add(hypervisor.host())
                found |= there
            except Failed as error:
                silent[hypervisor] = str(error)
        if len(silent) == len(self._hypervisors):
            raise Failed("; ".join(silent.values()))
        if not silent:
            return found
        # Two of them may be on one host; of a VM there it is not known on which of the two it is.
        doubtful = {hypervisor.last_host for hypervisor in silent}
        return Partial(found, set() if "" in doubtful else hosts - doubtful, "; ".join(silent.values()))

    # Making

    def create(self, wanted: Wanted) -> None:
        """Complete the VM where it is, or make it on the hypervisor with the fewest, or on the next that can."""
        shape = self._shape(wanted.options, "options: ")
        with self._alone(wanted.name):
            if found := self._find_unless_new(wanted):
                hypervisor, domain = found
                hypervisor.complete(domain, wanted)
                return
            self._somewhere(
                wanted.name, self._hypervisors, wanted.avoid, lambda there: self._make(there, wanted, shape)
            )

    def _somewhere(self, name: str, among: Sequence[Hypervisor], avoid: Set[str], make: Callable[[Hypervisor], T]) -> T:
        """Make a VM on the hypervisor with the fewest, or on the next that can."""
        errors: list[ProviderError] = []
        avoided: list[ProviderError] = []
        left = list(among)
        while left:
            try:
                hypervisor = self._choose(left, name)
            except Failed as error:
                errors.append(error)
                break
            left.remove(hypervisor)
            try:
                if avoid and hypervisor.host() in avoid:
                    avoided.append(NoCapacity(f"{hypervisor.uri}: is out of service"))
                    continue
                return make(hypervisor)
            except Uncertain:
                raise
            except ProviderError as error:
                errors.append(error)
            finally:
                with self._placing:
                    hypervisor.expected.discard(name)
        # What those say that could be tried counts more.
        errors = errors or avoided
        text = "; ".join(str(error) for error in errors)
        raise next(kind(text) for kind in (NoCapacity, Failed, Misconfigured) if any(type(e) is kind for e in errors))

    def _find_unless_new(self, wanted: Wanted) -> Place | None:
        """Find a VM that is to be made; a new one can be nowhere, so that nobody's silence matters."""
        try:
            return self._find(wanted.name)
        except Unreachable:
            if wanted.is_new:
                return None
            raise

    def _shape(self, options: Mapping[str, Any], where: str = "") -> Shape:
        """Lay a pool's options over the provider's."""
        ours = asdict(self._options)
        try:
            return TypeAdapter(Shape).validate_python({**{f.name: ours[f.name] for f in fields(Shape)}, **options})
        except ValidationError as error:
            raise Misconfigured("\n".join(f"{where}{line}" for line in _lines(error))) from error

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Check a pool's options, its own template of domains among them."""
        render(self._shape(options), name="name", disk="disk", kind="")

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Keep other calls of this process for the same VM waiting: the engine may have given one up that goes on."""
        with self._turn:
            if not self._turn.wait_for(lambda: name not in self._busy, PATIENCE):
                raise Failed(f"an earlier call for {name} is not done yet")
            self._busy.add(name)
        try:
            yield
        finally:
            with self._turn:
                self._busy.remove(name)
                self._turn.notify_all()

    def _choose(self, among: Sequence[Hypervisor], name: str) -> Hypervisor:
        """Find the hypervisor with the fewest VMs, and count on one more there until it is defined."""
        load: dict[Hypervisor, int] = {}
        silent = []
        with self._placing:
            for each in among:
                try:
                    load[each] = len((each.domains().keys() | each.expected) - {name})
                except Failed as error:
                    silent.append(str(error))
            if not load:
                raise Failed("; ".join(silent))
            chosen = min(load, key=lambda each: load[each])
            if 0 < self._options.most_vms <= load[chosen]:
                raise NoCapacity(f"{chosen.uri}: has {load[chosen]} VMs")
            chosen.expected.add(name)
            return chosen

    def _make(self, hypervisor: Hypervisor, wanted: Wanted, shape: Shape) -> None:
        """Make a VM on a hypervisor; nothing is left if that fails, unless it raises :class:`Uncertain`."""
        try:
            domain = hypervisor.define(wanted, shape)
        except ProviderError as error:
            # It may be there all the same: the answer was lost, or another process was faster.
            with or_uncertain(error):
                if (domain := hypervisor.find(wanted.name)) is not None:
                    hypervisor.complete(domain, wanted)
                    return
            raise
        try:
            hypervisor.complete(domain, wanted)
        except ProviderError as error:
            with or_uncertain(error):
                self._remove(wanted.name, [(hypervisor, domain)], [hypervisor])
            raise

    # Removing

    def destroy(self, name: str) -> None:
        """Remove a VM from every hypervisor that has something of it."""
        found, answered, silent = [], [], []
        with self._alone(name):
            for hypervisor in self._hypervisors:
                try:
                    if (domain := hypervisor.find(name)) is not None:
                        found.append((hypervisor, domain))
                    answered.append(hypervisor)
                except Failed as error:
                    silent.append(str(error))
            self._remove(name, found, [hypervisor for hypervisor, _ in found] or answered)
        if silent and not found:
            raise self._silence(silent)

    def _remove(self, name: str, found: Sequence[Place], everywhere: Sequence[Hypervisor]) -> None:
        for hypervisor, domain in found:
            hypervisor.stop(domain)
        for hypervisor in everywhere:
            hypervisor.remove_volumes(name)
        for hypervisor, domain in found:
            hypervisor.undefine(domain)

    # What users do

    def add_disk(self, name: str, number: int, gigabytes: int) -> None:
        """Make and attach a volume."""
        if not 1 <= number <= MOST_DISKS:
            raise Misconfigured(f"a VM has at most {MOST_DISKS} added disks")
        hypervisor, domain = self._find_there(name)
        hypervisor.add_disk(domain, number, gigabytes)

    def snapshot(self, name: str, snapshot: str) -> None:
        """Make a snapshot, unless it is there."""
        hypervisor, domain = self._find_there(name)
        hypervisor.snapshot(domain, snapshot)

    def revert(self, name: str, snapshot: str) -> None:
        """Go back to a snapshot."""
        hypervisor, domain = self._find_there(name)
        hypervisor.revert(domain, snapshot)

    # What maintenance needs

    def migrate(self, name: str, avoid: Set[str], *, live: bool) -> None:
        """Copy a VM to the hypervisor with the fewest, unless it is where it may be, and remove what is elsewhere."""
        if ("live_migrate" if live else "migrate") not in self.capabilities:
            raise Misconfigured(
                "live_migration: is empty" if len(self._hypervisors) > 1 else "uris: there is one hypervisor"
            )
        with self._alone(name):
            place = self._find_there(name)
            if has_arrived(place):
                self._settle(name, place)
            if place[0].host() in avoid or has_left(place):
                place = self._go(name, place, avoid, live)
            self._settle(name, place)

    def _go(self, name: str, place: Place, avoid: Set[str], live: bool) -> Place:
        uri = self._options.live_migration if live else None
        others = [hypervisor for hypervisor in self._hypervisors if hypervisor is not place[0]]
        return self._somewhere(
            name,
            others,
            avoid,
            lambda there: Journey(name, place, there).go(self._options.shutdown_seconds, uri),
        )

    def _settle(self, name: str, place: Place) -> None:
        others = []
        for hypervisor in self._hypervisors:
            # What is left where nobody answers now goes when the VM is destroyed.
            with suppress(Failed):
                if hypervisor is not place[0] and (domain := hypervisor.find(name)) is not None:
                    others.append((hypervisor, domain))
        settle(name, place, others)


def _lines(error: ValidationError) -> list[str]:
    return [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()]
