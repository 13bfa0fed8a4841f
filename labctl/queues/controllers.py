"""``/queue`` and ``/api/queue``."""

from typing import Any

import orjson

from labctl import times
from labctl.db import reading, transaction
from labctl.errors import Invalid
from labctl.http import body, render
from labctl.http.resource import Mount, Request, Resource
from labctl.queues import service, wire
from labctl.runs import documents
from labctl.runs import queries as runs
from labctl.runs.service import Claim
from labctl.settings import Settings


class QueueController(Resource):
    """The queues, and taking jobs out of them."""

    def __init__(self, settings: Settings, mount: Mount) -> None:
        """Take what applies to this mount."""
        self.settings = settings
        self.mount = mount
        self.children = {
            "pop_queue": PopQueueController(settings),
            "heartbeat": HeartbeatController(settings),
            "resume": ResumeController(settings),
            "stats": QueueStatsController(settings),
            "queued_jobs": QueuedJobsController(settings),
        }

    def get(self, request: Request) -> Any:
        """List the queues: all, that of a ``machine_type=``, those paused by somebody (``paused_by=``)."""
        name, paused_by = body.text(request, "machine_type"), body.text(request, "paused_by")
        with reading() as session:
            return [wire.queue_to_wire(queue) for queue in service.listed(session, name=name, paused_by=paused_by)]

    def post(self, request: Request) -> Any:
        """Add a queue."""
        name = read_queue(request, self.settings)
        with transaction(request.actor()) as session:
            service.add(session, name)
        return {}

    def put(self, request: Request) -> Any:
        """Pause a queue."""
        given = body.parse(wire.PauseInput, body.read_object(request, self.settings.max_body))
        with transaction(request.actor()) as session:
            service.pause(session, given.queue, given.paused_by, given.pause_duration)
        return {}


class PopQueueController(Resource):
    """The next job of a queue."""

    def __init__(self, settings: Settings) -> None:
        """Take the length of a lease."""
        self.settings = settings
        self.logs = documents.LogURL(settings.job_log_url)

    def get(self, request: Request) -> Any:
        """Give the next job without taking it, or null: the dispatcher says itself that it runs (paddles)."""
        name = body.text(request, "queue")
        if not name:
            raise Invalid("could not find required key: 'queue'")
        with reading() as session:
            job = service.next_job(session, name, self.logs)
        return render.Text("null" if job is None else job)

    def post(self, request: Request) -> Any:
        """Take the next job: it waits for ``worker`` under a lease and is nobody else's; null if there is none."""
        given = body.parse(wire.PopInput, body.read_object(request, self.settings.max_body))
        with transaction(request.actor()) as session:
            claimed = service.claim(session, given.queue, given.worker, self.settings.job_lease)
            if claimed is None:
                return render.Text("null")
            job = runs.job(session, claimed.run_name, claimed.job_id, self.logs)
        assert job is not None
        return render.Text(f'{job[:-1]},"claim":{orjson.dumps(wire.claim_to_wire(claimed)).decode()}}}')


class HeartbeatController(Resource):
    """Keeping a claimed job."""

    def __init__(self, settings: Settings) -> None:
        """Take the length of a lease."""
        self.settings = settings

    def post(self, request: Request) -> Any:
        """Keep a claim for another lease; 403 when it is lost."""
        given = body.parse(wire.HeartbeatInput, body.read_object(request, self.settings.max_body))
        held = Claim(given.worker, given.attempt)
        with transaction(request.actor()) as session:
            until = service.heartbeat(session, given.run, given.job_id, held, self.settings.job_lease)
        return {"until": times.to_wire(until)}


class ResumeController(Resource):
    """The end of a pause."""

    def __init__(self, settings: Settings) -> None:
        """Take the limits."""
        self.settings = settings

    def post(self, request: Request) -> Any:
        """Let jobs be taken again before the pause is over."""
        name = read_queue(request, self.settings)
        with transaction(request.actor()) as session:
            service.resume(session, name)
        return {}


class QueueStatsController(Resource):
    """How full a queue is."""

    def __init__(self, settings: Settings) -> None:
        """Take the limits."""
        self.settings = settings

    def post(self, request: Request) -> Any:
        """Count the queued jobs; a paused queue says by whom and until when as well."""
        name = read_queue(request, self.settings)
        with reading() as session:
            queue, queued = service.stats(session, name)
        if service.is_paused(queue):
            assert queue is not None
            return {**wire.queue_to_wire(queue), "queued_jobs": queued}
        return {"queue": name, "queued_jobs": queued, "paused": False}


class QueuedJobsController(Resource):
    """The jobs that wait in a queue."""

    def __init__(self, settings: Settings) -> None:
        """Take the limits."""
        self.settings = settings
        self.logs = documents.LogURL(settings.job_log_url)

    def post(self, request: Request) -> Any:
        """List them all, the next one first; those of one ``user=`` or ``run_name=``."""
        name = read_queue(request, self.settings)
        user, run_name = body.text(request, "user"), body.text(request, "run_name")
        with reading() as session:
            return render.as_list(service.queued_jobs(session, name, self.logs, user=user, run_name=run_name))


def read_queue(request: Request, settings: Settings) -> str:
    """Read a body that names a queue."""
    data = body.read_object(request, settings.max_body)
    if data.get("queue") is None:
        raise Invalid("could not find required key: 'queue'")
    return body.parse(wire.QueueInput, data).queue
