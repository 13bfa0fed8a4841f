"""``/api/nodes``, with servers that are asked over the network."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl import app as application
from labctl import clock
from labctl.nodes import service
from labctl.settings import Settings
from labctl.tokens import service as tokens

from .conftest import CREDENTIAL
from .servers import Storage, running

NEXT = "/api/nodes/next/"
NONE = "There are no healthy storage nodes available."
Statements = Callable[[], Any]


def register(app: TestApp, *hosts: str) -> None:
    for host in hosts:
        assert app.post_json(f"/api/nodes/{host}/", {}).json == {}


def node(app: TestApp, host: str) -> dict[str, Any]:
    return dict(app.get(f"/api/nodes/{host}/").json)


def state(app: TestApp, host: str) -> tuple[bool, int]:
    return node(app, host)["healthy"], node(app, host)["down_count"]


def next_host(app: TestApp) -> str:
    url = app.get(NEXT).text
    assert url.startswith("https://")
    assert url.endswith("/")
    return url.removeprefix("https://").removesuffix("/")


def add(session: Session, *hosts: str) -> None:
    """Add healthy nodes without asking them."""
    for host in hosts:
        service.register(session, host, None, clock.now())


def hasty(settings: Settings, timeout: float, **changes: Any) -> TestApp:
    app = TestApp(application.make_app(replace(settings, health_check_timeout=timeout, **changes)))
    app.authorization = CREDENTIAL
    return app


def anonymous(app: TestApp) -> TestApp:
    return TestApp(app.app)


@pytest.fixture
def until_asked(storage: Storage) -> Callable[..., Any]:
    """Do something in another thread; inside the block a slow node has been asked and has not answered yet."""

    class Doing:
        def __init__(self, do: Callable[[], Any]) -> None:
            self.answers: list[Any] = []
            self.thread = threading.Thread(target=lambda: self.answers.append(do()))

        def __enter__(self) -> list[Any]:
            self.thread.start()
            assert storage.waited_for.wait(20)
            return self.answers

        def __exit__(self, *error: object) -> None:
            storage.gate.set()
            self.thread.join(20)
            assert error[0] is not None or self.answers, "the request did not succeed"

    return Doing


# Registering


def test_a_node_registers_and_is_listed_as_the_clients_know_it(
    app: TestApp, storage: Storage, stopped_clock: Any
) -> None:
    host = storage.host(1)
    answer = app.post_json(f"/api/nodes/{host}/", {})
    assert (answer.status_int, answer.content_type, answer.body) == (200, "application/json", b"{}")
    expected = {
        "host": host,
        "last_used": "1970-01-01 00:00:00",
        "last_check": "2026-01-02 03:04:05",
        "healthy": True,
        "down_count": 0,
    }
    assert app.get("/api/nodes/").json == {host: expected}
    assert app.get(f"/api/nodes/{host}/").json == expected
    assert list(node(app, host)) == list(expected)


def test_nodes_are_listed_by_host(app: TestApp, storage: Storage) -> None:
    assert app.get("/api/nodes/").json == {}
    hosts = storage.hosts(range(1, 5))
    register(app, *hosts[::-1])
    assert list(app.get("/api/nodes").json) == hosts


@pytest.mark.parametrize("behaviour", ["failing", "redirecting", "no HTTP", "without TLS", "hanging up"])
def test_a_node_that_registers_and_is_not_well_is_out(
    app: TestApp, storage: Storage, stopped_clock: Any, behaviour: str
) -> None:
    host = storage.host(1, behaviour)
    register(app, host)
    assert node(app, host) == {
        "host": host,
        "last_used": "1970-01-01 00:00:00",
        "last_check": "2026-01-02 03:04:05",
        "healthy": False,
        "down_count": 0,
    }
    assert app.get(NEXT, status=404).text == NONE


@pytest.mark.parametrize("behaviour", ["silent", "silent after TLS", "dripping"])
def test_a_node_that_registers_and_says_nothing_is_out_after_the_timeout(
    app: TestApp, settings: Settings, storage: Storage, behaviour: str
) -> None:
    host = storage.host(1, behaviour)
    began = time.monotonic()
    register(hasty(settings, 0.5), host)
    assert 0.5 <= time.monotonic() - began < 5
    assert state(app, host) == (False, 0)


def test_a_node_that_is_not_there_registers_and_is_out(app: TestApp, certificate: Path) -> None:
    with running(certificate) as gone:
        pass
    register(app, gone.host(1), "nosuch.invalid", "[::1]:1", "10-0-0-1", "xn--0")
    assert {each["healthy"] for each in app.get("/api/nodes/").json.values()} == {False}


def test_a_node_goes_out_and_comes_back_by_registering(app: TestApp, storage: Storage, stopped_clock: Any) -> None:
    host = storage.host(1)
    register(app, host)
    storage.host(1, "failing")
    stopped_clock.advance(seconds=1)
    register(app, host)
    assert (state(app, host), node(app, host)["last_check"]) == ((False, 0), "2026-01-02 03:04:06")
    storage.host(1)
    stopped_clock.advance(seconds=1)
    register(app, host)
    assert (state(app, host), node(app, host)["last_check"]) == ((True, 0), "2026-01-02 03:04:07")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", None),
        (b"{}", "application/json"),
        (b"[1, 2", "application/json"),
        (b"null", "text/plain"),
        (b"a=b&c=d", "application/x-www-form-urlencoded"),
        (b"--x\r\n", "multipart/form-data; boundary=y"),
        (b"\xff\xfe\0", "application/octet-stream"),
        (b"x" * 5_000_000, "application/json"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_body_of_who_registers_does_not_matter(
    app: TestApp, storage: Storage, body: bytes, content_type: str | None
) -> None:
    host = storage.host(1)
    assert app.post(f"/api/nodes/{host}", body, content_type=content_type).json == {}
    assert state(app, host) == (True, 0)


def test_a_host_is_one_node_however_it_is_written(app: TestApp, storage: Storage) -> None:
    register(app, f"LocalHost:{storage.port}", f"localhost:{storage.port}")
    assert list(app.get("/api/nodes/").json) == [f"localhost:{storage.port}"]
    assert node(app, f"LOCALHOST:{storage.port}")["healthy"] is True
    register(app, "%5B0:0:0::1%5D:1")
    assert node(app, "[::1]:1")["host"] == "[::1]:1"


@pytest.mark.parametrize(
    "segment",
    ["a%20b", "a%2Fb", "a%0d%0ab", "user@a", "%C3%BC", "a:0", "a:65536", "..a", "NEXT", "next:1", "::1", "1.2"],
)
def test_what_is_no_host_cannot_be_registered_and_is_not_found(app: TestApp, segment: str) -> None:
    # As gunicorn hands it over.
    raw = {"RAW_URI": f"/api/nodes/{segment}/"}
    answer = app.post(raw["RAW_URI"], status=400, extra_environ=raw)
    assert answer.content_type == "text/plain"
    assert answer.text.startswith("host: must be a host name")
    for ask in (app.get, app.delete):
        assert ask(raw["RAW_URI"], status=404, extra_environ=raw).text == "there is no such storage node"
    assert app.get("/api/nodes/").json == {}


def test_a_node_is_removed(app: TestApp, storage: Storage) -> None:
    first, second = storage.hosts(range(1, 3))
    register(app, first, second)
    assert app.delete(f"/api/nodes/{first}/").json == {}
    assert list(app.get("/api/nodes/").json) == [second]
    assert app.get(f"/api/nodes/{first}/", status=404).text == "there is no such storage node"
    assert app.delete(f"/api/nodes/{first}/", status=404).content_type == "text/plain"
    assert [next_host(app), next_host(app)] == [second, second]


def test_other_methods_and_paths_are_refused_in_plain_text(app: TestApp, storage: Storage) -> None:
    host = storage.host(1)
    register(app, host)
    for method, path, allowed in (
        ("PUT", f"/api/nodes/{host}/", "DELETE, GET, HEAD, OPTIONS, POST"),
        ("POST", NEXT, "GET, OPTIONS"),
        ("HEAD", NEXT, "GET, OPTIONS"),
        ("POST", "/api/nodes/", "GET, HEAD, OPTIONS"),
    ):
        answer = app.request(path, method=method, status=405)
        assert (answer.headers["Allow"], answer.content_type) == (allowed, "text/plain")
    assert app.get(f"/api/nodes/{host}/more/", status=404).content_type == "text/plain"
    assert app.options(NEXT, status=204).headers["Allow"] == "GET, OPTIONS"


# The next one


def test_the_next_node_is_a_url_in_plain_text_without_quotes(app: TestApp, storage: Storage) -> None:
    host = storage.host(1)
    register(app, host)
    for path in (NEXT, NEXT.rstrip("/")):
        answer = app.get(path)
        assert answer.body == f"https://{host}/".encode()
        assert answer.headers["Content-Type"] == "text/plain; charset=UTF-8"
        assert answer.headers["Cache-Control"] == "no-store"


def test_nodes_are_given_out_in_turn(app: TestApp, storage: Storage) -> None:
    hosts = storage.hosts(range(1, 4))
    register(app, *hosts[::-1])
    assert [next_host(app) for _ in range(6)] == hosts * 2
    used = [node(app, host)["last_used"] for host in hosts]
    assert used == sorted(used)
    assert used[0] > "2026"


def test_without_nodes_there_is_no_next_one(app: TestApp) -> None:
    answer = app.get(NEXT, status=404)
    assert (answer.text, answer.headers["Content-Type"]) == (NONE, "text/plain; charset=UTF-8")


def test_a_node_that_is_down_is_passed_over_and_out_at_the_third_time(app: TestApp, storage: Storage) -> None:
    first, second = storage.hosts(range(1, 3))
    register(app, first, second)
    checked = node(app, first)["last_check"]
    storage.host(1, "failing")
    asked = storage.times_asked(first)
    for count, healthy in ((1, True), (2, True), (3, False)):
        assert next_host(app) == second
        assert state(app, first) == (healthy, count)
    assert storage.times_asked(first) == asked + 3
    storage.host(1)
    assert [next_host(app) for _ in range(3)] == [second] * 3
    assert storage.times_asked(first) == asked + 3
    assert node(app, first)["last_used"] == "1970-01-01 00:00:00"
    assert node(app, first)["last_check"] == checked
    register(app, first)
    assert next_host(app) == first


def test_a_node_that_answers_again_starts_anew(app: TestApp, storage: Storage) -> None:
    host = storage.host(1)
    register(app, host)
    storage.host(1, "failing")
    for _ in range(2):
        assert app.get(NEXT, status=404).text == NONE
    assert state(app, host) == (True, 2)
    storage.host(1)
    assert next_host(app) == host
    assert state(app, host) == (True, 0)


def test_when_all_are_down_all_go_out_and_there_is_none(app: TestApp, storage: Storage) -> None:
    hosts = storage.hosts(range(1, 11))
    register(app, *hosts)
    storage.hosts(range(1, 11), "failing")
    for count in (1, 2, 3):
        assert app.get(NEXT, status=404).text == NONE
        assert {state(app, host) for host in hosts} == {(count < 3, count)}


def test_how_often_a_node_may_fail_is_a_setting(app: TestApp, settings: Settings, storage: Storage) -> None:
    host = storage.host(1)
    register(app, host)
    storage.host(1, "failing")
    hasty(settings, 10, health_check_retries=1).get(NEXT, status=404)
    assert state(app, host) == (False, 1)


def test_verification_is_a_setting(app: TestApp, settings: Settings, strangers_certificate: Path) -> None:
    with running(strangers_certificate) as stranger:
        host = stranger.host(1)
        register(app, host)
        assert state(app, host) == (False, 0)
        lax = hasty(settings, 10, health_check_verify=False)
        register(lax, host)
        assert state(app, host) == (True, 0)
        assert next_host(lax) == host
        assert app.get(NEXT, status=404).text == NONE
        assert state(app, host) == (True, 1)


def test_forty_silent_nodes_cost_less_than_one_timeout(
    app: TestApp, session: Session, settings: Settings, storage: Storage
) -> None:
    silent, healthy = storage.hosts(range(10, 50), "silent"), storage.host(99)
    add(session, *silent, healthy)
    began = time.monotonic()
    assert next_host(hasty(settings, 4)) == healthy
    assert time.monotonic() - began < 4
    counts = {host: state(app, host) for host in silent}
    assert counts[silent[0]] == (True, 1)
    # Who had no chance to answer has not failed.
    assert counts[silent[-1]] == (True, 0)


def test_with_silent_nodes_only_there_is_none_after_one_timeout(
    app: TestApp, session: Session, settings: Settings, storage: Storage
) -> None:
    silent = storage.hosts(range(10, 17), "silent")
    add(session, *silent)
    hurried = hasty(settings, 1)
    for count in (1, 2, 3):
        began = time.monotonic()
        assert hurried.get(NEXT, status=404).text == NONE
        assert 1 <= time.monotonic() - began < 5
        assert {state(app, host) for host in silent} == {(count < 3, count)}
    began = time.monotonic()
    assert hurried.get(NEXT, status=404).text == NONE
    assert time.monotonic() - began < 1


def test_a_node_that_is_removed_while_it_is_asked_is_not_given_out(
    committed_app: TestApp, storage: Storage, until_asked: Callable[..., Any]
) -> None:
    committed_app.authorization = CREDENTIAL
    slow = storage.host(1)
    register(committed_app, slow)
    storage.host(1, "slow")
    with until_asked(lambda: committed_app.get(NEXT, status=503)) as answers:
        committed_app.delete(f"/api/nodes/{slow}/")
    assert "removed" in answers[0].text
    assert answers[0].headers["Retry-After"] == "1"
    assert committed_app.get("/api/nodes/").json == {}


# Who may


def test_everybody_may_look_and_only_who_has_a_credential_may_change(app: TestApp, storage: Storage) -> None:
    host = storage.host(1)
    register(app, host)
    asked = storage.times_asked(host)
    stranger = anonymous(app)
    assert list(stranger.get("/api/nodes/").json) == [host]
    assert stranger.get(f"/api/nodes/{host}/").json["host"] == host
    assert stranger.head("/api/nodes/").status_int == 200
    for method, path in (
        ("POST", f"/api/nodes/{host}/"),
        ("POST", "/api/nodes/a%20b/"),
        ("DELETE", f"/api/nodes/{host}/"),
        ("GET", NEXT),
    ):
        answer = stranger.request(path, method=method, status=401)
        assert answer.headers["WWW-Authenticate"].startswith("Basic")
        assert answer.content_type == "text/plain"
    stranger.authorization = ("Basic", ("uploader", "wrong"))
    assert stranger.get(NEXT, status=401).headers["WWW-Authenticate"].startswith("Basic")
    assert storage.times_asked(host) == asked
    assert node(app, host)["last_used"] == "1970-01-01 00:00:00"


def test_a_user_needs_the_right_to_nodes(app: TestApp, session: Session, storage: Storage) -> None:
    host = storage.host(1)
    register(app, host)
    tokens.add_user(session, "builder", password="password", rights=["nodes"])
    tokens.add_user(session, "reader", password="password", rights=["repos"])
    secret = tokens.create_token(session, "builder")
    someone = anonymous(app)
    someone.authorization = ("Basic", ("reader", "password"))
    for method, path in (("POST", f"/api/nodes/{host}/"), ("DELETE", f"/api/nodes/{host}/"), ("GET", NEXT)):
        answer = someone.request(path, method=method, status=403)
        assert answer.text == "reader does not have the right 'nodes'"
    for credential in (("builder", "password"), ("anybody", secret)):
        someone.authorization = ("Basic", credential)
        assert someone.post(f"/api/nodes/{host}/").json == {}
        assert next_host(someone) == host
    assert anonymous(app).get(NEXT, headers={"X-AUTH-TOKEN": secret}).text == f"https://{host}/"


# What it costs


def beside_authentication(sent: list[str]) -> list[str]:
    """Leave out the look for wrong passwords."""
    return [each for each in sent if "login_failures" not in each]


def test_how_many_statements_a_node_costs(app: TestApp, storage: Storage, statements: Statements) -> None:
    hosts = storage.hosts(range(1, 4))
    for expected, ask in (
        (3, lambda: register(app, hosts[0])),  # look for it, add it, record that
        (1, lambda: register(app, hosts[0])),
        (1, lambda: app.get("/api/nodes/")),
        (1, lambda: node(app, hosts[0])),
        (3, lambda: next_host(app)),  # wait for others, claim it, give it out
        (2, lambda: app.delete(f"/api/nodes/{hosts[0]}/")),
        (2, lambda: app.get(NEXT, status=404)),
    ):
        with statements() as sent:
            ask()
        assert len(beside_authentication(sent)) == expected, sent


def test_each_further_round_of_claims_costs_two_statements(
    app: TestApp, session: Session, storage: Storage, statements: Statements
) -> None:
    add(session, *storage.hosts(range(10, 13), "failing"), *storage.hosts(range(20, 30)))
    with statements() as sent:
        next_host(app)
    assert len(beside_authentication(sent)) == 2 * 3 + 1, sent


@pytest.mark.parametrize("what", ["registering", "the next one"])
def test_no_transaction_is_open_and_no_lock_held_while_a_node_is_asked(
    committed: Engine, committed_app: TestApp, storage: Storage, until_asked: Callable[..., Any], what: str
) -> None:
    committed_app.authorization = CREDENTIAL
    host = storage.host(1)
    register(committed_app, host)
    storage.host(1, "slow")
    ask = {"registering": lambda: register(committed_app, host), "the next one": lambda: next_host(committed_app)}[what]
    mine = "datname = current_database() AND pid <> pg_backend_pid()"
    with until_asked(lambda: ask() or "done"), committed.connect() as connection:
        states = connection.execute(
            text(f"SELECT DISTINCT state FROM pg_stat_activity WHERE {mine} AND backend_type = 'client backend'")
        )
        assert set(states.scalars()) <= {"idle"}
        clients = "(SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend')"
        query = f"SELECT count(*) FROM pg_locks WHERE pid <> pg_backend_pid() AND pid IN {clients}"
        locks = connection.execute(text(query))
        assert locks.scalar_one() == 0
        assert connection.execute(text("UPDATE storage_nodes SET down_count = down_count")).rowcount == 1
        connection.rollback()
    assert state(committed_app, host) == (True, 0)


def test_what_is_going_on_when_a_request_is_killed_ends_by_itself(
    app: TestApp, session: Session, storage: Storage, stopped_clock: Any
) -> None:
    hosts = storage.hosts(range(1, 3))
    add(session, *hosts)
    # As a killed request leaves it: claimed, and nothing else.
    service.claim(session, service.Turn(12), 1)
    stopped_clock.advance(seconds=11)
    assert [next_host(app), next_host(app)] == [hosts[1], hosts[1]]
    stopped_clock.advance(seconds=1)
    assert next_host(app) == hosts[0]
