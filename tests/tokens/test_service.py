"""Users, their passwords, their tokens, and finding out who somebody is."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from labctl import db
from labctl.errors import Conflict, Invalid, NotFound, Unauthenticated
from labctl.events.models import Event
from labctl.settings import ANONYMOUS, Settings
from labctl.tokens import service
from labctl.tokens.login import Login
from labctl.tokens.models import Token, User

PASSWORD = "correct horse"


@pytest.fixture
def ada(session: Session) -> Session:
    """A user with a password and the right to runs and machines."""
    service.add_user(session, "ada", password=PASSWORD, rights=["runs", "machines"])
    return session


def authenticate(session: Session, user: str | None, secret: str) -> service.Identity:
    """Log in as the application does, from nowhere in particular."""
    session.flush()
    found = Login(Settings())(user, secret, "-")
    assert isinstance(found, service.Identity)
    return found


def refused(session: Session, user: str | None, secret: str) -> str:
    with pytest.raises(Unauthenticated) as error:
        authenticate(session, user, secret)
    return error.value.message


def test_a_user_is_known_by_name_and_password_and_has_the_rights_that_were_given(ada: Session) -> None:
    identity = authenticate(ada, "ada", PASSWORD)
    assert (identity.name, identity.admin, identity.token_id) == ("ada", False, None)
    assert {tree for tree in ANONYMOUS if identity.may(tree)} == {"runs", "machines"}


def test_an_admin_may_do_everything(session: Session) -> None:
    service.add_user(session, "root", password=PASSWORD, admin=True)
    assert all(authenticate(session, "root", PASSWORD).may(tree) for tree in ANONYMOUS)


@pytest.mark.parametrize(
    ("user", "secret"),
    [("ada", "wrong"), ("ada", ""), ("Ada", PASSWORD), ("nosuch", PASSWORD), ("", PASSWORD), ("a\0da", PASSWORD)],
)
def test_a_wrong_user_or_password_is_refused_in_the_same_words(ada: Session, user: str, secret: str) -> None:
    assert refused(ada, user, secret) == refused(ada, "ada", "also wrong")


def test_a_user_without_a_password_comes_in_by_token_only(session: Session) -> None:
    service.add_user(session, "robot")
    token = service.create_token(session, "robot")
    for secret in ("", "None", "\0"):
        refused(session, "robot", secret)
    assert authenticate(session, "robot", token).name == "robot"


def test_neither_password_nor_token_is_stored(ada: Session) -> None:
    token = service.create_token(ada, "ada")
    rows = [*ada.execute(select(User.__table__)), *ada.execute(select(Token.__table__)), *ada.execute(select(Event))]
    everything = " ".join(str(value) for row in rows for value in row) + str([vars(row[0]) for row in rows[2:]])
    assert PASSWORD not in everything
    assert token not in everything
    assert token.encode() not in ada.scalars(select(Token.secret_hash)).one()


def test_a_token_works_whatever_user_is_named_with_it(ada: Session) -> None:
    token = service.create_token(ada, "ada")
    for user in ("ada", "someone", "", None):
        identity = authenticate(ada, user, token)
        assert (identity.name, identity.rights) == ("ada", {"runs", "machines"})
        assert identity.token_id is not None


def test_tokens_are_long_random_and_of_the_form_that_old_clients_accept(ada: Session) -> None:
    tokens = {service.create_token(ada, "ada") for _ in range(50)}
    assert len(tokens) == 50
    for token in tokens:
        assert len(token) == 32
        assert token.isalnum()
        assert token == token.lower()
        assert token[0] in "abcdefghijklmnopqrstuvwxy"


def test_a_token_with_scopes_has_no_more_rights_than_its_owner(ada: Session) -> None:
    token = service.create_token(ada, "ada", scopes=["runs", "events"])
    assert authenticate(ada, None, token).rights == {"runs"}


def test_a_token_of_an_admin_with_scopes_has_these_only(session: Session) -> None:
    service.add_user(session, "root", admin=True)
    identity = authenticate(session, None, service.create_token(session, "root", scopes=["events"]))
    assert not identity.admin
    assert {tree for tree in ANONYMOUS if identity.may(tree)} == {"events"}


def test_a_token_without_any_scope_may_do_nothing(session: Session) -> None:
    service.add_user(session, "root", admin=True)
    identity = authenticate(session, None, service.create_token(session, "root", scopes=[]))
    assert not any(identity.may(tree) for tree in ANONYMOUS)


def test_a_token_ends_at_its_time(ada: Session, stopped_clock: Any) -> None:
    token = service.create_token(ada, "ada", expires=stopped_clock() + timedelta(seconds=10))
    stopped_clock.advance(seconds=9.999)
    assert authenticate(ada, None, token).name == "ada"
    stopped_clock.advance(seconds=0.001)
    refused(ada, None, token)


@pytest.mark.parametrize("by", ["secret", "public_id"])
def test_a_token_is_revoked_by_its_secret_or_its_id_and_no_other_with_it(ada: Session, by: str) -> None:
    token, other = service.create_token(ada, "ada"), service.create_token(ada, "ada")
    first, _ = service.list_tokens(ada, "ada")
    service.revoke_token(ada, token if by == "secret" else first.public_id)
    refused(ada, None, token)
    assert authenticate(ada, None, other).name == "ada"
    with pytest.raises(NotFound):
        service.revoke_token(ada, token if by == "secret" else first.public_id)


@pytest.mark.parametrize("text", ["", "nosuch", "a" + "b" * 31, "ä", "%"])
def test_what_is_no_token_cannot_be_revoked(ada: Session, text: str) -> None:
    service.create_token(ada, "ada")
    with pytest.raises(NotFound):
        service.revoke_token(ada, text)
    assert len(service.list_tokens(ada)) == 1


def test_a_user_who_is_removed_takes_their_tokens_along(ada: Session) -> None:
    token = service.create_token(ada, "ada")
    service.remove_user(ada, "ada")
    refused(ada, "ada", PASSWORD)
    refused(ada, None, token)
    assert service.list_tokens(ada) == []
    service.add_user(ada, "ada", password="another")
    refused(ada, None, token)


def test_a_new_password_replaces_the_old_one(ada: Session) -> None:
    service.set_password(ada, "ada", "better battery")
    ada.flush()
    refused(ada, "ada", PASSWORD)
    assert authenticate(ada, "ada", "better battery").name == "ada"


def test_a_user_is_added_once(ada: Session) -> None:
    with pytest.raises(Conflict, match="user ada already exists"):
        service.add_user(ada, "ada", password="another", admin=True)
    assert not authenticate(ada, "ada", PASSWORD).admin


@pytest.mark.parametrize("name", ["", "x" * 129, "a:b", "a\nb", "a\0b", "\u202e"])
def test_a_bad_name_of_a_user_is_refused(session: Session, name: str) -> None:
    with pytest.raises(Invalid) as error:
        service.add_user(session, name)
    assert error.value.field == "name"


@pytest.mark.parametrize("password", ["", "x" * 1025, "a\0b"])
def test_a_bad_password_is_refused(ada: Session, password: str) -> None:
    acts: list[Callable[[], None]] = [
        lambda: service.add_user(ada, "bob", password=password),
        lambda: service.set_password(ada, "ada", password),
    ]
    for act in acts:
        with pytest.raises(Invalid) as error:
            act()
        assert error.value.field == "password"
    assert [user.name for user in service.list_users(ada)] == ["ada"]


def test_what_concerns_an_unknown_user_is_not_found(session: Session) -> None:
    for act in (service.remove_user, service.create_token, service.list_tokens):
        with pytest.raises(NotFound, match="there is no user nosuch"):
            act(session, "nosuch")
    with pytest.raises(NotFound, match="there is no user nosuch"):
        service.set_password(session, "nosuch", PASSWORD)


def test_users_and_tokens_are_listed_in_order(ada: Session, stopped_clock: Any) -> None:
    service.add_user(ada, "Zoe")
    service.add_user(ada, "bob")
    for user in ("bob", "ada", "bob"):
        service.create_token(ada, user)
        stopped_clock.advance(seconds=1)
    assert sorted(user.name for user in service.list_users(ada)) == ["Zoe", "ada", "bob"]
    assert [token.owner.name for token in service.list_tokens(ada)] == ["bob", "ada", "bob"]
    assert [token.owner.name for token in service.list_tokens(ada, "ada")] == ["ada"]


def test_the_first_admin_is_made_once_and_only_where_there_is_no_user(session: Session) -> None:
    secret = "a" + "b" * 31
    assert service.create_first_admin(session, secret)
    identity = authenticate(session, None, secret)
    assert (identity.name, identity.admin) == ("admin", True)
    assert not service.create_first_admin(session, "c" + "d" * 31)
    refused(session, None, "c" + "d" * 31)


def test_no_first_admin_is_made_where_somebody_is(ada: Session) -> None:
    assert not service.create_first_admin(ada, "a" + "b" * 31)


def test_of_many_first_starts_at_once_one_makes_the_admin(committed: Engine, at_once: Callable[..., list[Any]]) -> None:
    def start(number: int) -> bool:
        with db.transaction() as session:
            return service.create_first_admin(session, "a" + str(number) * 31)

    made = at_once([lambda number=number: start(number) for number in range(8)])
    assert made.count(True) == 1
    with db.reading() as session:
        assert session.scalar(select(func.count()).select_from(Token)) == 1
        identity = service.by_token(session, "a" + str(made.index(True)) * 31)
        assert identity is not None and identity.admin


def test_each_change_of_users_and_tokens_is_an_event_without_the_secret(ada: Session) -> None:
    token = service.create_token(ada, "ada")
    service.set_password(ada, "ada", "better battery")
    service.revoke_token(ada, token)
    service.remove_user(ada, "ada")
    events = ada.scalars(select(Event).order_by(Event.seq)).all()
    kinds = [event.kind for event in events]
    assert kinds == ["user.added", "token.created", "user.password_changed", "token.revoked", "user.removed"]
    said = str([(event.subject, event.data) for event in events])
    for secret in (PASSWORD, token, "better battery"):
        assert secret not in said
