"""GET changes nothing: every GET of the tree is answered inside a transaction in which PostgreSQL refuses to write."""

from collections.abc import Iterator

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl import app as application
from labctl import clock
from labctl.db import transaction
from labctl.maintenance.models import MaintenanceSession, MaintenanceSubscription
from labctl.remote import running
from labctl.remote.running import Piece
from labctl.remote.states import HostState, JobState
from labctl.runs import queries
from labctl.settings import ANONYMOUS, Settings
from labctl.tokens import service as tokens
from labctl.tokens.models import Token, User
from labctl.tokens.secrets import digest
from labctl.vms.models import VMRequest
from labctl.vms.states import VMState
from tests.remote.factories import make_job
from tests.remote.web import add_hosts
from tests.vms.factories import make_vm

from .routes import Route, routes

RUN = "alice-2026-01-02_03:04:05-rados-main-distro-default-smithi"
THINGS = {"{run}": RUN, "{job_id}": "1500", "{machine}": "smithi001", "{day}": "2026-01-02", "{host}": "127.0.0.1:1"}
#: A repo, in words that no other thing here has.
REPO = {"project": "zlib", "ref": "jewel", "sha1": "45107e21", "distro": "ubuntu", "version": "jammy", "arch": "x86_64"}
THINGS |= {f"{{{name}}}": thing for name, thing in REPO.items()} | {"{flavor}": "default"}
TOKEN = "gets32characterslikeanyothertoken"[:32]
#: What there is of VMs: a token is of no use to list tokens, a password is.
VMS = {"{vm}": "vm001", "{request}": "request-1", "{token}": TOKEN, "{tag}": "user"}
THINGS |= VMS
#: A job on hosts, which has ended: following it ends as well.
JID = "0e9d6cf8-6f0e-4d2c-8a3c-4b9f4c8c1f5e"
THINGS["{jid}"] = JID
#: A maintenance session.
SESSION = "695030ee-1c4d-11e8-a9b0-0242ac110002"
THINGS["{session}"] = SESSION
PASSWORD = {"Authorization": "Basic cmVhZGVyOnNlY3JldA=="}
#: What a column is asked for, and what it holds here.
COLUMNS = {
    "branch": "main",
    "suite": "rados",
    "status": "running",
    "machine_type": "smithi",
    "user": "alice",
    "sha1": "abc",
    "flavors": "default",
}
#: What a GET cannot do without.
QUERIES = {"/queue/pop_queue": "queue=smithi", "/api/queue/pop_queue": "queue=smithi"}

#: GETs of the old protocols that must act, by their paths, with the reason. They are not walked.
ACTING: dict[str, str] = {
    "/api/nodes/next": "giving a storage node out ends its turn, and build jobs ask for it with GET",
    **{
        f"{mount}/{operation}": "clients that wait for the end of an operation ask for it with GET"
        for mount in ("", "/api/remote")
        for operation in ("ping", "facter", "service", "execute")
    },
}


def gets(settings: Settings) -> Iterator[tuple[Route, str]]:
    """Give every GET with a URL for it, several where a path goes through a column."""
    for route in routes(settings):
        if "GET" not in route.methods or route.path in ACTING:
            continue
        path = route.path
        for placeholder, thing in THINGS.items():
            path = path.replace(placeholder, thing)
        for column, value in COLUMNS.items() if "{column}" in path else [("", "")]:
            url = path.replace("{column}", column).replace("{value}", value)
            yield route, f"{url}?{QUERIES.get(route.path, '')}".rstrip("?")


URLS = sorted({url for _, url in gets(Settings())})
#: The newest commit that is ready, in the place of a commit; searches.
URLS += [url.replace(REPO["sha1"], "latest") for url in URLS if url.startswith("/api/repos/") and REPO["sha1"] in url]
URLS += [f"/jobs/{JID}?outputs=1&follow=1", "/jobs?detail=1&state=0&host=alpha&operate=ping", "/target?pattern=web"]
URLS += ["/api/search?history=1", "/api/search?sha1=latest", "/api/search?sha1=latest&distros=ubuntu/jammy&wait=1"]


@pytest.fixture
def app(session: Session) -> TestApp:
    """The application with a run, jobs, a machine and a queue, which from now on refuses every write."""
    app = TestApp(application.make_app(Settings(anonymous=dict.fromkeys(ANONYMOUS, "write"))))
    app.post_json("/nodes/", {"name": "smithi001", "machine_type": "smithi", "up": True})
    app.post_json("/queue/", {"queue": "smithi"})
    # Nobody listens there, so it is known and out.
    app.post_json("/api/nodes/127.0.0.1:1/", {})
    job = {
        "queue": "smithi",
        "priority": 100,
        "targets": {"ubuntu@smithi001": "key"},
        "sha1": "abc",
        "flavor": "default",
    }
    app.post_json(f"/runs/{RUN}/jobs/", {**job, "job_id": "1500", "status": "running"})
    app.post_json(f"/runs/{RUN}/jobs/", {**job, "job_id": "1501", "status": "queued"})
    repo = {"ref": REPO["ref"], "sha1": REPO["sha1"], "distro": "ubuntu", "distro_version": "jammy", "status": "ready"}
    repo |= {"url": "https://c.example/r/", "chacra_url": "https://c.example/repos/", "archs": ["x86_64"]}
    app.post_json(f"/api/repos/{REPO['project']}", repo)
    app.post_json(f"/api/builds/{REPO['project']}", repo)
    add_vms(session)
    add_maintenance(session)
    add_job(session)
    session.execute(text("SET TRANSACTION READ ONLY"))
    return app


def add_vms(session: Session) -> None:
    """Add a VM that somebody has taken with a token, and a request for another one."""
    now = clock.now()
    tokens.add_user(session, "reader", password="secret", rights=["maintenance"])
    owner = session.scalars(select(User).where(User.name == "reader")).one()
    token = Token(public_id="0" * 16, secret_hash=digest(TOKEN), user_id=owner.id, created=now, last_used=now)
    session.add(token)
    session.flush()
    make_vm(session, name="vm001", state=VMState.RUNNING, token_id=token.id, owner="reader")
    wanted = {"debian": [{"pool": "debian-12-x86_64", "count": 1}]}
    session.add(VMRequest(id="request-1", wanted=wanted, created=now, deadline=now))
    session.flush()


def add_maintenance(session: Session) -> None:
    """Add a session, and where a project is told."""
    now = clock.now()
    times = {"entered": now, "maintenance_at": now, "created": now}
    session.add(MaintenanceSession(id=SESSION, workflow="default", state="MAINTENANCE", created_by="reader", **times))
    where = {"url": "https://zlib.example/", "secret": "secret", "changed": now, "changed_by": "reader"}
    session.add(MaintenanceSubscription(project=REPO["project"], **where))
    session.flush()


def add_job(session: Session) -> None:
    """Add a host, and a job on it that has ended."""
    add_hosts(session, {"alpha": ["web"]})
    job = make_job(session, hosts=["alpha"], jid=JID)
    with transaction() as own:
        taken = running.claim(own, "worker", 1, 30)[0]
        assert taken.id == job.id
        running.finish(own, taken, [Piece("alpha", '{"status":1}', HostState.OK)], state=JobState.DONE)


def headers(url: str) -> dict[str, str]:
    """Give what a URL asks for."""
    return PASSWORD if "/token" in url or "/maintenance" in url else {}


def test_there_is_a_value_for_every_column() -> None:
    assert {name.replace("flavors", "flavor") for name in COLUMNS} == set(queries.FILTERS)


def test_the_walk_finds_what_there_is() -> None:
    assert {"/", "/runs", f"/runs/{RUN}/jobs/1500", "/nodes/smithi001/jobs", "/runs/branch/main", "/api/events"} <= {
        *URLS
    }
    leaf = "/api/repos/zlib/jewel/latest/ubuntu/jammy"
    assert {f"/jobs/{JID}", f"/api/remote/jobs/{JID}/events", "/target", "/api/remote/tasks"} <= {*URLS}
    assert {"/api/builds/zlib/jewel/45107e21", f"{leaf}/x86_64", f"{leaf}/flavors/default/repo"} <= {*URLS}


def test_writes_are_refused_here(app: TestApp) -> None:
    assert app.post_json("/queue/", {"queue": "other"}, expect_errors=True).status_int == 500


@pytest.mark.parametrize("url", URLS)
def test_a_get_writes_nothing(app: TestApp, url: str) -> None:
    answer = app.get(url, headers=headers(url))

    leads_away = url.startswith("/api/repos/") and url.endswith(("/repo", "/x86_64"))
    assert answer.status_int in ({302} if leads_away else {200, 202, 204})
    assert app.head(url, headers=headers(url)).status_int == answer.status_int


KNOWN = (RUN, "zlib", "smithi001", "vm001", "request-1", TOKEN, SESSION, JID)


@pytest.mark.parametrize("url", [url for url in URLS if any(thing in url for thing in KNOWN)])
def test_a_get_of_what_is_missing_writes_nothing(app: TestApp, url: str) -> None:
    missing = url
    for thing in KNOWN:
        missing = missing.replace(thing, "missing")

    assert app.get(missing, headers=headers(url), expect_errors=True).status_int == 404


@pytest.mark.parametrize("url", [url for url in URLS if "?" not in url])
def test_a_get_with_a_query_writes_nothing(app: TestApp, url: str) -> None:
    query = "count=1&page=2&fields=name&status=running&since=2026-01-01&machine_type=smithi&up=1&name=x&after=1"

    assert app.get(f"{url}?{query}", headers=headers(url), expect_errors=True).status_int < 500
