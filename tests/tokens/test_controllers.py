"""``/token``, as vmfloaty asks for it."""

import base64
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl import db
from labctl.app import Application, make_app
from labctl.events.models import Event
from labctl.http.dialects import VMPOOLER
from labctl.http.hooks import RequestHook
from labctl.http.resource import Mount, Request, Resource
from labctl.settings import Settings
from labctl.tokens import secrets, service
from labctl.tokens.controllers import TokensController
from labctl.tokens.login import Login
from labctl.tokens.models import Token

PASSWORD = "correct horse"
CREATED = "2026-01-02 03:04:05 +0000"


def basic(user: str, secret: str = PASSWORD) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()}


@pytest.fixture(scope="module")
def hashed() -> str:
    return secrets.hash_password(PASSWORD)


#: Running VMs by the id of their token.
Running = dict[int, list[str]]


@pytest.fixture
def running() -> Running:
    return {}


class Root(Resource):
    """A place for the tree."""

    mount = Mount()

    def __init__(self, tokens: Resource) -> None:
        self.children = {"token": tokens}


def serve(settings: Settings, running: Running) -> TestApp:
    login = Login(settings)
    tokens = TokensController(settings, Mount(None, VMPOOLER), lambda session, token: running.get(token, []))
    return TestApp(
        Application(
            Root(tokens),
            hooks=[RequestHook(lambda claim: login(claim.user, claim.secret, claim.address), {})],
            request_cls=Request,
            force_canonical=False,
            guess_content_type_from_ext=False,
            use_context_locals=False,
        )
    )


@pytest.fixture
def app(
    session: Session,
    settings: Settings,
    running: Running,
    hashed: str,
    monkeypatch: pytest.MonkeyPatch,
    stopped_clock: Any,
) -> TestApp:
    """The tree of tokens, two users and an admin; nobody has a token."""
    monkeypatch.setattr(service, "hash_password", lambda password: hashed)
    for name, admin in (("ada", False), ("bob", False), ("root", True)):
        service.add_user(session, name, password=PASSWORD, admin=admin)
    session.commit()
    return serve(replace(settings, api_user="poster", api_key=PASSWORD), running)


def make(app: TestApp, user: str = "ada") -> str:
    return str(app.post("/token", headers=basic(user)).json["token"])


def ids(app: TestApp, user: str = "ada") -> list[str]:
    answer = app.get("/token", headers=basic(user), status="*")
    return [key for key in answer.json if key not in {"ok", "message"}]


def token_id(session: Session, secret: str) -> int:
    return session.scalars(select(Token.id).where(Token.secret_hash == secrets.digest(secret))).one()


@pytest.mark.parametrize("path", ["/token", "/token/"])
def test_a_user_makes_a_token_with_a_password_and_it_works(app: TestApp, session: Session, path: str) -> None:
    answer = app.post(path, headers={**basic("ada"), "Content-Type": "application/x-www-form-urlencoded"})
    assert answer.content_type == "application/json"
    token = answer.json["token"]
    assert answer.json == {"ok": True, "token": token}
    assert secrets.looks_like_token(token)
    identity = service.by_token(session, token)
    assert identity is not None and identity.name == "ada"
    actors = session.execute(select(Event.kind, Event.actor).where(Event.kind == "token.created")).all()
    assert [tuple(each) for each in actors] == [("token.created", "ada")]


def test_the_list_has_ids_and_no_secrets_and_only_ones_own(app: TestApp) -> None:
    token, _ = make(app), make(app, "bob")
    for path in ("/token", "/token/"):
        answer = app.get(path, headers=basic("ada")).json
        assert answer.pop("ok") is True
        ((shown, values),) = answer.items()
        assert len(shown) == 16 and token not in str(answer)
        assert values == {"created": CREATED, "last": "never"}


def test_a_user_without_tokens_gets_404(app: TestApp) -> None:
    make(app, "bob")
    answer = app.get("/token", headers=basic("ada"), status=404)
    assert answer.json["ok"] is False


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_without_a_right_password_it_is_401_and_a_token_does_not_do(
    app: TestApp, session: Session, method: str
) -> None:
    token = make(app)
    path = f"/token/{token}" if method == "DELETE" else "/token"
    for headers in (
        {},
        basic("ada", "wrong"),
        basic("nosuch"),
        basic("ada", token),
        {"X-AUTH-TOKEN": token},
        {"Authorization": f"Bearer {token}"},
        basic("poster"),
    ):
        answer = app.request(path, method=method, headers=headers, status=401)
        assert answer.json["ok"] is False
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    assert session.scalar(select(func.count()).select_from(Token)) == 1


def test_the_secret_shows_its_token_to_everybody(app: TestApp, session: Session, running: Running) -> None:
    token = make(app)
    for path in (f"/token/{token}", f"/token/{token}/"):
        assert app.get(path).json == {"ok": True, token: {"user": "ada", "created": CREATED}}
    running[token_id(session, token)] = ["brisk-meadow", "idle-inlet"]
    # A wrong password is told, even where none is needed; vmfloaty sends none.
    app.get(f"/token/{token}", headers=basic("ada", "wrong"), status=401)
    shown = app.get(f"/token/{token}", headers={"X-AUTH-TOKEN": token}).json[token]
    assert shown == {
        "user": "ada",
        "created": CREATED,
        "last": CREATED,
        "vms": {"running": ["brisk-meadow", "idle-inlet"]},
    }


def test_the_id_shows_a_token_to_its_user_and_to_admins(app: TestApp) -> None:
    token, of_bob = make(app), make(app, "bob")
    (public_id,) = ids(app)
    for headers in (basic("ada"), basic("root"), {"X-AUTH-TOKEN": token}):
        assert app.get(f"/token/{public_id}", headers=headers).json[public_id]["user"] == "ada"
    for headers in ({}, basic("bob"), {"X-AUTH-TOKEN": of_bob}, basic("poster")):
        assert app.get(f"/token/{public_id}", headers=headers, status=404).json["ok"] is False


@pytest.mark.parametrize("given", ["nope", "a" + "b" * 31, "0123456789abcdef", "%25", "%C3%A4", "x" * 3000])
def test_an_unknown_token_is_404_and_401_to_delete_it(app: TestApp, given: str) -> None:
    for headers in ({}, basic("ada"), basic("root")):
        assert app.get(f"/token/{given}", headers=headers, status=404).json["ok"] is False
    for user in ("ada", "root"):
        assert app.delete(f"/token/{given}", headers=basic(user), status=401).json["ok"] is False
    assert app.delete(f"/token/{given}", status=401).json["ok"] is False


@pytest.mark.parametrize("by", ["secret", "id"])
@pytest.mark.parametrize("user", ["ada", "root"])
def test_a_token_is_deleted_by_its_user_and_by_an_admin(app: TestApp, by: str, user: str) -> None:
    token = make(app)
    given = token if by == "secret" else ids(app)[0]
    assert app.delete(f"/token/{given}", headers=basic(user)).json == {"ok": True}
    app.get(f"/token/{token}", status=404)
    app.get("/token", headers={"X-AUTH-TOKEN": token}, status=401)
    app.delete(f"/token/{given}", headers=basic(user), status=401)


@pytest.mark.parametrize("by", ["secret", "id"])
def test_another_users_token_stays_and_looks_like_none(app: TestApp, by: str) -> None:
    token = make(app)
    given = token if by == "secret" else ids(app)[0]
    answer = app.delete(f"/token/{given}", headers=basic("bob"), status=401)
    unknown = app.delete("/token/nope", headers=basic("bob"), status=401)
    assert answer.json == unknown.json
    assert app.get(f"/token/{token}").json["ok"] is True


def test_a_token_whose_time_is_over_is_not_there(app: TestApp, session: Session, stopped_clock: Any) -> None:
    from datetime import timedelta

    token = service.create_token(session, "ada", expires=stopped_clock() + timedelta(hours=1))
    session.commit()
    (public_id,) = ids(app)
    stopped_clock.advance(hours=1)
    assert ids(app) == []
    for given in (token, public_id):
        app.get(f"/token/{given}", headers=basic("ada"), status=404)


def test_a_user_has_no_more_than_so_many_tokens(
    app: TestApp, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MOST_TOKENS", 2)
    first = make(app)
    make(app)
    answer = app.post("/token", headers=basic("ada"), status=409)
    assert answer.json["ok"] is False and "already has 2 tokens" in answer.json["message"]
    make(app, "bob")
    app.delete(f"/token/{first}", headers=basic("ada"))
    make(app)


def test_many_at_once_make_no_more_than_so_many(
    committed: Engine, settings: Settings, at_once: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MOST_TOKENS", 3)
    with db.transaction() as session:
        service.add_user(session, "ada", password=PASSWORD)
    app = serve(settings, {})
    answers = at_once([lambda: app.post("/token", headers=basic("ada"), status="*").status_int] * 8)
    assert sorted(answers) == [200] * 3 + [409] * 5


def test_other_methods_are_405_and_deeper_paths_404(app: TestApp) -> None:
    token = make(app)
    assert app.put("/token", headers=basic("ada"), status=405).headers["Allow"] == "GET, HEAD, OPTIONS, POST"
    assert app.post(f"/token/{token}", headers=basic("ada"), status=405).headers["Allow"] == (
        "DELETE, GET, HEAD, OPTIONS"
    )
    app.get(f"/token/{token}/more", status=404)


def test_a_token_in_the_path_is_not_in_the_log(app: TestApp, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = make(app)
    for path in (f"/token/{token}", f"/token/{token}/", f"/token/{token}/more", f"/tokens/{token}", f"/token//{token}"):
        app.get(path, status="*")
        app.put(path, status="*")
    app.get(f"/token/%{ord(token[0]):02x}{token[1:]}")
    app.delete(f"/token/{token}", headers=basic("ada"))
    said = "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert "'path': '/token/***'" in said
    for secret in (token, PASSWORD, basic("ada")["Authorization"].split(" ")[1]):
        assert secret not in said


@pytest.mark.parametrize("mount", ["/api/token", "/api/v1/token", "/api/v2/token", "/api/v3/token"])
def test_every_version_has_its_tokens(
    session: Session, settings: Settings, hashed: str, monkeypatch: pytest.MonkeyPatch, mount: str
) -> None:
    monkeypatch.setattr(service, "hash_password", lambda password: hashed)
    service.add_user(session, "ada", password=PASSWORD)
    session.commit()
    app = TestApp(make_app(settings))
    token = app.post(mount, headers=basic("ada")).json["token"]
    assert app.get(f"{mount}/{token}").json[token]["user"] == "ada"
    assert app.delete(f"{mount}/{token}", headers=basic("ada")).json == {"ok": True}
