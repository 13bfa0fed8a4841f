"""The contract of providers: what makes VMs, on some hypervisor or cloud, and destroys them.

A provider is a plugin of the group ``labctl.vm_providers``: a subclass of :class:`Provider`. It gets plain values, and
is called by the engine from several threads at once, never inside a database transaction. Any call may be repeated,
by another process, after the first one has done its work and before anybody heard of it: each call asks for a state of
things, not for a change. A call may take minutes; the engine has a deadline for it, and gives its thread up after that.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar


class ProviderError(Exception):
    """A call did not do what was asked; the message is shown to people."""


class NoCapacity(ProviderError):
    """There is no room now. It is tried again later, and does not count as a failure."""


class Failed(ProviderError):
    """It did not work. It is tried again a few times, later and later; every other exception counts as this."""


class Unreachable(Failed):
    """A part of the provider, such as one hypervisor of several, does not answer; that says nothing of the rest."""


class Misconfigured(ProviderError):
    """It cannot work before somebody changes the configuration, such as a template that is not there."""


@dataclass(frozen=True)
class Wanted:
    """A VM that is to be made."""

    name: str
    template: str
    #: The pool's ``options``.
    options: Mapping[str, Any]
    domain: str = ""
    #: Hypervisors, as :attr:`Found.host` names them, that are out of service: it must not be made there.
    avoid: frozenset[str] = frozenset()
    #: Nobody has asked for it before: it is nowhere yet, not even where nobody answers.
    is_new: bool = False


@dataclass(frozen=True)
class Found:
    """A VM as its provider sees it."""

    running: bool
    addresses: tuple[str, ...] = ()
    #: The hypervisor it is on.
    host: str = ""


class Partial(frozenset[str]):
    """The names that some hypervisors have listed, while others did not answer."""

    hosts: frozenset[str]
    #: What is wrong with the others.
    trouble: str

    def __new__(cls, names: Iterable[str], hosts: Iterable[str], trouble: str) -> "Partial":
        """``hosts``: those that have listed all they have, as :attr:`Found.host` names them."""
        self = super().__new__(cls, names)
        self.hosts = frozenset(hosts)
        self.trouble = trouble
        return self


class Provider(ABC):
    """One provider, made once for each entry of the setting ``providers`` in each process."""

    #: Which of ``disk``, ``snapshot``, ``revert``, ``migrate`` and ``live_migrate`` it can do; the others are refused
    #: before it is asked. One that can migrate live can do it otherwise, too.
    capabilities: frozenset[str] = frozenset()
    #: Its option ``directory``, if its entry has none, is a directory of its own in labctl's home.
    keeps_files: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        """Take its entry of the setting, less what is the engine's (``labctl.vms.config``); connect to nothing yet.

        Raises :class:`Misconfigured` with one line for each mistake, naming the option.
        """

    def check_options(self, options: Mapping[str, Any]) -> None:  # noqa: B027 (not every provider minds)
        """Check a pool's ``options``, as far as that is possible without a connection, when a process starts.

        Raises :class:`Misconfigured` with one line for each mistake, naming the option.
        """

    @abstractmethod
    def create(self, wanted: Wanted) -> None:
        """See to it that the VM exists and starts to run; its boot is not waited for.

        If there is one of that name already, it is the one: asking twice is asking once. Raises :class:`NoCapacity`,
        :class:`Failed` or :class:`Misconfigured`; what was half made is removed, or is completed by asking again, or
        is listed by :meth:`names`.
        """

    @abstractmethod
    def look_up(self, name: str) -> Found | None:
        """Tell how a VM does, None if there is none of that name.

        Raises :class:`Failed` if that cannot be told, :class:`Unreachable` if it can be told of other VMs.
        """

    @abstractmethod
    def destroy(self, name: str) -> None:
        """See to it that the VM and everything that belongs to it (disks, snapshots) is gone; gone already is gone.

        Raises :class:`Failed`, and :class:`Unreachable` if others can be destroyed.
        """

    @abstractmethod
    def names(self) -> Set[str]:
        """List all VMs that were made for labctl here, half-made ones too, so that none leaks.

        Raises :class:`Failed` rather than leave any out; where some of several hypervisors answer, gives those of them
        as :class:`Partial`.
        """

    def add_disk(self, name: str, number: int, gigabytes: int) -> None:
        """See to it that a running VM has its ``number``-th added disk (from 1), of that size."""
        raise Misconfigured("this provider cannot add disks")

    def snapshot(self, name: str, snapshot: str) -> None:
        """See to it that a snapshot of that name exists."""
        raise Misconfigured("this provider cannot make snapshots")

    def revert(self, name: str, snapshot: str) -> None:
        """Set the VM back to a snapshot; it runs afterwards."""
        raise Misconfigured("this provider cannot revert to snapshots")

    def migrate(self, name: str, avoid: Set[str], *, live: bool) -> None:
        """See to it that a VM runs on a hypervisor that is none of ``avoid``, under its name, with all it has.

        One that does already stays where it is. With ``live`` its guest does not notice, else it may be started anew.
        :meth:`names` lists it all the time. Raises as :meth:`create`.
        """
        raise Misconfigured("this provider cannot migrate VMs")
