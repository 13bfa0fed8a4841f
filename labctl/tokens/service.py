"""The verbs of users and tokens: adding, removing, and finding out who somebody is."""

import hmac
import secrets as system_secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, joinedload

from labctl import clock
from labctl.db import Lock, Reader, table
from labctl.errors import Conflict, Invalid, NotFound, Unauthenticated
from labctl.events.service import record
from labctl.tokens.models import Token, User
from labctl.tokens.secrets import digest, hash_password, looks_like_token, new_secret, password_fits

#: How exactly ``last_used`` is kept: a write for every request would cost more than it tells.
LAST_USED = timedelta(minutes=1)
FIRST_ADMIN = "admin"

_users = table(User)
_tokens = table(Token)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who somebody is, and what they may do with the credential they showed."""

    user_id: int
    name: str
    admin: bool
    rights: frozenset[str]
    token_id: int | None = None
    #: Whether the token's ``last_used`` should be brought up to date, by :func:`touch`.
    stale: bool = False

    def may(self, tree: str) -> bool:
        """Tell whether the right to ``tree`` is among theirs."""
        return self.admin or tree in self.rights


@dataclass(frozen=True, slots=True)
class Pair:
    """A user name and a password out of the configuration, with some rights; there is none if either is empty."""

    name: str
    secret: str = field(repr=False)
    rights: frozenset[str]

    def fits(self, user: str | None, secret: str) -> bool:
        """Tell whether a credential is this one, in a time that does not depend on what is wrong."""
        same_name = hmac.compare_digest((user or "").encode(), self.name.encode())
        same_secret = hmac.compare_digest(secret.encode(), self.secret.encode())
        return same_name and same_secret and bool(self.name and self.secret)

    def may(self, tree: str) -> bool:
        """Tell whether the right to ``tree`` is among its rights."""
        return tree in self.rights


def authenticate(session: Reader, user: str | None, secret: str) -> Identity:
    """Find out whose credential this is: a token, whatever the user name, or a user with a password.

    Raises :class:`Unauthenticated`, with the same words whatever is wrong.
    """
    if looks_like_token(secret) and (identity := _by_token(session, secret)):
        return identity
    if user is None:
        raise Unauthenticated("the token is not valid")
    found = session.execute(select(_users).where(_users.c.name == user)).first() if "\0" not in user else None
    if not password_fits(found.password_hash if found else None, secret) or found is None:
        raise Unauthenticated("user or password is wrong")
    return Identity(found.id, found.name, found.admin, frozenset(found.rights))


def _by_token(session: Reader, secret: str) -> Identity | None:
    hashed = digest(secret)
    owner = select(_tokens, _users.c.name, _users.c.admin, _users.c.rights).join_from(_tokens, _users)
    token = session.execute(owner.where(_tokens.c.secret_hash == hashed)).first()
    now = clock.now()
    if (
        token is None
        or not hmac.compare_digest(bytes(token.secret_hash), hashed)
        or (token.expires and token.expires <= now)
    ):
        return None
    rights = frozenset(token.rights)
    if token.scopes is not None:
        rights = frozenset(token.scopes) if token.admin else rights & frozenset(token.scopes)
    return Identity(
        token.user_id,
        token.name,
        token.admin and token.scopes is None,
        rights,
        token.id,
        stale=token.last_used is None or token.last_used < now - LAST_USED,
    )


def touch(session: Session, token_id: int) -> None:
    """Note that a token was used, unless another request has just done so."""
    now = clock.now()
    session.execute(
        update(Token)
        .where(Token.id == token_id, or_(Token.last_used.is_(None), Token.last_used < now - LAST_USED))
        .values(last_used=now)
    )


def create_first_admin(session: Session, secret: str) -> bool:
    """Make the user ``admin`` with the token ``secret``, if there is no user at all; tells whether it did."""
    # Two first starts against one database must not make two tokens.
    session.execute(select(func.pg_advisory_xact_lock(int(Lock.FIRST_ADMIN), 0)))
    if session.scalar(select(User.id).limit(1)) is not None:
        return False
    admin = User(name=FIRST_ADMIN, admin=True, rights=[], created=clock.now())
    session.add(admin)
    session.flush()
    _add_token(session, admin, secret, None, None)
    record(session, "user.added", f"users/{admin.name}", admin=True)
    return True


def add_user(
    session: Session, name: str, *, password: str | None = None, admin: bool = False, rights: Sequence[str] = ()
) -> None:
    """Add a user; raises :class:`Conflict` for a name that is taken, :class:`Invalid` for a bad name or password."""
    if not 1 <= len(name) <= 128 or not name.isprintable() or ":" in name:
        raise Invalid("must be 1 to 128 printable characters without a colon", field="name")
    statement = insert(User).values(
        name=name,
        password_hash=_hashed(password) if password is not None else None,
        admin=admin,
        rights=list(rights),
        created=clock.now(),
    )
    if session.scalar(statement.on_conflict_do_nothing().returning(User.id)) is None:
        raise Conflict(f"user {name} already exists")
    record(session, "user.added", f"users/{name}", admin=admin, rights=list(rights))


def _hashed(password: str) -> str:
    if not password or "\0" in password or len(password) > 1024:
        raise Invalid("must have 1 to 1024 characters, none of them NUL", field="password")
    return hash_password(password)


def set_password(session: Session, name: str, password: str) -> None:
    """Give a user another password; raises :class:`NotFound`."""
    user = _user(session, name)
    user.password_hash = _hashed(password)
    record(session, "user.password_changed", f"users/{name}")


def remove_user(session: Session, name: str) -> None:
    """Remove a user and all of their tokens; raises :class:`NotFound`."""
    if session.scalar(delete(User).where(User.name == name).returning(User.id)) is None:
        raise NotFound(f"there is no user {name}")
    record(session, "user.removed", f"users/{name}")


def list_users(session: Session) -> Sequence[User]:
    """List the users by name."""
    return session.scalars(select(User).order_by(User.name)).all()


def create_token(
    session: Session, user: str, *, scopes: Sequence[str] | None = None, expires: datetime | None = None
) -> str:
    """Make a token for a user and give its secret, which nobody can read again; raises :class:`NotFound`."""
    secret = new_secret()
    token = _add_token(session, _user(session, user), secret, scopes, expires)
    record(session, "token.created", f"users/{user}", token=token.public_id)
    return secret


def _add_token(
    session: Session, owner: User, secret: str, scopes: Sequence[str] | None, expires: datetime | None
) -> Token:
    token = Token(
        public_id=system_secrets.token_hex(8),
        secret_hash=digest(secret),
        user_id=owner.id,
        scopes=None if scopes is None else list(scopes),
        created=clock.now(),
        expires=expires,
    )
    session.add(token)
    session.flush()
    return token


def list_tokens(session: Session, user: str | None = None) -> Sequence[Token]:
    """List tokens with their owners, oldest first; those of one user if one is named (raises :class:`NotFound`)."""
    query = select(Token).options(joinedload(Token.owner)).order_by(Token.created, Token.id)
    if user is not None:
        query = query.where(Token.user_id == _user(session, user).id)
    return session.scalars(query).all()


def revoke_token(session: Session, token: str) -> None:
    """Make a token, given by its secret or its public id, worthless; raises :class:`NotFound`."""
    statement = delete(Token).where(or_(Token.public_id == token, Token.secret_hash == digest(token)))
    public_id = session.scalar(statement.returning(Token.public_id))
    if public_id is None:
        raise NotFound("there is no such token")
    record(session, "token.revoked", f"tokens/{public_id}")


def _user(session: Session, name: str) -> User:
    user = session.scalar(select(User).where(User.name == name))
    if user is None:
        raise NotFound(f"there is no user {name}")
    return user
