"""The life of a VM, of a piece of work on one, and of a request for VMs that are yet to be made."""

from enum import StrEnum

from labctl.lifecycle import Lifecycle


class VMState(StrEnum):
    """Where a VM is in its life."""

    REQUESTED = "requested"  #: wanted; the provider is being asked for it
    PENDING = "pending"  #: made by the provider, not yet ready
    READY = "ready"  #: waiting in its pool
    RUNNING = "running"  #: checked out by somebody
    COMPLETED = "completed"  #: nobody needs it any more; the provider is being asked to destroy it
    DESTROYED = "destroyed"  #: gone; only what is known of it is left


LIFE = Lifecycle(
    {
        VMState.REQUESTED: {VMState.PENDING, VMState.COMPLETED},
        VMState.PENDING: {VMState.READY, VMState.RUNNING, VMState.COMPLETED},
        VMState.READY: {VMState.RUNNING, VMState.COMPLETED},
        VMState.RUNNING: {VMState.COMPLETED},
        VMState.COMPLETED: {VMState.DESTROYED},
        VMState.DESTROYED: set(),
    }
)


class WorkState(StrEnum):
    """Where a piece of work on a running VM (a disk, a snapshot, a revert, a migration) is."""

    WAITING = "waiting"  #: the engine has not done it yet
    DONE = "done"  #: it is done
    FAILED = "failed"  #: the provider cannot, or could not several times


class WorkKind(StrEnum):
    """What can be done to a running VM."""

    DISK = "disk"  #: add a disk of ``argument`` GB
    SNAPSHOT = "snapshot"  #: make the snapshot ``argument``
    REVERT = "revert"  #: go back to the snapshot ``argument``
    MIGRATE = "migrate"  #: leave the hypervisor ``argument`` for another one
    LIVE_MIGRATE = "live_migrate"  #: the same while it runs


#: Work that takes a VM to another hypervisor.
MIGRATIONS = (WorkKind.MIGRATE, WorkKind.LIVE_MIGRATE)


class RequestState(StrEnum):
    """Where an on-demand request is."""

    WAITING = "waiting"  #: some of its VMs are not there yet
    READY = "ready"  #: all are there, and are its user's
    DELETED = "deleted"  #: its user has taken it back
    FAILED = "failed"  #: its VMs could not be made, or not in time
