"""What statuses mean. Storage nodes and build farms may post any word; these are the ones they use."""

from enum import StrEnum


class RepoStatus(StrEnum):
    """The life of a repo."""

    REQUESTED = "requested"  #: somebody wants it
    QUEUED = "queued"  #: its packages are there, its metadata waits to be made
    BUILDING = "building"  #: its metadata is being made
    READY = "ready"  #: it can be installed from; what ``latest`` looks for
    FAILED = "failed"  #: it could not be made
    DELETED = "deleted"  #: it is gone from its node, and with this word from here


class BuildStatus(StrEnum):
    """The life of a build."""

    QUEUED = "queued"  #: a build host is still to be found; it is taken over by the next report of the same build
    STARTED = "started"  #: it runs
    COMPLETED = "completed"  #: it has made its packages
    FAILED = "failed"  #: it has not
