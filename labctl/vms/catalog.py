"""The pools of the configuration, found by their names and aliases; and dealing out what they have."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from labctl.pools import Pool


@dataclass(frozen=True)
class Asked:
    """So many VMs under one name, out of any of the pools that have this name."""

    name: str
    pools: tuple[str, ...]
    count: int


class Catalog:
    """The pools in the order of the configuration."""

    def __init__(self, pools: Iterable[Pool], domain: str = "") -> None:
        """``domain`` is that of the pools that name none."""
        self.pools: dict[str, Pool] = {pool.name: pool for pool in pools}
        self.domain = domain
        self._named: dict[str, list[str]] = {name: [name] for name in self.pools}
        for pool in self.pools.values():
            for alias in pool.alias:
                pools_so_far = self._named.setdefault(alias, [])
                if pool.name not in pools_so_far:
                    pools_so_far.append(pool.name)

    def named(self, name: str) -> tuple[str, ...]:
        """Name the pools that ``name`` stands for: the one that is called so, then those that have it as an alias."""
        return tuple(self._named.get(name, ()))

    def unknown(self, names: Iterable[str]) -> list[str]:
        """List those of ``names`` that no pool has."""
        return [name for name in names if name not in self._named]

    def asked(self, counts: Mapping[str, int]) -> list[Asked]:
        """Say which pools each name stands for, leaving out what nothing is wanted of; all names are known."""
        return [Asked(name, self.named(name), count) for name, count in counts.items() if count]

    def domain_of(self, pool: str) -> str:
        """Give the domain of a pool's VMs, empty if they have none."""
        own = self.pools[pool].domain
        return self.domain if own is None else own


def share_pools(asked: Sequence[Asked]) -> bool:
    """Tell whether two of the names could take from the same pool."""
    return sum(len(each.pools) for each in asked) > len({pool for each in asked for pool in each.pools})


#: How many VMs each name gets out of each pool.
Dealt = dict[str, dict[str, int]]


def deal(asked: Sequence[Asked], free: Mapping[str, int]) -> Dealt | None:
    """Say out of which pools each name is served, or None if what is ``free`` is too little however it is dealt.

    Where several names share pools, what one takes may be moved to another of its pools for the sake of the others
    (augmenting paths), so that nobody is refused because of the order in which names were looked at.
    """
    left = dict(free)
    dealt: Dealt = {each.name: {} for each in asked}
    pools = {each.name: each.pools for each in asked}
    for each in asked:
        missing = each.count
        while missing:
            path = _path(each.name, pools, dealt, left)
            if path is None:
                return None
            missing -= _follow(path, dealt, left, missing)
    return dealt


#: From the name that needs more: pool, the name that has of it, another pool of that name..., to a pool with some left.
_Path = list[str]


def _path(start: str, pools: Mapping[str, tuple[str, ...]], dealt: Dealt, left: Mapping[str, int]) -> _Path | None:
    """Find the shortest way for ``start`` to get one more."""
    ways: deque[_Path] = deque([[start]])
    seen: set[str] = set()
    while ways:
        way = ways.popleft()
        for pool in pools[way[-1]]:
            if pool in seen:
                continue
            seen.add(pool)
            if left.get(pool, 0):
                return [*way, pool]
            ways.extend([*way, pool, name] for name, has in dealt.items() if has.get(pool))
    return None


def _follow(path: _Path, dealt: Dealt, left: dict[str, int], most: int) -> int:
    """Move as many as the way allows; gives how many those were."""
    names, through = path[::2], path[1::2]
    number = min(
        most, left[through[-1]], *(dealt[name][pool] for name, pool in zip(names[1:], through[:-1], strict=True))
    )
    left[through[-1]] -= number
    for name, pool in zip(names, through, strict=True):
        dealt[name][pool] = dealt[name].get(pool, 0) + number
    for name, pool in zip(names[1:], through[:-1], strict=True):
        dealt[name][pool] -= number
    return number
