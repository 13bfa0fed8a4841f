"""The contract of a workflow: what decides how a session goes on. Plain values; it never sees the database.

A workflow is a table from states to steps. A step looks at a view of the session and says what is next. It is called
again and again, every second or sooner when something has changed, in a short transaction that holds the session: it
never waits, asks nobody, and remembers nothing but by the state that it returns. What it wants done is done in the same
transaction, or begun by it; asking for something that was done or begun already changes nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from labctl.maintenance.states import ActionType, HostState, InstanceAction, MoveState


class Progress(StrEnum):
    """How far something is that takes its time."""

    NONE = "none"  #: it was not asked for
    RUNNING = "running"
    DONE = "done"  #: also if there was nothing to do
    FAILED = "failed"


@dataclass(frozen=True)
class Instance:
    """Something in use on a host."""

    #: The name of the VM; of the machine, if that is locked as a whole.
    id: str
    #: Whose it is; empty: a VM that was taken without a credential.
    project: str
    #: What can become of it.
    allowed: frozenset[InstanceAction]
    #: When it is free by itself at the latest; None: not before somebody gives it back.
    until: datetime | None = None
    #: Whether to move it is to give its owner another VM instead; else its provider takes it elsewhere.
    replaced: bool = True
    #: How far its move is, if one was begun and it is still there; how it is moved, since when, and why that failed or
    #: finds no room.
    move: MoveState | None = None
    move_how: InstanceAction | None = None
    move_since: datetime | None = None
    move_reason: str = ""


@dataclass(frozen=True)
class Host:
    """One host of the session, in its order."""

    name: str
    state: HostState
    instances: tuple[Instance, ...] = ()
    #: Whether VMs on it that can be moved would find a place elsewhere: ready VMs of their pools on other hosts, or
    #: room, as far as their provider has not said that there is none.
    replaceable: bool = True
    #: Whether they will: VMs of their pools are being made, or are ready on it and made anew elsewhere once drained.
    remade: bool = False
    #: Whether no VM comes or goes any more that nobody has: what was being made, moved or destroyed.
    settled: bool = True
    #: Of the actions for this host, and of its check.
    actions: Progress = Progress.NONE
    check: Progress = Progress.NONE
    reason: str = ""
    #: Since when nobody gets anything new on it; None: it is in service.
    since: datetime | None = None


@dataclass(frozen=True)
class Reply:
    """What a project was asked, and what it answered."""

    asked: datetime | None
    reply_by: datetime | None
    #: True: ACK of that state; False: NACK, or something else; None: no answer yet.
    agrees: bool | None
    instance_actions: Mapping[str, InstanceAction] = field(default_factory=dict)
    #: The answer as it was sent.
    answer: str = ""


@dataclass(frozen=True)
class View:
    """A session as its workflow sees it."""

    state: str
    #: Since when it is in that state.
    entered: datetime
    now: datetime
    maintenance_at: datetime
    metadata: Mapping[str, Any]
    hosts: tuple[Host, ...]
    #: By project, state, host (empty: of the session) and round.
    replies: Mapping[tuple[str, str, str, int], Reply]
    #: Seconds that projects have to answer, by state.
    reply_seconds: Mapping[str, float]
    downloads: Progress = Progress.DONE
    pre: Progress = Progress.NONE
    post: Progress = Progress.NONE
    #: What went wrong with downloads, or with actions that are not a host's.
    reason: str = ""


# What a step wants done.


@dataclass(frozen=True)
class Notify:
    """Tell a project about a state, and ask it to agree."""

    project: str
    state: str
    instances: tuple[str, ...]
    reply_by: datetime
    allowed_actions: tuple[InstanceAction, ...] = ()
    #: When what it is told about is going to happen.
    actions_at: datetime | None = None
    host: str = ""
    round: int = 1


@dataclass(frozen=True)
class Drain:
    """Give nothing new on a host to anybody; ready VMs on it are made anew elsewhere, a free machine is locked."""

    host: str


@dataclass(frozen=True)
class Move:
    """Move a VM away for its owner."""

    instance: str
    how: InstanceAction


@dataclass(frozen=True)
class Run:
    """Run the actions of a type, one after the other by the names of their plugins; ``host``: for that host."""

    type: ActionType
    host: str = ""


@dataclass(frozen=True)
class Return:
    """Give a host back to service; its part in the session is done."""

    host: str


@dataclass(frozen=True)
class FailHost:
    """Leave a host out of service because of what went wrong there."""

    host: str
    reason: str


Want = Notify | Drain | Move | Run | Return | FailHost


@dataclass(frozen=True)
class Next:
    """What is next: perhaps another state, what is to be done, what is waited for.

    ``failed`` says why the session cannot go on; it is then in MAINTENANCE_FAILED until somebody continues it in the
    state it was in. With neither a state nor anything to do, it waits; ``until`` is the time of the next look at the
    latest.
    """

    state: str | None = None
    do: tuple[Want, ...] = ()
    waits_for: str = ""
    until: datetime | None = None
    failed: str | None = None


class Workflow(ABC):
    """One kind of workflow; it is made once, keeps nothing, and ends every session in MAINTENANCE_DONE."""

    #: Whether sessions with hosts that nobody can ask how they are need the hint ``gate: none``.
    checks_hosts: ClassVar[bool] = True

    @property
    @abstractmethod
    def steps(self) -> Mapping[str, Callable[[View], Next]]:
        """Give the step of each state; the first state is MAINTENANCE, and the final ones need none."""

    def check(self, metadata: Mapping[str, Any]) -> list[str]:
        """List what is wrong with the hints (``metadata``) of a request, a line each, naming the key."""
        return []
