"""Queues and claims as JSON."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from labctl import times
from labctl.queues.service import Claimed, is_paused
from labctl.runs.wire import JobID, RunNameText, Whole, Word


class QueueInput(BaseModel):
    """A body that names a queue."""

    queue: Annotated[Word, Field(min_length=1)]


class PauseInput(QueueInput):
    """Who pauses a queue, and for how many seconds."""

    paused_by: Annotated[Word, Field(min_length=1)]
    pause_duration: Annotated[float, Field(ge=0, le=10 * 366 * 86400)]


class PopInput(QueueInput):
    """Who takes a job out of a queue."""

    worker: Annotated[Word, Field(min_length=1)]


class HeartbeatInput(BaseModel):
    """Which claim is to be kept alive."""

    run: RunNameText
    job_id: JobID
    worker: Word
    attempt: Whole


def queue_to_wire(queue: Any) -> dict[str, Any]:
    """Shape a queue, a row of its table; a pause that is over is none."""
    paused = is_paused(queue)
    return {
        "queue": queue.name,
        "paused": paused,
        "paused_by": queue.paused_by if paused else None,
        "paused_since": times.to_wire(queue.paused_since) if paused else None,
        "paused_until": times.to_wire(queue.paused_until) if paused else None,
    }


def claim_to_wire(claimed: Claimed) -> dict[str, Any]:
    """Shape a claim: what the dispatcher sends back with its heartbeats, and until when it must."""
    return {
        "run": claimed.run_name,
        "job_id": claimed.job_id,
        "worker": claimed.worker,
        "attempt": claimed.attempt,
        "until": times.to_wire(claimed.until),
    }
