"""State machines: a table of the moves that are allowed, and the one function that makes them."""

from collections.abc import Mapping, Set
from enum import StrEnum
from typing import Any, Generic, TypeVar

from labctl.errors import Conflict

State = TypeVar("State", bound=StrEnum)


class Lifecycle(Generic[State]):
    """The moves a kind of thing may make, as a table from a state to the states that may follow it."""

    def __init__(self, moves: Mapping[State, Set[State]]) -> None:
        """Take the table; a state with no moves is final."""
        self.moves = moves

    def allows(self, old: State, new: State) -> bool:
        """Tell whether a thing in ``old`` may go to ``new``; staying is not a move and always allowed."""
        return old == new or new in self.moves[old]

    def final(self, state: State) -> bool:
        """Tell whether nothing follows ``state``."""
        return not self.moves[state]

    def move(self, row: Any, to: State) -> None:
        """Set ``row.state``, which the caller holds locked; raises :class:`Conflict` for a move not in the table."""
        if not self.allows(row.state, to):
            raise Conflict(f"{row.state} cannot become {to}")
        row.state = to
