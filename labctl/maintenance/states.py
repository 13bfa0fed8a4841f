"""Where sessions, their hosts, their actions, their downloads and the moves of VMs are."""

from enum import StrEnum

from labctl.lifecycle import Lifecycle

#: How every session begins and ends, whatever its workflow; the states in between are the workflow's own.
FIRST = "MAINTENANCE"
DONE = "MAINTENANCE_DONE"
FAILED = "MAINTENANCE_FAILED"


class HostState(StrEnum):
    """Where a host is in its session."""

    WAITING = "waiting"  #: in service; its turn has not come
    DRAINING = "draining"  #: nobody gets anything new on it; who uses it is waited for
    MAINTAINING = "maintaining"  #: nobody uses it; its actions run
    CHECKING = "checking"  #: its actions are done; it is asked whether it is well
    DONE = "done"  #: well, and back in service
    FAILED = "failed"  #: an action or the check failed; it stays out of service
    SKIPPED = "skipped"  #: left out by request, and back in service


HOST_LIFE = Lifecycle(
    {
        HostState.WAITING: {HostState.DRAINING, HostState.SKIPPED},
        HostState.DRAINING: {HostState.MAINTAINING, HostState.WAITING, HostState.SKIPPED, HostState.FAILED},
        HostState.MAINTAINING: {HostState.CHECKING, HostState.FAILED},
        HostState.CHECKING: {HostState.DONE, HostState.FAILED},
        # A failed one is tried again from its actions on, once nobody uses it, or left out.
        HostState.FAILED: {HostState.MAINTAINING, HostState.DRAINING, HostState.SKIPPED},
        HostState.DONE: set(),
        HostState.SKIPPED: set(),
    }
)


class ActionType(StrEnum):
    """When an action runs."""

    PRE = "pre"  #: once, before the first host
    HOST = "host"  #: for each host, while nobody uses it
    CHECK = "check"  #: for each host, after that: whether it is well
    POST = "post"  #: once, after the last host


class ActionState(StrEnum):
    """Where an action (for a host) is, and a download."""

    WAITING = "waiting"  #: its turn has not come
    RUNNING = "running"  #: it goes on
    DONE = "done"  #: it went well
    FAILED = "failed"  #: it did not


class InstanceAction(StrEnum):
    """What becomes of a VM on a host that is to be emptied; the words are the protocol's."""

    MIGRATE = "MIGRATE"  #: the provider moves it, or its owner gets a fresh one of the same pool instead
    LIVE_MIGRATE = "LIVE_MIGRATE"  #: the provider moves it while it runs
    OWN_ACTION = "OWN_ACTION"  #: its owner sees to it


class MoveState(StrEnum):
    """Where the move of a VM is."""

    WAITING = "waiting"  #: no VM to take its place is ready yet, or the provider is at it
    DONE = "done"  #: its owner has another one, and it is gone
    FAILED = "failed"  #: it could not be moved
