"""The tables of users, tokens and wrong passwords."""

from datetime import datetime

from sqlalchemy import ARRAY, DateTime, ForeignKey, Index, LargeBinary, String, Text, false, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from labctl.db import Base


class User(Base):
    """Somebody who may log in."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)
    #: argon2id with its parameters; None: this user has tokens only, or a password in LDAP.
    password_hash: Mapped[str | None] = mapped_column(Text)
    #: Whether LDAP knows the password; nobody else is ever asked for there.
    ldap: Mapped[bool] = mapped_column(server_default=false())
    admin: Mapped[bool] = mapped_column(server_default=false())
    #: Names of trees.
    rights: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    created: Mapped[datetime] = mapped_column(DateTime(timezone=True))

    tokens: Mapped[list["Token"]] = relationship(
        back_populates="owner", cascade="all, delete-orphan", passive_deletes=True
    )


class Token(Base):
    """A secret that stands for its owner."""

    __tablename__ = "tokens"

    id: Mapped[int] = mapped_column(primary_key=True)
    #: What lists show in the secret's place.
    public_id: Mapped[str] = mapped_column(String(16), unique=True)
    #: SHA-256: the secret is long and random, so a slow hash would protect nothing more.
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    #: The rights of the owner that this token carries; None: all of them.
    scopes: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    created: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    last_used: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    expires: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))

    owner: Mapped[User] = relationship(back_populates="tokens")


class LoginFailure(Base):
    """Wrong passwords in a row, for one user from one address; the user need not exist."""

    __tablename__ = "login_failures"
    __table_args__ = (Index("ix_login_failures_last", "last"),)

    #: In the spelling that LDAP takes for the same: see :func:`labctl.tokens.failures.same`.
    user_name: Mapped[str] = mapped_column(String(128), primary_key=True)
    #: An IPv4 address or an IPv6 network.
    address: Mapped[str] = mapped_column(String(64), primary_key=True)
    count: Mapped[int]
    last: Mapped[datetime] = mapped_column(DateTime(timezone=True))
