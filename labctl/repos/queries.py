"""Reading repos and builds, along the tree of URLs: lists come as JSON text that is passed through."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from itertools import pairwise
from typing import Any

import orjson
from sqlalchemy import ARRAY, BigInteger, Integer, Select, Text, any_, bindparam, cast, exists, func, select
from sqlalchemy.dialects.postgresql import distinct_on

from labctl import paging
from labctl.db import PREPARED, Reader, table
from labctl.paging import Listed, Page
from labctl.repos.models import Build, BuildStatusChange, Commit, Project, Repo, RepoStatusChange
from labctl.repos.states import RepoStatus

_projects = table(Project)
_commits = table(Commit)
_repos = table(Repo)
_builds = table(Build)


def text_parameter(name: str) -> Any:
    """Give a parameter of a statement that is a text."""
    return bindparam(name, type_=Text)


#: In the place of a commit: the newest one that is ready.
LATEST = "latest"


def projects(session: Reader) -> list[str]:
    """List the names of all projects, sorted."""
    return list(session.scalars(select(_projects.c.name).order_by(_projects.c.name)))


_KNOWN = select(exists().where(_projects.c.name == bindparam("project"))).execution_options(**PREPARED)


def is_project(session: Reader, name: str) -> bool:
    """Tell whether there is such a project."""
    return bool(session.scalar(_KNOWN, {"project": name}))


def _distinct(name: str, counted: str) -> Any:
    """Give the different values of a column of commits by project, as one JSON list each."""
    different = select(_commits.c.project, _commits.c[name]).where(_commits.c[counted] > 0).distinct().subquery()
    values = different.c[name]
    return select(
        different.c.project, cast(func.json_agg(values).filter(values.is_not(None)), Text).label("names")
    ).group_by(different.c.project)


def _all(counted: str, *names: str) -> Select[Any]:
    query = select(_projects.c.name)
    source: Any = _projects
    for name in names:
        lists = _distinct(name, counted).subquery()
        query = query.add_columns(func.coalesce(lists.c.names, "[]"))
        source = source.outerjoin(lists, lists.c.project == _projects.c.name)
    return query.select_from(source).order_by(_projects.c.name)


_ALL_REPOS = _all("repos", "ref", "sha1")
_ALL_BUILDS = _all("builds", "ref")


def all_repos(session: Reader) -> list[tuple[str, str, str]]:
    """List the projects, each with its refs and its commits that have repos, as JSON lists."""
    return [(name, refs, sha1s) for name, refs, sha1s in session.execute(_ALL_REPOS)]


def all_builds(session: Reader) -> list[tuple[str, str]]:
    """List the projects, each with its refs that have builds, as a JSON list."""
    return [(name, refs) for name, refs in session.execute(_ALL_BUILDS)]


def _refs(counted: str) -> Select[Any]:
    """Jump through the index from ref to ref: it costs as much as there are refs, however many commits."""
    some = (_commits.c.project == bindparam("project", type_=Text), _commits.c[counted] > 0)
    refs = select(func.min(_commits.c.ref).label("ref")).where(*some).cte("refs", recursive=True)
    following = select(func.min(_commits.c.ref)).where(*some, _commits.c.ref > refs.c.ref).scalar_subquery()
    refs = refs.union_all(select(following).where(refs.c.ref.is_not(None)))
    return select(refs.c.ref).where(refs.c.ref.is_not(None)).execution_options(**PREPARED)


_REFS = {"repos": _refs("repos"), "builds": _refs("builds")}


def refs(session: Reader, project: str, having: str) -> list[str]:
    """List the refs of a project that have ``repos`` or ``builds``, sorted."""
    return list(session.scalars(_REFS[having], {"project": project}))


@dataclass(frozen=True)
class Commits:
    """A part of the commits of a ref, and the id of the last, from where the list goes on."""

    sha1s: list[str]
    last: int | None


def commits(session: Reader, project: str, ref: str, having: str, count: int, before: int | None) -> Commits:
    """List the commits of a ref that have ``repos`` or ``builds``, the last posted first."""
    parameters = {"project": project, "ref": ref, "count": count, "before": before}
    rows = session.execute(_commits_of(having, before is not None), parameters).all()
    return Commits([row.sha1 for row in rows], rows[-1].id if rows else None)


@cache
def _commits_of(having: str, before: bool) -> Select[Any]:
    query = (
        select(_commits.c.sha1, _commits.c.id)
        .where(_commits.c.project == bindparam("project"), _commits.c.ref == bindparam("ref"), _commits.c[having] > 0)
        .order_by(_commits.c.id.desc())
        .limit(bindparam("count", type_=Integer))
    )
    if before:
        query = query.where(_commits.c.id < bindparam("before", type_=BigInteger))
    return query.execution_options(**PREPARED)


@dataclass(frozen=True)
class Place:
    """A place in the tree of URLs: as many of these as the path has named; ``sha1`` may be :data:`LATEST`."""

    project: str
    ref: str
    sha1: str
    distro: str | None = None
    platform: str | None = None
    flavor: str | None = None

    def shape(self) -> tuple[bool, tuple[str, ...]]:
        """Tell which conditions there are, whatever their values."""
        narrower = [name for name in ("distro", "platform", "flavor") if getattr(self, name) is not None]
        return self.sha1 == LATEST, tuple(narrower)

    def parameters(self) -> dict[str, Any]:
        """Give the values for the conditions."""
        return {**asdict(self), "distro": f"{self.distro}/".lower()}


def _named(repos: Any, names: tuple[str, ...]) -> list[Any]:
    """Give the conditions that a repo is of what the path has named."""
    conditions = [repos.c[name] == text_parameter(name) for name in ("project", "ref", *names) if name != "distro"]
    if "distro" in names and "platform" not in names:
        conditions.append(func.starts_with(repos.c.platform, text_parameter("distro")))
    return conditions


def _at(latest: bool, names: tuple[str, ...]) -> list[Any]:
    """Give the conditions that a repo is at a place; the latest commit is that of the newest ready repo there."""
    if not latest:
        return [*_named(_repos, names), _repos.c.sha1 == text_parameter("sha1")]
    newest = _repos.alias("newest")
    sha1 = select(newest.c.sha1).where(*_named(newest, names), newest.c.status == RepoStatus.READY)
    sha1 = paging.ordered(sha1, newest.c.modified).limit(1)
    return [*_named(_repos, names), _repos.c.sha1 == sha1.scalar_subquery()]


def values(session: Reader, place: Place, column: str) -> list[str]:
    """List what the repos at a place have in a column, sorted; of spellings of one thing the first that was posted."""
    return list(session.scalars(_values(*place.shape(), column), place.parameters()))


@cache
def _values(latest: bool, names: tuple[str, ...], column: str) -> Select[Any]:
    same = {"distro": func.split_part(_repos.c.platform, "/", 1), "version": _repos.c.platform}
    key = same.get(column, _repos.c[column])
    query = select(_repos.c[column]).where(*_at(latest, names)).order_by(key, _repos.c.id)
    return query.ext(distinct_on(key)).execution_options(**PREPARED)


def repos_at(session: Reader, place: Place, page: Page, *, history: bool = False) -> Listed:
    """List the repos at a place, the last modified first."""
    statement = _repos_at(*place.shape(), *page.kind())
    rows = session.execute(statement, place.parameters() | page.parameters()).all()
    return Listed.of(with_history(session, rows, REPO_HISTORY) if history else rows)


@cache
def _repos_at(latest: bool, names: tuple[str, ...], offset: bool, after: bool) -> Select[Any]:
    query = select(_repos.c.document, _repos.c.modified, _repos.c.id).where(*_at(latest, names))
    return paging.cut(query, _repos.c.modified, offset, after).execution_options(**PREPARED)


@dataclass(frozen=True)
class Urls:
    """Where a repo is: its own page on its storage node, and its packages."""

    node_url: str
    url: str


def ready(session: Reader, place: Place, arch: str | None) -> Urls | None:
    """Find the newest ready repo at a place, with an architecture if one is asked for; None if there is none."""
    statement = _ready(*place.shape(), arch is not None)
    row = session.execute(statement, place.parameters() | {"arch": arch}).first()
    return None if row is None else Urls(row.node_url, row.url)


@cache
def _ready(latest: bool, names: tuple[str, ...], arch: bool) -> Select[Any]:
    query = select(_repos.c.node_url, _repos.c.url)
    query = query.where(*_at(latest, names), _repos.c.status == RepoStatus.READY)
    if arch:
        query = query.where(text_parameter("arch") == any_(_repos.c.archs))
    return paging.ordered(query, _repos.c.modified).limit(1).execution_options(**PREPARED)


def builds(session: Reader, project: str, ref: str, sha1: str, page: Page, *, history: bool = False) -> Listed:
    """List the builds of a commit, the last modified first."""
    parameters = {"project": project, "ref": ref, "sha1": sha1} | page.parameters()
    rows = session.execute(_builds_of(*page.kind()), parameters).all()
    return Listed.of(with_history(session, rows, BUILD_HISTORY) if history else rows)


@cache
def _builds_of(offset: bool, after: bool) -> Select[Any]:
    query = select(_builds.c.document, _builds.c.modified, _builds.c.id)
    query = query.where(*(_builds.c[name] == text_parameter(name) for name in ("project", "ref", "sha1")))
    return paging.cut(query, _builds.c.modified, offset, after).execution_options(**PREPARED)


def _history(changes: Any, owner: str) -> Select[Any]:
    owners = changes.c[owner]
    ids = bindparam("ids", type_=ARRAY(BigInteger))
    query = select(owners, changes.c.status, changes.c.at).where(owners == any_(ids))
    return query.order_by(owners, changes.c.number)


REPO_HISTORY = _history(table(RepoStatusChange), "repo_id")
BUILD_HISTORY = _history(table(BuildStatusChange), "build_id")


def with_history(session: Reader, rows: Sequence[Any], history: Select[Any]) -> list[tuple[str, datetime, int]]:
    """Put into documents, each the first of a row of document, time, id, what statuses there were, when, how long."""
    changes: dict[int, list[tuple[str, datetime]]] = {}
    for owner, status, at in session.execute(history, {"ids": [row[2] for row in rows]}):
        changes.setdefault(owner, []).append((status, at))
    told = {owner: orjson.dumps(_told(of_owner)).decode() for owner, of_owner in changes.items()}
    # One that was removed meanwhile has none any more.
    return [(f'{document[:-1]},"history":{told.get(owner, "[]")}}}', time, owner) for document, time, owner in rows]


def _told(changes: list[tuple[str, datetime]]) -> list[dict[str, Any]]:
    """Tell each status with the time it came and for how many seconds it stayed, null for the present one."""
    told: list[dict[str, Any]] = [{"status": word, "at": f"{at:{_TIME}}", "seconds": None} for word, at in changes]
    for entry, ((_, at), (_, end)) in zip(told, pairwise(changes), strict=False):
        entry["seconds"] = (end - at).total_seconds()
    return told


#: How repos and builds spell times; the database hands them over in UTC.
_TIME = "%Y-%m-%d %H:%M:%S.%f+00:00"
