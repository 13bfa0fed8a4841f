"""Logging in: wrong passwords are slow, tokens are not, and LDAP users are users."""

import base64
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl import db
from labctl.app import make_app
from labctl.errors import Unauthenticated, Unavailable
from labctl.events.models import Event
from labctl.settings import Settings
from labctl.tokens import failures, login, secrets, service
from labctl.tokens.login import Login
from labctl.tokens.models import LoginFailure, User

from . import slapd
from .slapd import BASE, PEOPLE, SERVICE, SERVICE_PASSWORD

PASSWORD = "correct horse"
HERE = "192.0.2.1"


class Checks:
    """Counts the passwords that were checked; the real check is slow on purpose."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, hashed: str | None, password: str) -> bool:
        self.count += 1
        return hashed is not None and password == PASSWORD


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    checks = Checks()
    monkeypatch.setattr(login, "password_fits", checks)
    monkeypatch.setattr(service, "hash_password", lambda password: "hashed")
    return checks


@pytest.fixture
def log_in(session: Session, settings: Settings, checks: Checks, stopped_clock: Any) -> Login:
    """Log in where there is a user ada."""
    service.add_user(session, "ada", password=PASSWORD)
    session.commit()
    return Login(replace(settings, api_user="poster", api_key="poster's"))


def wait_of(log_in: Login, user: str, secret: str, address: str = HERE) -> int | None:
    """Log in with a wrong password, or at a wrong time; gives the seconds to wait."""
    with pytest.raises(Unauthenticated) as error:
        log_in(user, secret, address)
    return error.value.retry_after


def fail(log_in: Login, times: int, user: str = "ada", address: str = HERE) -> None:
    for _ in range(times):
        assert wait_of(log_in, user, "wrong", address) is None


def test_the_first_wrong_passwords_cost_nothing_and_the_next_are_not_even_looked_at(
    log_in: Login, checks: Checks
) -> None:
    fail(log_in, failures.FREE)
    assert checks.count == failures.FREE
    for secret in ("wrong", PASSWORD):
        assert wait_of(log_in, "ada", secret) == 1
    assert checks.count == failures.FREE


def test_each_wrong_password_doubles_the_wait_up_to_a_limit_and_a_right_one_ends_it(
    log_in: Login, stopped_clock: Any, session: Session
) -> None:
    fail(log_in, failures.FREE)
    for wait in (1, 2, 4, 8, 16, 30, 30, 30):
        assert wait_of(log_in, "ada", PASSWORD) == wait
        stopped_clock.advance(seconds=wait - 0.5)
        assert wait_of(log_in, "ada", PASSWORD) == 1
        stopped_clock.advance(seconds=0.5)
        fail(log_in, 1)
    stopped_clock.advance(seconds=30)
    assert log_in("ada", PASSWORD, HERE).name == "ada"
    assert session.scalar(select(func.count()).select_from(LoginFailure)) == 0
    fail(log_in, failures.FREE)


def test_a_right_password_forgets_the_wrong_ones(log_in: Login) -> None:
    for _ in range(3):
        fail(log_in, failures.FREE - 1)
        assert log_in("ada", PASSWORD, HERE).name == "ada"


def test_time_forgets_the_wrong_ones(log_in: Login, stopped_clock: Any) -> None:
    fail(log_in, failures.FREE)
    stopped_clock.advance(seconds=failures.FORGET.total_seconds())
    fail(log_in, failures.FREE)
    assert wait_of(log_in, "ada", PASSWORD) == 1


def test_only_this_user_waits_and_only_at_this_address(log_in: Login, session: Session) -> None:
    service.add_user(session, "bob", password=PASSWORD)
    session.commit()
    fail(log_in, failures.FREE)
    assert log_in("ada", PASSWORD, "192.0.2.2").name == "ada"
    assert log_in("bob", PASSWORD, HERE).name == "bob"
    assert wait_of(log_in, "ada", PASSWORD) == 1


@pytest.mark.parametrize("name", ["ADA", " ada", "a da", "\uff21da", "ad\u00e4", "ada\ufe00", "a.d.a"])
def test_another_spelling_of_a_user_is_the_same_user(log_in: Login, name: str) -> None:
    fail(log_in, failures.FREE - 1)
    fail(log_in, 1, name)
    assert wait_of(log_in, "ada", PASSWORD) == 1


def test_a_user_that_does_not_exist_is_slowed_down_alike(log_in: Login) -> None:
    fail(log_in, failures.FREE, "nosuch")
    with pytest.raises(Unauthenticated) as unknown:
        log_in("nosuch", "wrong", HERE)
    fail(log_in, failures.FREE)
    with pytest.raises(Unauthenticated) as known:
        log_in("ada", "wrong", HERE)
    assert (known.value.message, known.value.retry_after) == (unknown.value.message, unknown.value.retry_after)


def test_the_pair_of_the_configuration_is_slowed_down_as_well(log_in: Login) -> None:
    fail(log_in, failures.FREE, "poster")
    assert wait_of(log_in, "poster", "poster's") == 1
    assert log_in("poster", "poster's", "192.0.2.2").name == "poster"


def test_tokens_are_not_slowed_down_and_what_looks_like_one_slows_nobody(log_in: Login, session: Session) -> None:
    token = service.create_token(session, "ada")
    session.commit()
    for _ in range(failures.FREE + 1):
        assert wait_of(log_in, "ada", secrets.new_secret()) is None
    assert log_in("ada", PASSWORD, HERE).name == "ada"
    fail(log_in, failures.FREE)
    for user in ("ada", "whoever", None):
        assert log_in(user, token, HERE).name == "ada"
    assert wait_of(log_in, "ada", PASSWORD) == 1


def test_old_failures_are_deleted(log_in: Login, session: Session, stopped_clock: Any) -> None:
    for number in range(5):
        fail(log_in, 1, f"user{number}")
    stopped_clock.advance(seconds=failures.FORGET.total_seconds() + 1)
    fail(log_in, 1, "another")
    assert session.scalars(select(LoginFailure.user_name)).all() == ["another"]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1:2:3:4", "2001:db8::/64"),
        ("2001:db8:0:0:ffff::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("-", "-"),
        ("unknown\0" + "x" * 100, "unknown" + "x" * 57),
    ],
)
def test_an_address_stands_for_all_that_somebody_has(address: str, network: str) -> None:
    assert failures.network(address) == network


def test_the_answer_says_when_to_come_back(
    session: Session, settings: Settings, checks: Checks, caplog: pytest.LogCaptureFixture, stopped_clock: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    service.add_user(session, "ada", password=PASSWORD)
    session.commit()
    app = TestApp(make_app(settings), extra_environ={"REMOTE_ADDR": HERE})

    def ask(secret: str, **environ: str) -> Any:
        headers = {"Authorization": "Basic " + base64.b64encode(f"ada:{secret}".encode()).decode()}
        return app.get("/", headers=headers, status="*", extra_environ=environ)

    for _ in range(failures.FREE):
        answer = ask("a wrong one")
        assert (answer.status_int, answer.headers.get("Retry-After")) == (401, None)
    answer = ask(PASSWORD)
    assert (answer.status_int, answer.headers["Retry-After"]) == (401, "1")
    assert "try again in 1 s" in answer.json["message"]
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    # A proxy on this machine speaks for others.
    assert ask(PASSWORD, REMOTE_ADDR="127.0.0.1", HTTP_X_FORWARDED_FOR=HERE).status_int == 401
    assert ask(PASSWORD, REMOTE_ADDR="127.0.0.1", HTTP_X_FORWARDED_FOR="192.0.2.2").status_int == 200
    stopped_clock.advance(seconds=1)
    assert ask(PASSWORD).status_int == 200
    said = "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert caplog.messages.count("login_refused") == failures.FREE
    assert "login_slowed_down" in caplog.messages
    assert "a wrong one" not in said and PASSWORD not in said


def test_when_the_wait_is_over_one_of_many_gets_its_turn(
    committed: Engine, settings: Settings, checks: Checks, at_once: Callable[..., list[Any]]
) -> None:
    with db.transaction() as session:
        service.add_user(session, "ada", password=PASSWORD)
        session.add(
            LoginFailure(
                user_name="ada",
                address=HERE,
                count=failures.FREE + 3,
                last=session.scalar(select(func.now())) - timedelta(minutes=1),
            )
        )
    log_in = Login(settings)

    def guess() -> int | None:
        with pytest.raises(Unauthenticated) as error:
            log_in("ada", "wrong", HERE)
        return error.value.retry_after

    waits = at_once([guess] * 8)
    assert checks.count == 1
    assert waits.count(None) == 1
    assert all(wait is None or 15 <= wait <= 16 for wait in waits)


def test_no_password_is_checked_inside_a_transaction(
    committed: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = []

    def fits(hashed: str | None, password: str) -> bool:
        with committed.connect() as connection:
            states = text(
                "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%' AND pid <> pg_backend_pid()"
            )
            busy.append(connection.scalar(states))
        return False

    monkeypatch.setattr(login, "password_fits", fits)
    fail(Login(settings), failures.FREE)
    assert busy == [0] * failures.FREE


# LDAP


@pytest.fixture
def ldap_settings(settings: Settings, server: slapd.Slapd, certificates: slapd.Certificates) -> Settings:
    return replace(
        settings,
        ldap_urls=[server.url],
        ldap_ca_file=str(certificates.authority),
        ldap_base=BASE,
        ldap_bind_dn=SERVICE,
        ldap_bind_password=SERVICE_PASSWORD,
        ldap_rights=["events"],
        ldap_admins=["bob", "root"],
    )


@pytest.fixture
def ldap(session: Session, ldap_settings: Settings, checks: Checks) -> Login:
    return Login(ldap_settings)


def users(session: Session) -> list[tuple[str, bool]]:
    return [tuple(row) for row in session.execute(select(User.name, User.ldap).order_by(User.id))]


def test_an_ldap_user_becomes_a_user_with_the_rights_of_the_settings(ldap: Login, session: Session) -> None:
    for _ in range(2):
        identity = ldap("ada", PASSWORD, HERE)
        assert (identity.name, identity.may("events"), identity.may("runs")) == ("ada", True, False)
    assert users(session) == [("ada", True)]
    events = session.scalars(select(Event).where(Event.kind == "user.added")).all()
    assert [(event.subject, event.data["ldap"]) for event in events] == [("users/ada", True)]
    assert session.scalars(select(User.password_hash)).all() == [None]
    assert ldap("bob", PASSWORD, HERE).may("anything")


def test_a_wrong_ldap_password_makes_no_user_and_is_slowed_down(
    ldap: Login, session: Session, stopped_clock: Any
) -> None:
    fail(ldap, failures.FREE)
    assert users(session) == []
    assert wait_of(ldap, "ada", PASSWORD) == 1
    stopped_clock.advance(seconds=1)
    assert ldap("ada", PASSWORD, HERE).name == "ada"


def test_the_users_of_labctl_win(ldap: Login, session: Session, checks: Checks) -> None:
    service.create_first_admin(session, secrets.new_secret())
    service.add_user(session, "ada", password=PASSWORD)
    session.commit()
    assert ldap("ada", PASSWORD, HERE).may("events") is False
    for name in ("admin", "ADMIN", "ADA"):
        assert wait_of(ldap, name, PASSWORD) is None
    assert users(session) == [("admin", False), ("ada", False)]


def test_a_name_in_another_spelling_is_the_same_user(ldap: Login, session: Session) -> None:
    assert ldap("ADA", PASSWORD, HERE).name == "ada"
    assert ldap("ada", PASSWORD, HERE).name == "ada"
    assert users(session) == [("ada", True)]


def test_a_token_of_an_ldap_user_has_the_rights_of_the_settings_and_needs_no_ldap(
    ldap: Login, ldap_settings: Settings, session: Session
) -> None:
    for name in ("ada", "bob"):
        ldap(name, PASSWORD, HERE)
    of_ada, of_bob = (service.create_token(session, name) for name in ("ada", "bob"))
    scoped = service.create_token(session, "bob", scopes=["runs"])
    session.commit()
    down = replace(ldap_settings, ldap_urls=[f"ldap://127.0.0.1:{slapd.free_port()}"])
    log_in = Login(down)
    assert [log_in(None, of_ada, HERE).may(tree) for tree in ("events", "runs")] == [True, False]
    assert log_in(None, of_bob, HERE).may("runs")
    assert [log_in(None, scoped, HERE).may(tree) for tree in ("events", "runs")] == [False, True]
    less = Login(replace(down, ldap_rights=[], ldap_admins=[]))
    assert not any(less(None, token, HERE).may("events") for token in (of_ada, of_bob))


def test_while_ldap_is_down_nobody_has_a_wrong_password(
    ldap: Login, ldap_settings: Settings, session: Session, stopped_clock: Any
) -> None:
    service.add_user(session, "local", password=PASSWORD)
    session.commit()
    down = Login(replace(ldap_settings, ldap_urls=[f"ldap://127.0.0.1:{slapd.free_port()}"]))
    for _ in range(failures.FREE + 1):
        with pytest.raises(Unavailable):
            down("ada", PASSWORD, HERE)
    assert session.scalar(select(func.count()).select_from(LoginFailure)) == 0
    assert down("local", PASSWORD, HERE).name == "local"


def test_the_application_answers_503_while_ldap_is_down(
    session: Session, ldap_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    app = TestApp(make_app(replace(ldap_settings, ldap_bind_password="not the secret")))
    headers = {"Authorization": "Basic " + base64.b64encode(f"ada:{PASSWORD}".encode()).decode()}
    answer = app.get("/", headers=headers, status=503)
    assert answer.headers["Retry-After"]
    said = answer.text + "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert "bind_dn was refused" in said
    for secret in (PASSWORD, SERVICE_PASSWORD, "not the secret"):
        assert secret not in said


def test_who_leaves_ldap_logs_in_no_more_but_their_tokens_live_on(
    ldap: Login, session: Session, server: slapd.Slapd
) -> None:
    ldap("leaver", PASSWORD, HERE)
    token = service.create_token(session, "leaver")
    session.commit()
    server.delete(f"uid={slapd.hexadecimal('leaver')},{PEOPLE}")
    assert wait_of(ldap, "leaver", PASSWORD) is None
    assert ldap("leaver", token, HERE).name == "leaver"


def test_a_password_of_labctls_own_is_the_only_one(
    ldap: Login, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    ldap("ada", PASSWORD, HERE)
    service.set_password(session, "ada", "another")
    session.commit()
    monkeypatch.setattr(login, "password_fits", lambda hashed, password: password == "another")
    fail(ldap, 1)
    assert wait_of(ldap, "ada", PASSWORD) is None
    assert ldap("ada", "another", HERE).may("events") is False


def test_without_ldap_its_users_have_no_password(ldap: Login, settings: Settings, session: Session) -> None:
    ldap("ada", PASSWORD, HERE)
    fail(Login(settings), 1, "ada")


def test_many_first_logins_at_once_make_one_user(
    committed: Engine, ldap_settings: Settings, at_once: Callable[..., list[Any]]
) -> None:
    log_in = Login(ldap_settings)
    ids = at_once([lambda: log_in("ada", PASSWORD, HERE).user_id] * 4)
    assert len(set(ids)) == 1


def test_ldap_is_asked_outside_any_transaction(committed: Engine, ldap_settings: Settings) -> None:
    log_in = Login(ldap_settings)
    assert log_in.directory is not None
    busy: list[Any] = []

    class Asked:
        def user(self, name: str, password: str) -> str | None:
            with committed.connect() as connection:
                statement = (
                    "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%' AND pid <> pg_backend_pid()"
                )
                busy.append(connection.scalar(text(statement)))
            return name

    log_in.directory = Asked()  # type: ignore[assignment]
    assert log_in("ada", PASSWORD, HERE).name == "ada"
    assert busy == [0]


# Settings


@pytest.fixture
def mistakes() -> Callable[..., list[str]]:
    from labctl.settings import SettingsError, load

    def told(**environ: str) -> list[str]:
        try:
            load({f"LABCTL_{name.upper()}": value for name, value in environ.items()})
        except SettingsError as error:
            return [line.partition(":")[0] for line in str(error).splitlines()]
        return []

    return told


def test_settings_that_keep_ldap_users_out_are_named(mistakes: Callable[..., list[str]]) -> None:
    urls = '["ldaps://ldap.example.org", "ldap://[::1]:3389/", "ldaps://x:65535"]'
    assert mistakes(ldap_urls=urls, ldap_base=BASE) == []
    assert mistakes(ldap_urls=urls, ldap_user_dn="uid={user},ou=people") == []
    assert mistakes(ldap_urls=urls) == ["ldap_base"]
    assert mistakes(ldap_urls=urls, ldap_base=BASE, ldap_user_dn="uid={user}") == ["ldap_base"]
    assert mistakes(ldap_user_dn="uid=x") == ["ldap_user_dn"]
    assert mistakes(ldap_user_dn="uid={user}", ldap_filter="(a=b)") == ["ldap_user_dn"]
    assert mistakes(ldap_urls='["http://x", "ldap://", "ldap.example.org"]', ldap_base=BASE) == ["ldap_urls"] * 3
    assert mistakes(ldap_urls='["ldap://x:0", "ldap://x:65536"]', ldap_base=BASE) == ["ldap_urls"] * 2
    assert mistakes(ldap_rights='["runs", "rusn"]') == ["ldap_rights"]
    assert mistakes(ldap_filter="a=b") == ["ldap_filter"]
    assert mistakes(ldap_attribute="uid=*)(x") == ["ldap_attribute"]
    assert mistakes(ldap_bind_dn=SERVICE) == ["ldap_bind_password"]
    assert mistakes(ldap_ca_file="/no/such/file") == ["ldap_ca_file"]
    assert mistakes(ldap_timeout="0") == ["ldap_timeout"]


def test_a_file_of_authorities_that_is_none_is_named(settings: Settings, tmp_path: Any) -> None:
    from labctl.settings import SettingsError

    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(SettingsError, match="ldap_ca_file"):
        make_app(replace(settings, ldap_urls=["ldap://x"], ldap_base=BASE, ldap_ca_file=str(tmp_path / "ca.pem")))


def test_the_password_of_the_service_account_is_not_shown_with_the_settings() -> None:
    assert "hidden" not in repr(Settings(ldap_bind_password="hidden"))
