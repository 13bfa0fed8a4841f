"""``/target``, ``/jobs``, ``/ping`` and the other operations on hosts, and the same below ``/api/remote``."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from webob import Response

from labctl.db import reading, transaction
from labctl.errors import Invalid, Unavailable
from labctl.http import body, paging, render, streams
from labctl.http.resource import Mount, Request, Resource
from labctl.paging import Page
from labctl.remote import config, follow, patterns, queries, service, wire
from labctl.remote.follow import Follower, Hub, Stream
from labctl.remote.service import Wanted
from labctl.remote.states import Operation, Status
from labctl.remote.task import Task
from labctl.settings import Settings

#: How much output one answer has, in bytes, before it says where to go on.
MOST_BYTES = queries.MOST_BYTES
#: The largest number of an output that can be asked for.
_MOST = 2_000_000_000
_LAST_EVENT = re.compile(r"([0-9]{1,9})(-end)?")


@dataclass(frozen=True)
class Tree:
    """What the controllers of one mount have in common."""

    settings: Settings
    mount: Mount
    hub: Hub

    @cached_property
    def tasks(self) -> Mapping[str, type[Task]]:
        """The task plugins there are."""
        return config.tasks(self.settings)

    def children(self) -> dict[str, Resource]:
        """Give what there is, by the first segment of its path."""
        blocking = (Operation.PING, Operation.FACTER, Operation.SERVICE, Operation.EXECUTE)
        return {
            "target": TargetController(self),
            "jobs": JobsController(self),
            **{operation.value: BlockingController(self, operation) for operation in blocking},
            "deploy": OperationController(self, Operation.DEPLOY),
            "tasks": TasksController(self),
            "task": TasksController(self),
        }


class RemoteController(Resource):
    """``/api/remote``: all of it in one place."""

    def __init__(self, tree: Tree) -> None:
        """Take what applies to this mount."""
        self.mount = tree.mount
        self.children = tree.children()

    def get(self, request: Request) -> Any:
        """List what there is."""
        return {"trees": sorted(self.children)}


class TargetController(Resource):
    """The hosts there are."""

    def __init__(self, tree: Tree) -> None:
        """Take what applies to this mount."""
        self.mount = tree.mount

    def get(self, request: Request) -> Any:
        """List the names of the hosts that ``pattern`` means, all by default."""
        given = body.texts(request, "pattern")
        if not all(pattern.strip() for pattern in given):
            raise Invalid("must not be empty", field="pattern")
        with reading() as session:
            hosts = queries.hosts(session)
        return patterns.choose(hosts, given)[0] if given else list(hosts)


# Jobs


class JobsController(Resource):
    """All jobs."""

    def __init__(self, tree: Tree) -> None:
        """Take what applies to this mount."""
        self.tree = tree
        self.mount = tree.mount

    def item(self, segment: str) -> Resource | None:
        """One job."""
        return JobController(self.tree, segment)

    def get(self, request: Request) -> Any:
        """List jobs, the newest first: their ids, or all of them with ``detail``; with ``jid`` give that one."""
        jid = body.text(request, "jid")
        if jid is not None:
            return JobController(self.tree, _known_jid(jid)).get(request)
        detail = wire.flag(body.text(request, "detail"), "detail")
        given = (body.text(request, name) for name in ("state", "operate", "host"))
        chosen, page = wire.filter_from_query(*given), paging.page_of(request, self.tree.settings)
        with reading() as session:
            rows = queries.jobs(session, chosen, page, detail=detail)
        jobs = [wire.job_to_wire(row) if detail else row.jid for row in rows]
        return render.with_next(jobs, _next(request, page, rows))

    def delete(self, request: Request) -> Any:
        """Delete the job that ``jid`` says, as some clients ask."""
        return JobController(self.tree, _known_jid(body.text(request, "jid"))).delete(request)


def _known_jid(jid: str | None) -> str:
    if not jid:
        raise Invalid("no jid given")
    return jid


def _next(request: Request, page: Page, rows: Any) -> str | None:
    return paging.next_url(request, page, len(rows), (rows[-1].created, rows[-1].id) if rows else None)


class JobController(Resource):
    """One job."""

    def __init__(self, tree: Tree, jid: str) -> None:
        """Note its id; the job is looked for by the methods."""
        self.tree = tree
        self.jid = jid

    @property
    def children(self) -> Mapping[str, Resource]:  # type: ignore[override]
        """What belongs to it."""
        return {"cancel": CancelController(self.jid), "events": JobEventsController(self.tree, self.jid)}

    def get(self, request: Request) -> Any:
        """Give the job; with ``outputs`` what came after ``after``, and with ``follow`` what comes from now on."""
        outputs = wire.flag(body.text(request, "outputs"), "outputs")
        follows = wire.flag(body.text(request, "follow"), "follow")
        after = _after(request)
        with reading() as session:
            job = queries.job(session, self.jid)
            span = {job.id: (after, job.last_seq)} if outputs and job.last_seq > after else {}
            pieces = queries.outputs(session, span, most_bytes=MOST_BYTES).get(job.id, [])
        answer = wire.job_to_wire(job, follow.grouped(pieces))
        seen = pieces[-1].seq if pieces else after
        more = bool(pieces) and seen < job.last_seq
        if outputs:
            answer |= {"next": seen, "more": more}
        if not follows or (job.finished is not None and not more):
            return render.with_next(answer, paging.url_with(request, after=str(seen)) if more else None)
        leave = self.tree.hub.take_place()
        follower = Follower(self.tree.hub, job.id, seen)
        stream = Stream(follower, leave, follow.as_json, first=render.dumps(answer), beat=b"\n")
        return streams.stream(request, stream, "application/json")

    def delete(self, request: Request) -> Any:
        """Forget the job, which has ended."""
        with transaction(request.actor()) as session:
            service.delete(session, self.jid)


def _after(request: Request) -> int:
    after = body.integer(request, "after", 0, least=0, most=_MOST)
    assert after is not None
    return after


class CancelController(Resource):
    """``cancel`` of one job."""

    def __init__(self, jid: str) -> None:
        """Note the id of the job."""
        self.jid = jid

    def post(self, request: Request) -> Any:
        """Have the job end before its time, and answer how it is."""
        with transaction(request.actor()) as session:
            service.cancel(session, self.jid, request.actor().name)
            job = queries.job(session, self.jid)
        return render.with_status(wire.job_to_wire(job), 202)


class JobEventsController(Resource):
    """``events`` of one job: its output as server-sent events."""

    def __init__(self, tree: Tree, jid: str) -> None:
        """Note the id of the job."""
        self.tree = tree
        self.jid = jid

    def get(self, request: Request) -> Any:
        """Send the output after ``after`` (or ``Last-Event-ID``) as it comes, and then the end."""
        seen = _after(request)
        last = _LAST_EVENT.fullmatch(request.environ.get("HTTP_LAST_EVENT_ID", ""))
        if last is not None and last[2]:
            # The browser comes back although it was told the end: this is how it learns to stay away.
            return None
        if last is not None:
            seen = int(last[1])
        with reading() as session:
            job = queries.job(session, self.jid)
        leave = self.tree.hub.take_place()
        follower = Follower(self.tree.hub, job.id, seen)
        stream = Stream(
            follower,
            leave,
            follow.as_event,
            # Something at once, so that the client knows that it is connected.
            first=b": \n\n",
            beat=b": \n\n",
            last=lambda ended: follow.end_as_event(ended.standing, follower.seen),
        )
        return streams.stream(request, stream, "text/event-stream")


# Operations


class OperationController(Resource):
    """An operation that is asked for with POST."""

    def __init__(self, tree: Tree, operation: Operation) -> None:
        """Take what applies to this mount, and the operation."""
        self.tree = tree
        self.mount = tree.mount
        self.operation = operation

    def post(self, request: Request) -> Any:
        """Have the operation carried out, and answer the id of its job at once."""
        data = body.read_object(request, self.tree.settings.max_body)
        targets = wire.targets_from_wire(data)
        wanted = Wanted(self.operation, targets, wire.arguments_from_wire(self.operation, data))
        return created(submit(request, self.tree, wanted, data.get("timeout")))


def submit(request: Request, tree: Tree, wanted: Wanted, timeout: Any) -> str:
    """Have an operation carried out, and give the id of its job."""
    settings = tree.settings
    seconds = wire.timeout_from_wire(timeout, settings.remote_timeouts[wanted.operation])
    actor, address = request.actor(), request.address()
    with transaction(actor) as session:
        return service.submit(
            session,
            wanted,
            asked_by=actor.name,
            address=address,
            timeout=seconds,
            begin_within=settings.remote_begin_within,
        )


def created(jid: str) -> Response:
    """Answer that a job was added."""
    return render.with_status({"jid": jid}, 201)


class BlockingController(OperationController):
    """An operation that can also be asked for with GET, which waits for its end."""

    acts = True

    def get(self, request: Request) -> Any:
        """Have the operation carried out, and answer ``{HOST: chunk}`` when it has ended."""
        text = partial(body.once, request)
        targets = wire.targets_from_query(body.texts(request, "target") + body.texts(request, "targets"))
        data: dict[str, Any] = {name: text(name) for name in ("name", "graceful", "cmd")}
        data["state"] = wire.service_state(text("state"))
        wanted = Wanted(self.operation, targets, wire.arguments_from_wire(self.operation, data))
        hub, seconds = self.tree.hub, self._patience(request)
        leave = hub.take_place()
        try:
            jid = submit(request, self.tree, wanted, text("timeout"))
            with reading() as session:
                job = queries.job(session, jid)
            if not follow.wait_for_end(hub, job.id, seconds):
                return self._not_yet(request, jid, seconds)
        finally:
            leave()
        with reading() as session:
            job = queries.job(session, jid)
            pieces = queries.outputs(session, {job.id: (0, job.last_seq)})[job.id]
        return _chunks(job, pieces)

    def _patience(self, request: Request) -> float:
        longest = self.tree.settings.remote_wait
        value = body.once(request, "wait")
        try:
            seconds = longest if value is None else float(value)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            raise Invalid("must be a number of seconds, 0 or more", field="wait")
        return min(seconds, longest)

    def _not_yet(self, request: Request, jid: str, seconds: float) -> Response:
        url = f"{request.base_url().rpartition('/')[0]}/jobs/{jid}"
        message = f"it has not ended within {seconds:g} s and goes on; ask at {url}?outputs=1"
        answer = render.with_status({"jid": jid, "message": message}, 202)
        answer.headers["Location"] = url
        return answer


def _chunks(job: Any, pieces: Any) -> Any:
    """Give the last chunk of each host; of hosts that gave none, why."""
    if not pieces and job.error:
        raise Unavailable(job.error)
    found = {piece.host: render.raw(piece.chunk) for piece in pieces}
    lost = {"status": Status.FAILED, "message": job.error}
    return {host: found.get(host, lost) for host in job.hosts}


class TasksController(Resource):
    """Task plugins, and asking for one."""

    def __init__(self, tree: Tree) -> None:
        """Take what applies to this mount."""
        self.tree = tree
        self.mount = tree.mount

    def get(self, request: Request) -> Any:
        """List the tasks there are."""
        return wire.tasks_to_wire(self.tree.tasks)

    def post(self, request: Request) -> Any:
        """Have a task carried out, and answer the id of its job at once."""
        data = body.read_object(request, self.tree.settings.max_body)
        targets = wire.targets_from_wire(data)
        wanted = Wanted(Operation.TASK, targets, wire.task_from_wire(data, self.tree.tasks))
        return created(submit(request, self.tree, wanted, data.get("timeout")))
