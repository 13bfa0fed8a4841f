"""Parts of lists: what part is asked for, the statement that selects it, and what came."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Integer, Select, bindparam, tuple_

DEFAULT_COUNT = 100


@dataclass(frozen=True, slots=True)
class Page:
    """``count`` rows, after ``offset`` rows, or after the row at the cursor."""

    count: int = DEFAULT_COUNT
    offset: int = 0
    #: The time and the id of the last row seen.
    after: tuple[datetime, int] | None = None

    def kind(self) -> tuple[bool, bool]:
        """Tell whether the page is behind an offset, and behind a cursor: what :func:`cut` needs to know."""
        return self.offset > 0, self.after is not None

    def parameters(self) -> dict[str, Any]:
        """Give the values for the statement that :func:`cut` made."""
        parameters: dict[str, Any] = {"count": self.count}
        if self.after is not None:
            parameters["after"], parameters["after_id"] = self.after
        if self.offset:
            parameters["offset"] = self.offset
        return parameters


@dataclass(frozen=True)
class Listed:
    """A part of a list: the documents as JSON text, and the time and id of the last, from where the list goes on."""

    documents: list[str]
    last: tuple[datetime, int] | None

    @classmethod
    def of(cls, rows: Sequence[Any]) -> "Listed":
        """Take rows of document, time, id."""
        return cls([row[0] for row in rows], (rows[-1][1], rows[-1][2]) if rows else None)

    def __bool__(self) -> bool:
        """Tell whether there is anything."""
        return bool(self.documents)


def cut(query: Select[Any], by: Any, offset: bool, after: bool, *, newest: bool = True) -> Select[Any]:
    """Order a query by a time and the id, and cut it to a page, perhaps behind an offset or a cursor."""
    query = ordered(query, by, newest=newest)
    if after:
        query = query.where(behind(by, newest=newest))
    if offset:
        query = query.offset(bindparam("offset", type_=Integer))
    return query.limit(bindparam("count", type_=Integer))


def ordered(query: Select[Any], by: Any, *, newest: bool = True) -> Select[Any]:
    """Order a query by a time and the id."""
    identity = by.table.c.id
    return query.order_by(by.desc(), identity.desc()) if newest else query.order_by(by, identity)


def behind(by: Any, *, newest: bool = True) -> Any:
    """Give the condition that a row comes after the cursor."""
    place = tuple_(by, by.table.c.id)
    end = tuple_(bindparam("after", type_=by.type), bindparam("after_id", type_=by.table.c.id.type))
    return place < end if newest else place > end
