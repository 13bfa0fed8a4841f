"""The search over repos: what is asked for, and the one statement that answers it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sqlalchemy import Integer, Select, Text, any_, bindparam, exists, literal_column, not_, select, true, union_all
from sqlalchemy.dialects.postgresql import ARRAY

from labctl import paging
from labctl.db import PREPARED, Reader, table
from labctl.paging import Listed, Page
from labctl.repos.models import Repo
from labctl.repos.queries import REPO_HISTORY, text_parameter, with_history

_repos = table(Repo)

#: What repos are chosen by, beside their distributions.
FILTERS = ("project", "ref", "sha1", "flavor", "status")


@dataclass(frozen=True)
class Wanted:
    """A distribution in a version, and perhaps an architecture, that a search asks for."""

    platform: str
    arch: str | None = None


@dataclass(frozen=True)
class Search:
    """Which repos are wanted: those with the given values that are for any of the distributions, if some are named."""

    values: dict[str, str] = field(default_factory=dict)
    wanted: Sequence[Wanted] = ()


def _of(repos: Any, names: tuple[str, ...]) -> list[Any]:
    return [repos.c[name] == text_parameter(name) for name in names]


def newest(session: Reader) -> Any:
    """Give something that changes when a repo is posted."""
    return session.execute(_NEWEST).first()


_NEWEST = paging.ordered(select(_repos.c.modified, _repos.c.id), _repos.c.modified).limit(1)
_NEWEST = _NEWEST.execution_options(**PREPARED)


def find(session: Reader, search: Search, page: Page, *, history: bool = False) -> Listed:
    """List the repos that are wanted, the last modified first."""
    # A repo must come once even if two of the distributions that are asked for are spellings of one.
    platforms: dict[str, list[str] | None] = {}
    for wanted in search.wanted:
        archs = platforms.setdefault(wanted.platform, [])
        if archs is not None:
            platforms[wanted.platform] = None if wanted.arch is None else [*archs, wanted.arch]
    parameters: dict[str, Any] = {**search.values, **page.parameters(), "reach": page.offset + page.count}
    for number, (platform, archs) in enumerate(platforms.items()):
        parameters |= {f"platform_{number}": platform, f"archs_{number}": archs}
    by_arch = tuple(archs is not None for archs in platforms.values())
    statement = _find(tuple(sorted(search.values)), by_arch, *page.kind())
    rows = session.execute(statement, parameters).all()
    return Listed.of(with_history(session, rows, REPO_HISTORY) if history else rows)


@lru_cache(maxsize=256)
def _find(names: tuple[str, ...], by_arch: tuple[bool, ...], offset: bool, after: bool) -> Select[Any]:
    """Select along the index of each distribution by itself, and merge what comes."""
    columns = (_repos.c.document, _repos.c.modified, _repos.c.id)
    query = select(*columns).where(*_of(_repos, names))
    if by_arch:
        parts = []
        for number, with_archs in enumerate(by_arch):
            part = query.where(_repos.c.platform == text_parameter(f"platform_{number}"))
            if with_archs:
                part = part.where(_repos.c.archs.overlap(bindparam(f"archs_{number}", type_=ARRAY(Text))))
            if after:
                part = part.where(paging.behind(_repos.c.modified))
            parts.append(paging.ordered(part, _repos.c.modified).limit(bindparam("reach", type_=Integer)))
        if len(parts) == 1 and not offset:
            return _if_usual(parts[0], by_arch)
        merged = union_all(*parts).subquery("merged")
        return paging.cut(select(merged), merged.c.modified, offset, after=False)
    return paging.cut(query, _repos.c.modified, offset, after).execution_options(**PREPARED)


@dataclass(frozen=True)
class Latest:
    """The repos of the newest commit that has all that is wanted, and that commit; empty if there is none."""

    listed: Listed
    sha1: str | None

    def __bool__(self) -> bool:
        """Tell whether there is one."""
        return bool(self.listed)


def latest(session: Reader, search: Search, page: Page, *, history: bool = False) -> Latest:
    """Find the newest commit; a commit is as new as the last modified of its repos that have the given values.

    With distributions: the newest commit that has a repo for each of them, and its newest repo for each, in the order
    asked. Without: the newest commit, and all of its repos, the last modified first.
    """
    names = tuple(sorted(search.values))
    if not search.wanted:
        parameters = {**search.values, **page.parameters()}
        rows = [tuple(row) for row in session.execute(_newest_commit(names, *page.kind()), parameters)]
    else:
        # Who asks for the same twice gets the same twice.
        different = list(dict.fromkeys(search.wanted))
        parameters = {**search.values, "near": NEAR}
        for number, wanted in enumerate(different):
            parameters |= {f"platform_{number}": wanted.platform, f"arch_{number}": wanted.arch}
        by_arch = tuple(wanted.arch is not None for wanted in different)
        found = session.execute(_complete_commit(names, by_arch), parameters).first()
        width = len(COLUMNS)
        places = [different.index(wanted) * width for wanted in search.wanted]
        rows = [] if found is None else [tuple(found[place : place + width]) for place in places]
    sha1 = rows[0][-1] if rows else None
    rows = [row[:-1] for row in rows]
    return Latest(Listed.of(with_history(session, rows, REPO_HISTORY) if history else rows), sha1)


def _if_usual(query: Select[Any], by_arch: tuple[bool, ...]) -> Select[Any]:
    """Have a statement prepared unless it asks for many distributions: there is room for so many on a connection."""
    return query.execution_options(**PREPARED) if len(by_arch) <= USUAL else query


#: As many distributions as clients ask for at once.
USUAL = 4
COLUMNS = ("document", "modified", "id", "sha1")


@lru_cache(maxsize=64)
def _newest_commit(names: tuple[str, ...], offset: bool, after: bool) -> Select[Any]:
    inner = _repos.alias("newest")
    sha1 = select(inner.c.sha1).where(*_of(inner, names))
    sha1 = paging.ordered(sha1, inner.c.modified).limit(1)
    query = select(*(_repos.c[column] for column in COLUMNS))
    query = query.where(*_of(_repos, names), _repos.c.sha1 == sha1.scalar_subquery())
    return paging.cut(query, _repos.c.modified, offset, after).execution_options(**PREPARED)


#: How many of the newest repos are looked at one by one; nearly always the commit is among those.
NEAR = 1000


def _wanted(names: tuple[str, ...], by_arch: tuple[bool, ...], number: int, repos: Any) -> list[Any]:
    """Give the conditions that a repo has the given values and is for one of the distributions."""
    conditions = [*_of(repos, names), repos.c.platform == text_parameter(f"platform_{number}")]
    return [*conditions, text_parameter(f"arch_{number}") == any_(repos.c.archs)] if by_arch[number] else conditions


@lru_cache(maxsize=256)
def _complete_commit(names: tuple[str, ...], by_arch: tuple[bool, ...]) -> Select[Any]:
    """Find the newest commit that has a repo for each distribution, and its newest repo for each.

    First among the newest repos, one by one. If it is not there, some distribution is not built any more, or none of
    the commits has all of them: then among the commits that have the first one.
    """
    possible = []
    for number in range(len(by_arch)):
        repos = _repos.alias()
        # Without this, a distribution that nothing is built for would cost a walk over all there is.
        possible.append(exists(select(repos.c.id).where(*_wanted(names, by_arch, number, repos))))

    def has(number: int, sha1: Any) -> Any:
        repos = _repos.alias()
        query = select(repos.c.id).where(*_wanted(names, by_arch, number, repos), repos.c.sha1 == sha1)
        # With an offset the planner leaves it to be asked for one commit after the other.
        return exists(query.offset(literal_column("0")))

    numbers = range(len(by_arch))
    near = _near(names, lambda sha1: [*possible, *(has(number, sha1) for number in numbers)]).cte("near")
    first = _repos.alias("first")
    others = [has(number, first.c.sha1) for number in numbers[1:]]
    conditions = [*_wanted(names, by_arch, 0, first), *possible, not_(exists(select(near.c.sha1))), *others]
    far = _far(first, conditions, names).subquery("far")
    commit = union_all(select(near.c.sha1), select(far.c.sha1)).limit(1).cte("chosen")
    source: Any = commit
    columns: list[Any] = []
    for number in numbers:
        repos = _repos.alias(f"repos_{number}")
        one: Any = select(*(repos.c[column] for column in COLUMNS)).where(*_wanted(names, by_arch, number, repos))
        one = paging.ordered(one.where(repos.c.sha1 == commit.c.sha1), repos.c.modified)
        one_of = one.limit(1).lateral(f"one_{number}")
        source = source.join(one_of, true())
        columns += [one_of.c[column] for column in COLUMNS]
    return _if_usual(select(*columns).select_from(source), by_arch)


def _near(names: tuple[str, ...], conditions: Callable[[Any], list[Any]]) -> Select[Any]:
    """Select the commit of the newest repo whose commit fulfils the conditions, among the :data:`NEAR` newest repos."""
    repos = _repos.alias("walked")
    newest = select(repos.c.sha1, repos.c.modified, repos.c.id).where(*_of(repos, names))
    few = paging.ordered(newest, repos.c.modified).limit(bindparam("near", type_=Integer)).subquery("few")
    return paging.ordered(select(few.c.sha1).where(*conditions(few.c.sha1)), few.c.modified).limit(1)


def _far(repos: Any, conditions: list[Any], names: tuple[str, ...]) -> Select[Any]:
    """Select the newest commit of the repos that fulfil the conditions."""
    commits = select(repos.c.sha1).where(*conditions).distinct().subquery("commits")
    last = _repos.alias("last")
    age = select(last.c.modified, last.c.id).where(*_of(last, names), last.c.sha1 == commits.c.sha1)
    age_of = paging.ordered(age, last.c.modified).limit(1).lateral("age")
    source: Any = commits.join(age_of, true())
    return paging.ordered(select(commits.c.sha1).select_from(source), age_of.c.modified).limit(1)
