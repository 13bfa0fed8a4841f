"""Who may do what in which tree, and how a request says who it is."""

import base64
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl.app import make_app
from labctl.events.models import Event
from labctl.settings import Settings
from labctl.tokens import service
from labctl.tokens.models import Token

PASSWORD = "correct horse: battery ä"


def basic(user: str, secret: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def hashed() -> dict[str, str]:
    """A password's hash, made once: it is slow on purpose."""
    from labctl.tokens.secrets import hash_password

    return {PASSWORD: hash_password(PASSWORD)}


@pytest.fixture
def users(session: Session, hashed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An admin, a user with the right to runs, one with the right to read events, one with none; their tokens."""
    monkeypatch.setattr(service, "hash_password", hashed.__getitem__)
    service.add_user(session, "root", password=PASSWORD, admin=True)
    for name, rights in (("runner", ["runs"]), ("auditor", ["events"]), ("nobody", [])):
        service.add_user(session, name, password=PASSWORD, rights=rights)
    tokens = {name: service.create_token(session, name) for name in ("root", "runner", "auditor", "nobody")}
    tokens["root, for machines"] = service.create_token(session, "root", scopes=["machines"])
    tokens["runner, for events"] = service.create_token(session, "runner", scopes=["events"])
    session.commit()
    return tokens


@pytest.fixture
def app_where(session: Session, settings: Settings) -> Callable[..., TestApp]:
    """The application where somebody without a credential may do this much."""
    return lambda **anonymous: TestApp(make_app(replace(settings, anonymous={**settings.anonymous, **anonymous})))


#: A request that reads and one that writes, for each tree.
READ = {"runs": "/runs/", "machines": "/nodes/", "queue": "/queue/", "events": "/api/events"}
WRITE = {"runs": "/api/runs/", "machines": "/api/machines/", "queue": "/queue/"}
RIGHTS = {
    None: set(),
    "root": {"runs", "machines", "queue", "events"},
    "runner": {"runs"},
    "auditor": {"events"},
    "nobody": set(),
    "root, for machines": {"machines"},
    "runner, for events": set(),
}


@pytest.mark.parametrize("access", ["write", "read", "none"])
def test_reading_and_writing_in_each_tree_is_for_those_with_the_right_and_as_the_setting_says(
    app_where: Callable[..., TestApp], users: dict[str, str], access: str
) -> None:
    app = app_where(**dict.fromkeys(READ, access))
    for who, rights in RIGHTS.items():
        headers = bearer(users[who]) if who else {}
        refused = 403 if who else 401
        for tree, path in READ.items():
            allowed = access != "none" or tree in rights
            for method in ("GET", "HEAD", "OPTIONS"):
                answer = app.request(path, method=method, headers=headers, status="*")
                expected = (204 if method == "OPTIONS" else 200) if allowed else refused
                assert answer.status_int == expected, (who, tree, method)
        for tree, path in WRITE.items():
            allowed = access == "write" or tree in rights
            answer = app.post_json(path, {"name": None}, headers=headers, status="*")
            # 400: the request came as far as its body.
            assert answer.status_int == (400 if allowed else refused), (who, tree)


def test_out_of_the_box_everybody_reports_runs_and_locks_machines_and_nobody_reads_events(app: TestApp) -> None:
    app.post_json("/runs/", {"name": "a"})
    app.post_json("/nodes/", {"name": "a", "up": True})
    app.post_json("/queue/", {"queue": "a"})
    assert app.get("/api/events", status=401).headers["WWW-Authenticate"].startswith("Basic ")


def test_index_and_health_are_open_whatever_the_setting(app_where: Callable[..., TestApp]) -> None:
    app = app_where(runs="none", machines="none", queue="none", events="none")
    for path in ("/", "/api/", "/healthcheck", "/_health"):
        assert app.get(path).status_int in (200, 204)


@pytest.mark.parametrize(
    "headers",
    [
        lambda tokens: basic("root", PASSWORD),
        lambda tokens: basic("root", tokens["root"]),
        lambda tokens: basic("whoever", tokens["root"]),
        lambda tokens: basic("", tokens["root"]),
        lambda tokens: bearer(tokens["root"]),
        lambda tokens: {"Authorization": f"bearer  {tokens['root']} "},
        lambda tokens: {"Authorization": basic("root", PASSWORD)["Authorization"].replace("Basic", "BASIC")},
        lambda tokens: {"X-AUTH-TOKEN": tokens["root"]},
        lambda tokens: {"x-auth-token": tokens["root"]},
    ],
)
def test_a_credential_is_shown_in_any_of_the_ways_that_clients_know(
    app: TestApp, users: dict[str, str], headers: Callable[[dict[str, str]], dict[str, str]]
) -> None:
    assert app.get("/api/events", headers=headers(users)).status_int == 200


@pytest.mark.parametrize(
    "headers",
    [
        lambda tokens: basic("root", "wrong"),
        lambda tokens: basic("root", ""),
        lambda tokens: basic("nosuch", PASSWORD),
        lambda tokens: basic("", PASSWORD),
        lambda tokens: basic("ro\0ot", PASSWORD),
        lambda tokens: basic("root", "\0"),
        lambda tokens: basic("root", "a" + "b" * 31),
        lambda tokens: basic("runner", tokens["root"][:-1]),
        lambda tokens: bearer("a" + "b" * 31),
        lambda tokens: bearer("x"),
        lambda tokens: bearer(PASSWORD.encode().decode("latin-1")),
        lambda tokens: bearer(""),
        lambda tokens: {"X-AUTH-TOKEN": "wrong"},
        lambda tokens: {"X-AUTH-TOKEN": tokens["root"].upper()},
        lambda tokens: {"Authorization": "Basic"},
        lambda tokens: {"Authorization": "Basic !!!"},
        lambda tokens: {"Authorization": "Basic " + base64.b64encode(b"nocolon").decode()},
        lambda tokens: {"Authorization": "Basic " + base64.b64encode(b"\xff:\xff").decode()},
        lambda tokens: {"Authorization": "Digest username=root"},
        lambda tokens: {"Authorization": tokens["root"]},
    ],
)
@pytest.mark.parametrize("path", ["/runs/", "/api/events", "/"])
def test_a_wrong_credential_is_401_even_where_none_is_needed(
    app: TestApp, users: dict[str, str], headers: Callable[[dict[str, str]], dict[str, str]], path: str
) -> None:
    answer = app.get(path, headers=headers(users), status=401)
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    assert list(answer.json) == ["message"]


def test_a_wrong_user_and_a_wrong_password_are_told_in_the_same_words(app: TestApp, users: dict[str, str]) -> None:
    wrong = [app.get("/runs/", headers=basic(user, "wrong"), status=401).json for user in ("root", "nosuch")]
    assert wrong[0] == wrong[1]


def test_a_token_that_has_expired_or_was_revoked_is_worth_nothing(
    app: TestApp, session: Session, users: dict[str, str], stopped_clock: Any
) -> None:
    token = service.create_token(session, "root", expires=stopped_clock() + timedelta(hours=1))
    session.commit()
    assert app.get("/api/events", headers=bearer(token)).status_int == 200
    stopped_clock.advance(hours=1)
    app.get("/api/events", headers=bearer(token), status=401)
    service.revoke_token(session, users["auditor"])
    session.commit()
    app.get("/api/events", headers=bearer(users["auditor"]), status=401)


def test_a_change_is_logged_under_the_name_of_who_made_it_and_with_the_request_s_id(
    app: TestApp, session: Session, users: dict[str, str]
) -> None:
    app.post_json("/runs/", {"name": "a"}, headers={**bearer(users["runner"]), "X-Request-ID": "one"})
    app.post_json("/runs/", {"name": "b"}, headers={"X-Request-ID": "two"})
    events = session.execute(select(Event.subject, Event.actor, Event.request_id).where(Event.kind == "run.added"))
    assert sorted(tuple(event) for event in events) == [("runs/a", "runner", "one"), ("runs/b", "anonymous", "two")]


def test_the_last_use_of_a_token_is_noted_to_the_minute(
    app: TestApp, session: Session, users: dict[str, str], stopped_clock: Any
) -> None:
    def last_used() -> Any:
        query = select(Token.last_used).join(Token.owner).where(Token.scopes.is_(None))
        return session.execute(query.where(Token.owner.has(name="auditor"))).scalar_one()

    assert last_used() is None
    first = stopped_clock()
    for seconds, noted in ((0, 0), (59, 0), (60, 0), (61, 61)):
        stopped_clock.time = first + timedelta(seconds=seconds)
        app.get("/api/events", headers=bearer(users["auditor"]))
        assert last_used() == first + timedelta(seconds=noted)


def test_secrets_are_never_in_the_log(app: TestApp, users: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    sent = [
        basic("root", PASSWORD),
        basic("root", "wrong password"),
        basic("someone", users["root"]),
        bearer(users["runner"]),
        {"X-AUTH-TOKEN": users["auditor"]},
        {"X-AUTH-TOKEN": "wrong-token"},
        {"Authorization": "Digest odd secret"},
    ]
    for headers in sent:
        app.get("/api/events", headers=headers, status="*")
        app.post("/runs/", b"{", headers=headers, status="*")
    said = "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert "request_done" in said
    secrets = [PASSWORD, "wrong password", "wrong-token", "odd secret", *users.values()]
    secrets += [header.split(" ")[-1] for headers in sent for header in headers.values()]
    for secret in secrets:
        assert secret not in said
