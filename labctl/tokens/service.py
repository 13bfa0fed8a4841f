"""The verbs of users and tokens: adding, removing, and finding out who somebody is."""

import hmac
import secrets as system_secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, joinedload

from labctl import clock
from labctl.db import Lock, Reader, table
from labctl.errors import Conflict, Invalid, NotFound
from labctl.events.service import record
from labctl.tokens.models import Token, User
from labctl.tokens.secrets import digest, hash_password, looks_like_token, new_secret

#: How exactly ``last_used`` is kept: a write for every request would cost more than it tells.
LAST_USED = timedelta(minutes=1)
FIRST_ADMIN = "admin"
#: Tokens that a user may have who makes them without an admin's help.
MOST_TOKENS = 100

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


@dataclass(frozen=True, slots=True)
class Grants:
    """What the configuration gives to users whose passwords are in LDAP, beside what their rows say."""

    rights: frozenset[str] = frozenset()
    #: Names of those who are admins.
    admins: frozenset[str] = frozenset()


NO_GRANTS = Grants()


@dataclass(frozen=True, slots=True)
class Account:
    """A user, as far as a login has to know."""

    identity: Identity
    password_hash: str | None = field(repr=False)
    ldap: bool


def by_token(session: Reader, secret: str, grants: Grants = NO_GRANTS) -> Identity | None:
    """Find out whose token this is; None if it is nobody's, or its time is over."""
    if not looks_like_token(secret):
        return None
    hashed = digest(secret)
    owner = select(_tokens, _users.c.name, _users.c.admin, _users.c.rights, _users.c.ldap).join_from(_tokens, _users)
    token = session.execute(owner.where(_tokens.c.secret_hash == hashed)).first()
    now = clock.now()
    if (
        token is None
        or not hmac.compare_digest(bytes(token.secret_hash), hashed)
        or (token.expires and token.expires <= now)
    ):
        return None
    admin, rights = _rights(token, grants)
    if token.scopes is not None:
        rights = frozenset(token.scopes) if admin else rights & frozenset(token.scopes)
    return Identity(
        token.user_id,
        token.name,
        admin and token.scopes is None,
        rights,
        token.id,
        stale=token.last_used is None or token.last_used < now - LAST_USED,
    )


def account(session: Reader, name: str, grants: Grants = NO_GRANTS) -> Account | None:
    """Find what a login needs to know of the user with this name; None if there is none."""
    found = session.execute(select(_users).where(_users.c.name == name)).first() if "\0" not in name else None
    if found is None:
        return None
    admin, rights = _rights(found, grants)
    return Account(Identity(found.id, found.name, admin, rights), found.password_hash, found.ldap)


def _rights(user: Any, grants: Grants) -> tuple[bool, frozenset[str]]:
    if not user.ldap:
        return user.admin, frozenset(user.rights)
    return user.admin or user.name in grants.admins, frozenset(user.rights) | grants.rights


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


def name_is_valid(name: str) -> bool:
    """Tell whether somebody may have this name."""
    return 1 <= len(name) <= 128 and name.isprintable() and ":" not in name


def add_user(
    session: Session, name: str, *, password: str | None = None, admin: bool = False, rights: Sequence[str] = ()
) -> None:
    """Add a user; raises :class:`Conflict` for a name that is taken, :class:`Invalid` for a bad name or password."""
    if not name_is_valid(name):
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


def add_ldap_user(session: Session, name: str) -> None:
    """Make a row for a user whose password is in LDAP, so that tokens can belong to them, unless the name is taken."""
    statement = insert(User).values(name=name, ldap=True, admin=False, rights=[], created=clock.now())
    if session.scalar(statement.on_conflict_do_nothing().returning(User.id)) is not None:
        record(session, "user.added", f"users/{name}", admin=False, rights=[], ldap=True)


def _hashed(password: str) -> str:
    if not password or "\0" in password or len(password) > 1024:
        raise Invalid("must have 1 to 1024 characters, none of them NUL", field="password")
    return hash_password(password)


def set_password(session: Session, name: str, password: str) -> None:
    """Give a user another password, which LDAP is then not asked for any more; raises :class:`NotFound`."""
    user = _user(session, name)
    user.password_hash = _hashed(password)
    user.ldap = False
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
    session: Session,
    user: str,
    *,
    scopes: Sequence[str] | None = None,
    expires: datetime | None = None,
    most: int | None = None,
) -> str:
    """Make a token for a user and give its secret, which nobody can read again.

    Raises :class:`NotFound` for an unknown user, :class:`Conflict` where there are already ``most`` of theirs.
    """
    owner = _user(session, user, lock=most is not None)
    if most is not None:
        theirs = select(func.count()).select_from(Token).where(Token.user_id == owner.id, _alive())
        if (count := session.scalars(theirs).one()) >= most:
            raise Conflict(f"{user} already has {count} tokens: delete one that is not needed any more")
    secret = new_secret()
    token = _add_token(session, owner, secret, scopes, expires)
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


@dataclass(frozen=True, slots=True)
class Shown:
    """A token as its user may see it."""

    id: int
    public_id: str
    user_id: int
    user: str
    created: datetime
    last_used: datetime | None


_shown = select(
    _tokens.c.id,
    _tokens.c.public_id,
    _tokens.c.user_id,
    _users.c.name.label("user"),
    _tokens.c.created,
    _tokens.c.last_used,
).join_from(_tokens, _users)


def tokens_of(session: Reader, user_id: int) -> list[Shown]:
    """List the tokens of a user that are good for something, oldest first."""
    query = _shown.where(_tokens.c.user_id == user_id, _alive()).order_by(_tokens.c.created, _tokens.c.id)
    return [Shown(*row) for row in session.execute(query)]


def find_token(session: Reader, given: str, asking: Identity | None) -> Shown:
    """Find a token that is good for something, by its secret, which nobody but its user knows, or by its id.

    Raises :class:`NotFound`, also where ``asking`` may not see a token with this id.
    """
    query = _shown.where(_alive())
    if looks_like_token(given):
        query = query.where(_tokens.c.secret_hash == digest(given))
    elif asking is None:
        raise NotFound("there is no such token")
    else:
        query = query.where(_tokens.c.public_id == given)
        if not asking.admin:
            query = query.where(_tokens.c.user_id == asking.user_id)
    row = session.execute(query).first()
    if row is None:
        raise NotFound("there is no such token")
    return Shown(*row)


def _alive() -> ColumnElement[bool]:
    return or_(_tokens.c.expires.is_(None), _tokens.c.expires > clock.now())


def revoke_token(session: Session, token: str, *, of: int | None = None) -> None:
    """Make a token, given by its secret or its public id, worthless; raises :class:`NotFound`.

    ``of``: only if it is one of this user.
    """
    statement = delete(Token).where(or_(Token.public_id == token, Token.secret_hash == digest(token)))
    if of is not None:
        statement = statement.where(Token.user_id == of)
    public_id = session.scalar(statement.returning(Token.public_id))
    if public_id is None:
        raise NotFound("there is no such token")
    record(session, "token.revoked", f"tokens/{public_id}")


def _user(session: Session, name: str, *, lock: bool = False) -> User:
    query = select(User).where(User.name == name)
    user = session.scalar(query.with_for_update(key_share=True) if lock else query)
    if user is None:
        raise NotFound(f"there is no user {name}")
    return user
