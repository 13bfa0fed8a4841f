"""Wrong passwords, counted for each user and address in the database, so that all processes together slow them down."""

import ipaddress
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, case, delete, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import Reader, table
from labctl.tokens.models import LoginFailure

#: So many wrong passwords cost nothing. Requests that come at once may have a few more: they do not see each other's.
FREE = 5
#: The next one waits for a second, and from then on twice as long as the one before, but never longer than this.
LONGEST = 30
#: After so long without another one, they are forgotten.
FORGET = timedelta(minutes=15)
#: Of old rows, so many are deleted with each wrong password.
BATCH = 100

_failures = table(LoginFailure)


@dataclass(frozen=True, slots=True)
class Tries:
    """How often a user's password was wrong from one address."""

    user: str
    address: str
    count: int = 0
    last: datetime | None = None

    def wait(self) -> int:
        """Tell for how many seconds, rounded up, no password is looked at."""
        if self.count < FREE or self.last is None:
            return 0
        left = self.last + timedelta(seconds=pause(self.count)) - clock.now()
        return max(0, -(-left // timedelta(seconds=1)))


def pause(count: int) -> int:
    """Give the seconds that must pass after this many wrong passwords."""
    return int(min(2 ** min(count - FREE, 10), LONGEST)) if count >= FREE else 0


def same(user: str) -> str:
    """Give one spelling to all the names that a directory may take for the same; others may share it."""
    folded = unicodedata.normalize("NFKD", user).casefold()
    return "".join(character for character in folded if character.isalnum())[:128]


def network(address: str) -> str:
    """Give the network that somebody with this address has for themselves."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address.replace("\0", "")[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(ipaddress.ip_network((parsed, 64), strict=False))
        parsed = parsed.ipv4_mapped
    return str(parsed)


def tries(session: Reader, user: str, address: str) -> Tries:
    """Count the wrong passwords for a user from an address."""
    key = Tries(same(user), network(address))
    query = select(_failures.c.count, _failures.c.last).where(_is(key), _failures.c.last > clock.now() - FORGET)
    found = session.execute(query).first()
    return key if found is None else Tries(key.user, key.address, *found)


def take_turn(session: Session, seen: Tries) -> bool:
    """Count one more wrong password before it is looked at; False if another request has just done so."""
    unchanged = (LoginFailure.count == seen.count, LoginFailure.last == seen.last)
    turn = update(LoginFailure).where(_is(seen), *unchanged).values(count=seen.count + 1, last=clock.now())
    return session.scalar(turn.returning(LoginFailure.count)) is not None


def note(session: Session, seen: Tries) -> None:
    """Count a wrong password, and delete some of those that are forgotten."""
    now = clock.now()
    new = insert(LoginFailure).values(user_name=seen.user, address=seen.address, count=1, last=now)
    count = case((LoginFailure.last > now - FORGET, LoginFailure.count + 1), else_=1)
    session.execute(
        new.on_conflict_do_update(index_elements=["user_name", "address"], set_={"count": count, "last": now})
    )
    old = select(LoginFailure.user_name, LoginFailure.address).where(LoginFailure.last < now - FORGET)
    old = old.order_by(LoginFailure.last).limit(BATCH).with_for_update(skip_locked=True)
    session.execute(delete(LoginFailure).where(tuple_(LoginFailure.user_name, LoginFailure.address).in_(old)))


def forget(session: Session, seen: Tries) -> None:
    """Start anew after a right password."""
    session.execute(delete(LoginFailure).where(_is(seen)))


def _is(key: Tries) -> ColumnElement[bool]:
    return and_(_failures.c.user_name == key.user, _failures.c.address == key.address)
