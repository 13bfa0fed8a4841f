"""What the engine has going: each job is a claimed thing, the call that it needs, and what follows from the answer."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy.orm import Session

from labctl.pools import Check
from labctl.vms import listing, readiness, upkeep, work
from labctl.vms.listing import HeldOrphan, Reading
from labctl.vms.provider import Failed, Found, Misconfigured, NoCapacity, Partial, Provider, Wanted
from labctl.vms.states import MIGRATIONS, VMState, WorkKind
from labctl.vms.upkeep import Held, Rules
from labctl.vms.work import HeldWork


class Lane(StrEnum):
    """Kinds of calls that do not wait for each other: a backlog of one does not keep the others from going on."""

    MAKE = "make"
    LOOK = "look"
    DESTROY = "destroy"
    WORK = "work"
    LIST = "list"


@dataclass(frozen=True)
class Job(ABC):
    """A call of a provider, and what its outcome means; ``call`` runs in a thread, the others in a transaction."""

    provider: str
    lane: ClassVar[Lane]

    @property
    def probe(self) -> bool:
        """Tell whether the outcome decides that a provider which was left alone is well again."""
        return False

    @abstractmethod
    def call(self, provider: Provider) -> Any:
        """Ask the provider."""

    @abstractmethod
    def succeeded(self, session: Session, rules: Rules, result: Any, seconds: float) -> None:
        """Write down what the answer means."""

    @abstractmethod
    def failed(self, session: Session, rules: Rules, error: Exception) -> None:
        """Write down what the failure means."""


@dataclass(frozen=True)
class Make(Job):
    """A requested VM is made."""

    vm: Held
    options: dict[str, Any]
    avoid: frozenset[str]
    lane: ClassVar[Lane] = Lane.MAKE

    @property
    def is_new(self) -> bool:
        """Tell whether this is the first time that anybody asks for it."""
        return self.vm.lease_attempt == 1

    def call(self, provider: Provider) -> None:
        """Make it, or make sure that it is made."""
        provider.create(Wanted(self.vm.name, self.vm.template, self.options, self.vm.domain, self.avoid, self.is_new))

    def succeeded(self, session: Session, rules: Rules, result: None, seconds: float) -> None:
        """It is pending."""
        upkeep.made(session, self.vm, seconds)

    def failed(self, session: Session, rules: Rules, error: Exception) -> None:
        """It is tried again or given up."""
        upkeep.not_made(session, rules, self.vm, error)


@dataclass(frozen=True)
class Look(Job):
    """A pending or ready VM is looked at: first what its provider says of it, then the VM itself."""

    vm: Held
    check: Check
    lane: ClassVar[Lane] = Lane.LOOK

    def call(self, provider: Provider) -> tuple[Found | None, str | None]:
        """Give what the provider has found, and what is wrong."""
        found = provider.look_up(self.vm.name)
        if found is None:
            return None, "vanished"
        name = f"{self.vm.name}.{self.vm.domain}" if self.vm.domain else self.vm.name
        return found, readiness.trouble(self.check, found, name)

    def succeeded(
        self, session: Session, rules: Rules, result: tuple[Found | None, str | None], seconds: float
    ) -> None:
        """It becomes ready, stays it, or is not."""
        found, trouble = result
        if self.vm.state == VMState.READY:
            if trouble is None:
                upkeep.is_still_ready(session, rules, self.vm)
            else:
                upkeep.is_unwell(session, self.vm, trouble)
        elif found is None:
            upkeep.is_lost(session, rules, self.vm)
        elif trouble is None:
            upkeep.is_ready(session, rules, self.vm, found)
        else:
            upkeep.is_not_ready(session, rules, self.vm, trouble, found.host)

    def failed(self, session: Session, rules: Rules, error: Exception) -> None:
        """It is looked at again."""
        upkeep.could_not_be_seen(session, rules, self.vm, error)


@dataclass(frozen=True)
class Destroy(Job):
    """A completed VM is destroyed."""

    vm: Held
    lane: ClassVar[Lane] = Lane.DESTROY

    def call(self, provider: Provider) -> None:
        """Destroy it, or make sure that it is gone."""
        provider.destroy(self.vm.name)

    def succeeded(self, session: Session, rules: Rules, result: None, seconds: float) -> None:
        """It is gone."""
        upkeep.destroyed(session, self.vm)

    def failed(self, session: Session, rules: Rules, error: Exception) -> None:
        """It is tried again."""
        upkeep.not_destroyed(session, self.vm, error)


@dataclass(frozen=True)
class DestroyOrphan(Job):
    """A VM that nobody knows is destroyed."""

    orphan: HeldOrphan
    lane: ClassVar[Lane] = Lane.DESTROY

    def call(self, provider: Provider) -> None:
        """Destroy it, or make sure that it is gone."""
        provider.destroy(self.orphan.name)

    def succeeded(self, session: Session, rules: Rules, result: None, seconds: float) -> None:
        """It is forgotten."""
        listing.orphan_gone(session, self.orphan)

    def failed(self, session: Session, rules: Rules, error: Exception) -> None:
        """It is tried again when the claim has run out."""


@dataclass(frozen=True)
class Work(Job):
    """Something is done to a running VM."""

    work: HeldWork
    avoid: frozenset[str]
    lane: ClassVar[Lane] = Lane.WORK

    def call(self, provider: Provider) -> Found | None:
        """Do it, or make sure that it is done; gives what the provider has found of a VM that it was to migrate."""
        kind, argument, name = self.work.kind, self.work.argument, self.work.name
        if kind not in provider.capabilities:
            raise Misconfigured(f"the provider {self.provider} cannot do this: {kind}")
        if kind == WorkKind.DISK:
            provider.add_disk(name, self.work.disks + 1, int(argument))
        elif kind == WorkKind.SNAPSHOT:
            provider.snapshot(name, argument)
        elif kind in MIGRATIONS:
            return self._migrate(provider)
        elif argument in self.work.snapshots:
            provider.revert(name, argument)
        else:
            raise Misconfigured(f"the snapshot {argument} is not finished")
        return None

    def _migrate(self, provider: Provider) -> Found:
        name, avoid, live = self.work.name, self.avoid | {self.work.argument}, self.work.kind == WorkKind.LIVE_MIGRATE
        try:
            provider.migrate(name, avoid.union(self.work.rather_not), live=live)
        except NoCapacity:
            provider.migrate(name, avoid, live=live)
        found = provider.look_up(name)
        if found is None:
            raise Failed("vanished")
        if found.host in avoid:
            raise Failed(f"it is still on {found.host}")
        return found

    def succeeded(self, session: Session, rules: Rules, result: Found | None, seconds: float) -> None:
        """The VM has it, or is elsewhere."""
        if result is None:
            work.done(session, self.work)
        else:
            work.migrated(session, self.work, result)

    def failed(self, session: Session, rules: Rules, error: Exception) -> None:
        """It is tried again or given up."""
        work.not_done(session, self.work, error)


@dataclass(frozen=True)
class List(Job):
    """What a provider has is compared with what there should be."""

    reading: Reading
    lane: ClassVar[Lane] = Lane.LIST

    @property
    def probe(self) -> bool:
        """Tell whether this was begun while the provider was left alone."""
        return self.reading.probe

    def call(self, provider: Provider) -> frozenset[str]:
        """Read the list."""
        found = provider.names()
        return found if isinstance(found, Partial) else frozenset(found)

    def succeeded(self, session: Session, rules: Rules, result: frozenset[str], seconds: float) -> None:
        """Compare."""
        listing.compare(session, self.reading, result)

    def failed(self, session: Session, rules: Rules, error: Exception) -> None:
        """The next one will tell."""
