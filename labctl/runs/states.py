"""The states of jobs, and how a run's status follows from them."""

from enum import StrEnum


class JobState(StrEnum):
    """What a job is doing. Reports may set any of them, until the job has passed or failed."""

    QUEUED = "queued"  #: in its queue, for a dispatcher to take
    WAITING = "waiting"  #: taken by a dispatcher, not yet on machines
    RUNNING = "running"  #: on machines
    PASS = "pass"  #: ended well; final
    FAIL = "fail"  #: ended badly; final
    DEAD = "dead"  #: ended without a result; a late result still counts
    UNKNOWN = "unknown"  #: reported without saying


#: What a later status does not overrule.
FINAL = frozenset((JobState.PASS, JobState.FAIL))
#: From these, becoming RUNNING is the start of the job.
NOT_STARTED = frozenset((JobState.QUEUED, JobState.WAITING))


class RunState(StrEnum):
    """What a run's jobs amount to."""

    EMPTY = "empty"  #: no jobs
    QUEUED = "queued"  #: all are queued, or what is left after the others have passed
    RUNNING = "running"  #: at least one is running
    WAITING = "waiting"  #: at least one is waiting, none is running
    DEAD = "finished dead"  #: all are dead
    FAIL = "finished fail"  #: at least one has failed or died
    PASS = "finished pass"  #: all have passed
    UNKNOWN = "unknown"  #: none of these


#: The first condition that holds, on the counts of jobs by state and their ``total``, gives the run's status.
RUN_STATUS = (
    ("total = 0", RunState.EMPTY),
    ("queued = total", RunState.QUEUED),
    ("running > 0", RunState.RUNNING),
    ("waiting > 0", RunState.WAITING),
    ("dead = total", RunState.DEAD),
    ("fail > 0", RunState.FAIL),
    ("dead > 0", RunState.FAIL),
    ("pass = total", RunState.PASS),
    ("queued > 0", RunState.QUEUED),
)
