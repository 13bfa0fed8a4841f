"""The life of a job, how an operation went on a host, and what operations there are."""

from enum import IntEnum, StrEnum

from labctl.lifecycle import Lifecycle


class JobState(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"  #: accepted; no worker has begun it
    RUNNING = "running"  #: a worker has it carried out
    DONE = "done"  #: ended, and no host failed
    FAILED = "failed"  #: ended with hosts that failed, or before its end
    CANCELLED = "cancelled"  #: somebody has ended it


LIFE = Lifecycle(
    {
        JobState.QUEUED: {JobState.RUNNING, JobState.FAILED, JobState.CANCELLED},
        JobState.RUNNING: {JobState.DONE, JobState.FAILED, JobState.CANCELLED},
        JobState.DONE: set(),
        JobState.FAILED: set(),
        JobState.CANCELLED: set(),
    }
)


class HostState(StrEnum):
    """How a job goes on one host."""

    WAITING = "waiting"  #: nothing has come from it that ends it
    OK = "ok"  #: it went well, and changed nothing
    CHANGED = "changed"  #: it went well, and changed something
    SKIPPED = "skipped"  #: there was nothing to do
    FAILED = "failed"  #: it did not go well, or did not end
    UNREACHABLE = "unreachable"  #: the host could not be reached


class Status(IntEnum):
    """How a step went on a host; the numbers are those of the protocol (Operate state enums)."""

    ANNOUNCE = 0  #: it begins
    OK = 1
    SKIPPED = 2
    FAILED = 3
    UNREACHABLE = 4
    CHANGED = 5


class Operation(StrEnum):
    """What can be done on hosts."""

    PING = "ping"  #: find out whether it answers
    FACTER = "facter"  #: gather facts
    SERVICE = "service"  #: start, stop, restart or reload a service
    EXECUTE = "execute"  #: run a command line by the host's shell
    DEPLOY = "deploy"  #: apply a role
    TASK = "task"  #: run a task plugin, which uses the others


#: What holds its hosts: no two of one kind go on at a time on one host.
EXCLUSIVE = frozenset((Operation.DEPLOY, Operation.TASK))
#: What takes a moment, and somebody often waits for: these do not wait behind the others.
SHORT = frozenset((Operation.PING, Operation.FACTER))
