"""``labctl demo`` against the application: what it leaves there, and whose credential it shows."""

import random
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine
from webtest import TestApp

from labctl import app as application
from labctl import clock, db
from labctl.cli.demo import demo
from labctl.cli.hosts import Operated, operate
from labctl.cli.sessions import MARK, Busy, Kept, maintain
from labctl.cli.vms import Empty, take_vms
from labctl.remote.models import RemoteHost, RemoteInventory
from labctl.settings import Settings
from labctl.tokens import service as tokens
from labctl.tokens.secrets import new_secret
from tests.vms.factories import make_vm

PAIR = {"api_user": "farm", "api_key": "of the farm"}
LEFT_OUT = "builds and repos are left out"


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def port(committed: Engine, settings: Settings) -> Iterator[int]:
    """Serve the application, with a pair for posting builds; gives the port."""
    app = application.make_app(Settings(database_url=settings.database_url, **PAIR))
    with make_server("127.0.0.1", 0, app, handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def home(committed: Engine, tmp_path: Path) -> Path:
    """A home directory as labctl up leaves it, with the first admin's token."""
    secret = new_secret()
    with db.transaction() as session:
        tokens.create_first_admin(session, secret)
    (tmp_path / "admin.token").write_text(f"{secret}\n")
    return tmp_path


@pytest.fixture
def run(port: int) -> Callable[..., Result]:
    def run(*arguments: str, home: Path | str = "/nowhere", **environ: str) -> Result:
        given = {"LABCTL_PORT": str(port), "LABCTL_HOME": str(home), **environ}
        done = CliRunner(env=given).invoke(demo, ["--runs", "2", "--until", "2026-01-08", *arguments])
        assert done.exit_code == 0, done.output
        return done

    return run


def listed(app: TestApp, kind: str) -> list[dict[str, Any]]:
    """Give all builds or repos, with what statuses they had."""
    found = []
    for ref in app.get(f"/api/{kind}/ceph").json:
        for sha1 in app.get(f"/api/{kind}/ceph/{ref}").json:
            url = f"/api/{kind}/ceph/{ref}/{sha1}" if kind == "builds" else f"/api/search?ref={ref}&sha1={sha1}"
            found += app.get(url, {"history": "1"}).json
    return found


def lives(things: list[dict[str, Any]]) -> set[tuple[str, ...]]:
    return {tuple(change["status"] for change in thing["history"]) for thing in things}


def test_it_posts_builds_and_repos_as_a_build_farm_would(
    committed_app: TestApp, home: Path, run: Callable[..., Result]
) -> None:
    said = run(home=home).output
    builds, repos = listed(committed_app, "builds"), listed(committed_app, "repos")

    assert f"{len(builds)} builds, {len(repos)} repos" in said
    assert lives(builds) <= {
        ("queued",),
        ("queued", "started"),
        ("queued", "started", "completed"),
        ("queued", "started", "failed"),
    }
    whole = ("requested", "queued", "building")
    assert lives(repos) <= {whole[:1], whole[:2], whole, (*whole, "ready"), (*whole, "failed")}
    assert {"completed", "failed"} <= {build["status"] for build in builds}
    assert {"ready", "building"} <= {repo["status"] for repo in repos}
    assert {"default", "crimson-debug"} == {repo["flavor"] for repo in repos}
    assert {"x86_64", "arm64"} <= {arch for repo in repos for arch in repo["archs"]}


def test_what_the_runs_test_was_built(committed_app: TestApp, home: Path, run: Callable[..., Result]) -> None:
    run(home=home)

    for found in committed_app.get("/runs/").json:
        assert committed_app.get(f"/api/builds/ceph/{found['branch']}/{found['sha1']}").json


def test_each_branch_that_is_always_built_has_a_newest_commit_to_install_from(
    committed_app: TestApp, home: Path, run: Callable[..., Result]
) -> None:
    run(home=home)

    versions = [
        committed_app.get("/api/search", {"ref": ref, "sha1": "latest", "distros": "ubuntu/22.04/x86_64"}).json[0]
        for ref in ("main", "squid", "reef")
    ]
    assert [repo["extra"]["version"].partition("-")[0] for repo in versions] == ["20.3.0", "19.2.3", "18.2.7"]


def test_a_second_time_it_adds_nothing(committed_app: TestApp, home: Path, run: Callable[..., Result]) -> None:
    first = run(home=home).output.partition(";")[0]
    builds, repos = listed(committed_app, "builds"), listed(committed_app, "repos")

    assert run(home=home).output.partition(";")[0] == first
    assert len(listed(committed_app, "builds")) == len(builds)
    assert len(listed(committed_app, "repos")) == len(repos)


def test_without_a_credential_one_line_says_that_builds_and_repos_are_left_out(
    committed_app: TestApp, run: Callable[..., Result]
) -> None:
    said = run().output.splitlines()

    assert len(said) == 3
    assert said[0].startswith(LEFT_OUT) and "LABCTL_TOKEN" in said[0]
    assert said[1].startswith("operations on hosts are left out") and "LABCTL_TOKEN" in said[1]
    assert len(committed_app.get("/runs/").json) == 2
    assert committed_app.get("/api/repos/").json == {}


def test_the_pair_of_the_settings_is_as_good_as_a_token(committed_app: TestApp, run: Callable[..., Result]) -> None:
    environ = {f"LABCTL_{name.upper()}": value for name, value in PAIR.items()}

    assert LEFT_OUT not in run(**environ).output
    assert "ceph" in committed_app.get("/api/repos/").json


def test_a_labctl_that_is_named_by_its_url_does_not_see_the_token_of_this_one(
    committed_app: TestApp, home: Path, port: int, run: Callable[..., Result]
) -> None:
    token = (home / "admin.token").read_text().strip()

    assert LEFT_OUT in run("--url", f"http://127.0.0.1:{port}", home=home).output
    assert LEFT_OUT not in run("--url", f"http://127.0.0.1:{port}", LABCTL_TOKEN=token).output
    assert "ceph" in committed_app.get("/api/repos/").json


@pytest.fixture
def vms(committed: Engine) -> None:
    """Ready VMs in the two pools that labctl up has."""
    with db.transaction() as session:
        for pool in ("debian-12-x86_64", "debian-12-x86_64", "debian-12-x86_64", "centos-9-x86_64"):
            make_vm(session, pool=pool, domain="")


def tags(app: TestApp) -> list[int]:
    """Tell how often each tag was set."""
    return [found["total"] for found in app.get("/api/summary/tag").json["tag"].values()]


@pytest.mark.usefixtures("vms")
def test_users_take_vms_with_tags_and_give_some_back(
    committed_app: TestApp, home: Path, run: Callable[..., Result]
) -> None:
    said = run(home=home).output
    queue = committed_app.get("/api/status?view=queue").json["queue"]

    assert f"; 3 VMs taken, {queue['completed']} given back; " in said
    assert queue["running"] + queue["completed"] == 3
    assert queue["ready"] == 1
    assert tags(committed_app) == [3, 3]


@pytest.mark.usefixtures("vms")
def test_no_more_vms_are_taken_where_somebody_has_some(
    committed_app: TestApp, home: Path, run: Callable[..., Result]
) -> None:
    run(home=home)

    assert "; 0 VMs taken, 0 given back; " in run(home=home).output


def test_only_vms_that_are_not_real_are_taken() -> None:
    sent = []

    def send(method: str, path: str, body: Any = None) -> Any:
        sent.append((method, path))
        pool = {"ready": 5, "running": 0}
        return {"pools": {"real": pool}, "status": {"ok": True}}

    assert take_vms(send, random.Random(1), ["ana"]) == (0, 0)
    assert sent == [("GET", "/api/status/?view=pools")]


def test_whoever_finds_a_pool_empty_takes_what_the_others_have() -> None:
    def send(method: str, path: str, body: Any = None) -> Any:
        if method == "GET":
            pool = {"ready": 1, "running": 0}
            return {"pools": {"a": pool, "b": pool}, "status": {"fake": ["a", "b"]}}
        if body == {"a": 1}:
            raise Empty
        return {"b": {"hostname": "vm"}}

    assert take_vms(send, random.Random(1), ["ana"]) == (1, 0)


@pytest.fixture
def inventory_of_the_example(committed: Engine) -> None:
    """The hosts that labctl up begins with, as a worker has found them."""
    with db.transaction() as session:
        names = ("lab01", "lab02", "localhost")
        session.add_all([RemoteHost(name=name, groups=["example"]) for name in names])
        session.add(RemoteInventory(id=1, read=clock.now()))


class Hosts:
    """A labctl that knows hosts, as far as operations need it: each job runs for a while and ends in its state."""

    def __init__(self, hosts: list[str]) -> None:
        self.hosts = hosts
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.asked: list[str] = []

    def send(self, method: str, path: str, body: Any = None) -> Any:
        if method == "POST":
            self.sent.append((path, body))
            return {"jid": f"{len(self.sent)}"}
        if path == "/target?pattern=example":
            return self.hosts
        self.asked.append(path)
        jid = path.removeprefix("/jobs/")
        failed = "/no/such" in self.sent[int(jid) - 1][1].get("cmd", "")
        return {"state": 1 if self.asked.count(path) < 3 else 2 if failed else 0}


def test_operations_are_run_on_the_hosts_of_the_example_and_waited_for() -> None:
    labctl = Hosts(["localhost", "lab01"])

    assert operate(labctl.send, lambda seconds: None) == Operated(5, 2, 1)
    assert [path for path, _ in labctl.sent] == ["/ping", "/facter", "/execute", "/execute", "/deploy"]
    assert all(set(body["targets"]) <= {"localhost", "lab01"} for _, body in labctl.sent)


def test_hosts_that_are_not_of_the_example_are_left_alone() -> None:
    labctl = Hosts([])

    assert operate(labctl.send) == Operated()
    assert labctl.sent == []


def test_without_a_worker_that_knows_the_hosts_one_line_says_so(
    committed_app: TestApp, home: Path, run: Callable[..., Result]
) -> None:
    assert "operations on hosts are left out: no worker has read the inventory" in run(home=home).output


class Sessions:
    """A labctl that holds sessions, as far as the demo needs it: each goes on for a while and ends as it was told."""

    def __init__(self, *hosts: str, used: tuple[str, ...] = (), held: dict[str, str] | None = None) -> None:
        self.hosts = hosts
        self.used = used
        self.held = held or {}
        self.sessions: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.deleting: list[str] = []
        self.refused = ""

    def send(self, method: str, path: str, body: Any = None) -> Any:
        if path == "/target?pattern=example":
            return list(self.hosts)
        if path == "/v1/maintenance?count=100":
            return {"session_id": list(self.sessions)}
        if path == "/v1/maintenance/plan":
            return self.plan(body)
        if method == "POST":
            if self.refused:
                raise Busy(self.refused)
            sid = f"{len(self.sessions) + 1}"
            self.sessions[sid] = body
            return {"session_id": sid}
        sid = path.removeprefix("/v1/maintenance/").removesuffix("?steps=0")
        if method == "DELETE":
            self.deleting.append(sid)
            return {}
        self.asked.append(sid)
        session = self.sessions[sid]
        soon = f"{datetime.now(UTC) + timedelta(hours=1):%Y-%m-%d %H:%M:%S}"
        waits = session["maintenance_at"] > soon or self.asked.count(sid) < 3
        fails = any(action.get("metadata", {}).get("fail") for action in session.get("actions", ()))
        ended = "MAINTENANCE_FAILED" if fails else "MAINTENANCE_DONE"
        return {"state": "MAINTENANCE" if waits else ended, "metadata": session["metadata"]}

    def plan(self, body: dict[str, Any]) -> dict[str, Any]:
        hosts = [
            {
                "host": name,
                "kinds": ["inventory"] if name == "localhost" else ["hypervisor", "inventory"],
                "instances": [{"instance_id": "vm"}] if name in self.used else [],
            }
            for name in body["hosts"]
        ]
        conflicts = [{"host": name, "reason": "held", "session_id": sid} for name, sid in self.held.items()]
        return {"hosts": hosts, "conflicts": conflicts}


def rest(seconds: float) -> None:
    pass


def test_a_session_is_done_one_has_failed_and_one_waits_on_hosts_of_the_example() -> None:
    labctl = Sessions("lab01", "lab02", "localhost", used=("lab01",))

    kept = maintain(labctl.send, rest)

    assert kept.states == ["MAINTENANCE_DONE", "MAINTENANCE_FAILED", "MAINTENANCE"]
    assert str(kept) == "1 done, 1 failed, 1 waiting"
    assert [each["hosts"] for each in labctl.sessions.values()] == [["localhost"], ["localhost"], ["lab01", "lab02"]]
    assert all(each["metadata"]["no_answer"] == "wait" for each in labctl.sessions.values())


def test_sessions_of_an_earlier_demo_are_deleted_and_those_of_others_are_not() -> None:
    labctl = Sessions("lab01", "localhost", held={"lab01": "mine"})
    ended = {"maintenance_at": "2020", "hosts": []}
    labctl.sessions = {"mine": {**ended, "metadata": MARK}, "theirs": {**ended, "metadata": {"about": "a new kernel"}}}

    def pause(seconds: float) -> None:
        # What is deleted has its hosts for another moment.
        labctl.held = {}

    assert len(maintain(labctl.send, pause).states) == 3
    assert labctl.deleting == ["mine"]


@pytest.mark.parametrize(
    "labctl",
    [
        Sessions("localhost"),
        Sessions("lab01", "lab02", used=("lab01", "lab02")),
        Sessions("lab01", "localhost", held={"localhost": "theirs"}),
    ],
)
def test_without_a_free_host_and_another_one_there_are_no_sessions(labctl: Sessions) -> None:
    kept = maintain(labctl.send, rest)

    assert kept == Kept(reason="they take a host of the example that nobody uses, and another one")
    assert labctl.sessions == {}


def test_where_too_many_sessions_go_on_there_are_none() -> None:
    labctl = Sessions("lab01", "localhost")
    labctl.refused = "Too many sessions"

    assert maintain(labctl.send, rest) == Kept(reason="Too many sessions")


@pytest.mark.usefixtures("inventory_of_the_example")
def test_a_credential_without_the_right_to_maintenance_has_the_sessions_left_out(
    committed: Engine, port: int, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody is there to carry anything out.
    monkeypatch.setattr("labctl.cli.hosts.PATIENCE", 0)
    with db.transaction() as session:
        tokens.add_user(session, "ana", rights=["repos", "remote"])
        token = tokens.create_token(session, "ana")

    said = run(LABCTL_TOKEN=token).output

    assert re.search(r"^maintenance sessions are left out: give a token with the right to maintenance", said, re.M)
    assert "maintenance sessions: 0 done, 0 failed, 0 waiting; " in said
