"""The contract of an action plugin: what is done to a host (or once) in a session. It never sees the database.

An action does nothing itself: it says step by step which operations the remote tree shall carry out, so that it can go
on in any process after any crash. It is asked for its next step when it begins, when an operation has ended, and when
the time that it wanted to wait is over; it decides from its view alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from labctl.maintenance.states import ActionType


@dataclass(frozen=True)
class Outcome:
    """How an operation went that the action wanted."""

    #: The name it was given.
    step: str
    #: Whether the job ended well on all its hosts.
    ok: bool
    #: Why not.
    error: str
    #: The last output of each host: ``status`` and what else the operation tells (``rtc``, ``stdout`` ...).
    outputs: Mapping[str, Mapping[str, Any]]
    ended: datetime
    #: Whether nobody knows how far it got: the worker that had it carried out was lost, or stopped.
    unfinished: bool = False


@dataclass(frozen=True)
class View:
    """What an action sees."""

    #: Its host; empty: it runs once for the session.
    host: str
    #: All hosts of the session.
    hosts: tuple[str, ...]
    #: The paths of the files that the session has downloaded, by their URLs, on the machine of the worker.
    downloads: Mapping[str, str]
    started: datetime
    now: datetime
    #: What it has wanted so far, in order.
    outcomes: tuple[Outcome, ...] = ()
    #: The how manieth time this is: more than 1 after the session was continued. It begins each time from the start.
    attempt: int = 1


@dataclass(frozen=True)
class Operate:
    """Have an operation carried out; ``step`` is a name that no other of this action has: the same again is not done.

    ``operation`` and ``arguments`` are those of :class:`labctl.remote.executor.Order`.
    """

    step: str
    operation: str
    hosts: tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None


@dataclass(frozen=True)
class Wait:
    """Ask again after so many seconds."""

    seconds: float
    what_for: str = ""


@dataclass(frozen=True)
class Done:
    """It went well."""


@dataclass(frozen=True)
class Failed:
    """It did not; the reason is shown to people."""

    reason: str


class Action(ABC):
    """One kind of action; an object is made each time it is asked."""

    #: When it may run.
    types: ClassVar[frozenset[ActionType]] = frozenset(ActionType)
    #: Seconds after which it has failed, unless its ``metadata`` have another ``timeout``.
    timeout: ClassVar[float] = 3600

    @abstractmethod
    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """Take the action's ``metadata``; raises ValueError with one line for each mistake. It does nothing else."""

    @abstractmethod
    def next(self, view: View) -> Operate | Wait | Done | Failed:
        """Say what is next."""
