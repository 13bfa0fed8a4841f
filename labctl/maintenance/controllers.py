"""``/v1/maintenance`` and ``/api/maintenance``."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any
from urllib.parse import urlencode

from labctl.db import reading, transaction
from labctl.errors import Forbidden, Invalid, Unauthenticated
from labctl.http import body, render
from labctl.http.resource import Mount, Request, Resource
from labctl.maintenance import config, editing, notices, plan, queries, service, wire
from labctl.paging import DEFAULT_COUNT
from labctl.settings import Settings
from labctl.vms import config as vms_config

#: The tree of rights.
TREE = "maintenance"
PLUGINS = wire.Plugins(config.workflow, config.action)
#: How many steps of a session are told, unless more are asked for.
STEPS = 200
_MOST_STEPS = 100_000
_MOST_PAGE = 1_000_000


class SessionsController(Resource):
    """All sessions."""

    def __init__(self, settings: Settings, mount: Mount) -> None:
        """Take what applies to this mount."""
        self.settings = settings
        self.mount = mount
        # What is a project's own business: its user needs no right to the tree.
        self.projects = Mount(None, mount.dialect)
        self.children = {
            "plan": PlanController(settings),
            "subscriptions": SubscriptionsController(settings, self.projects),
        }

    def item(self, segment: str) -> Resource | None:
        """One session."""
        return SessionController(self.settings, self.projects, segment)

    def get(self, request: Request) -> Any:
        """List the ids of sessions, the newest first."""
        most = self.settings.max_count
        count = body.integer(request, "count", min(DEFAULT_COUNT, most), least=1, most=most)
        page = body.integer(request, "page", 1, least=1, most=_MOST_PAGE)
        assert count is not None and page is not None
        with reading() as session:
            ids = queries.sessions(session, count, (page - 1) * count)
        query = urlencode({**request.query, "page": page + 1}, errors="surrogateescape")
        more = f"{request.own_url()}?{query}" if len(ids) == count else None
        return render.with_next(wire.sessions_to_wire(ids), more)

    def post(self, request: Request) -> Any:
        """Begin a session."""
        wanted = wire.wanted_from_wire(body.read_object(request, self.settings.max_body), PLUGINS)
        most = self.settings.maintenance_sessions
        with transaction(request.actor()) as session:
            sid = service.create(session, wanted, most=most, base_url=request.base_url())
        return {"session_id": sid}


def let_in(request: Request, project: str) -> None:
    """Refuse everybody but the project's user and those with the right to the tree."""
    if request.identity is None:
        raise Unauthenticated
    if request.identity.name != project and not request.identity.may(TREE):
        raise Forbidden(f"{request.identity.name} is not the user of this project, nor has the right {TREE!r}")


class PlanController(Resource):
    """What a session would do."""

    def __init__(self, settings: Settings) -> None:
        """Take the limits."""
        self.settings = settings

    @cached_property
    def can(self) -> Mapping[str, frozenset[str]]:
        """What each provider of VMs can do."""
        return vms_config.capabilities(vms_config.load(self.settings)[1])

    def post(self, request: Request) -> Any:
        """Tell what a session with this body would do, and what stands against it; nothing is changed."""
        wanted = wire.wanted_from_wire(body.read_object(request, self.settings.max_body), PLUGINS)
        if wanted.mistakes:
            raise Invalid("; ".join(wanted.mistakes))
        workflow = config.workflow(wanted.workflow)
        with reading() as session:
            hosts, _ = service.look_at(session, wanted)
            return plan.plan(session, wanted, hosts, workflow, self.settings.maintenance_replies, self.can)


class SessionController(Resource):
    """One session; what is below it is what a project sees of it."""

    def __init__(self, settings: Settings, below: Mount, sid: str) -> None:
        """Note its id; the session is looked for by the methods."""
        self.settings = settings
        self.below = below
        self.sid = sid

    def item(self, segment: str) -> Resource | None:
        """The session as a project sees it."""
        return ProjectController(self.settings, self.below, self.sid, segment)

    def get(self, request: Request) -> Any:
        """Give all that is known of the session."""
        steps = body.integer(request, "steps", STEPS, least=0, most=_MOST_STEPS)
        assert steps is not None
        with reading() as session:
            found = queries.one(session, self.sid, steps)
        return wire.session_to_wire(found, f"{request.server_url()}/api/remote/jobs")

    def put(self, request: Request) -> Any:
        """Change the session, and continue it if it has failed."""
        wanted = wire.edit_from_wire(body.read_object(request, self.settings.max_body))
        rules = editing.Rules(self.settings.maintenance_sessions, _asks_hosts)
        with transaction(request.actor()) as session:
            editing.edit(session, self.sid, wanted, rules)
        return {"maintenance": request.own_url(), "session_id": self.sid}

    def delete(self, request: Request) -> Any:
        """Delete the session; one that goes on ends as soon as its hosts can be given back to service."""
        with transaction(request.actor()) as session:
            service.remove(session, self.sid)
        return {}


def _asks_hosts(row: Any) -> bool:
    return wire.asks_hosts(config.workflow(row.workflow), row.hints, row.actions)


def _states(workflow: str) -> Mapping[str, Any]:
    return config.workflow(workflow).steps


class ProjectController(Resource):
    """One project in one session."""

    def __init__(self, settings: Settings, mount: Mount, sid: str, project: str) -> None:
        """Note which."""
        self.settings = settings
        self.mount = mount
        self.sid = sid
        self.project = project

    def get(self, request: Request) -> Any:
        """List what of the project's is affected, whether or not it is told."""
        let_in(request, self.project)
        with reading() as session:
            return {"instance_ids": queries.affected(session, self.sid, self.project)}

    def put(self, request: Request) -> Any:
        """Take in the project's answer, and give it back."""
        let_in(request, self.project)
        data = body.read_object(request, self.settings.max_body)
        answer = wire.answer_from_wire(data)
        with transaction(request.actor()) as session:
            service.reply(session, self.sid, self.project, answer, _states)
        return data


class SubscriptionsController(Resource):
    """Where projects are told, by their names."""

    def __init__(self, settings: Settings, below: Mount) -> None:
        """Take what applies to what is below."""
        self.settings = settings
        self.below = below

    def item(self, segment: str) -> Resource | None:
        """One project's."""
        return SubscriptionController(self.settings, self.below, segment)


class SubscriptionController(Resource):
    """Where one project is told."""

    def __init__(self, settings: Settings, mount: Mount, project: str) -> None:
        """Note which."""
        self.settings = settings
        self.mount = mount
        self.project = project

    def get(self, request: Request) -> Any:
        """Tell where, but not the secret."""
        let_in(request, self.project)
        with reading() as session:
            return wire.subscription_to_wire(notices.subscription(session, self.project))

    def put(self, request: Request) -> Any:
        """Have the project told there from now on."""
        let_in(request, self.project)
        url, secret = wire.subscription_from_wire(body.read_object(request, self.settings.max_body))
        with transaction(request.actor()) as session:
            notices.subscribe(session, self.project, url, secret)
        return {}

    def delete(self, request: Request) -> Any:
        """Have the project told nothing any more."""
        let_in(request, self.project)
        with transaction(request.actor()) as session:
            notices.unsubscribe(session, self.project)
        return {}
