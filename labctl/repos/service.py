"""The verbs of repos and builds: posting and removing them.

Locks are taken in one order: a repo or a build, then the row of its commit. Each verb is one statement, so that what
is posted, its history, the counts of its commit and the event are there together, or not at all.
"""

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    DateTime,
    Integer,
    Select,
    Text,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    insert,
    literal_column,
    not_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import PREPARED, Lock, table
from labctl.errors import Invalid, NotFound
from labctl.events.service import as_part, part_values, record_all
from labctl.repos import distros
from labctl.repos.models import Build, BuildStatusChange, Commit, Project, Repo, RepoStatusChange
from labctl.repos.states import BuildStatus, RepoStatus

_projects = table(Project)
_commits = table(Commit)
_repos = table(Repo)
_builds = table(Build)

#: The flavor of what is posted without one.
DEFAULT_FLAVOR = "default"


def _text(name: str) -> Any:
    # A parameter with the name of a column would be taken for a new value of it.
    return bindparam(f"given_{name}", type_=Text)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {f"given_{name}": value for name, value in values.items()}


# Cast, for where the server cannot see the type of a parameter.
_now = cast(bindparam("now"), DateTime(timezone=True))
_given_archs = bindparam("given_archs", type_=ARRAY(Text))


def _history(changes: Any, owner: str, changed: CTE) -> CTE:
    """Keep a status with its time; where it has not changed, its number is taken already."""
    rows = select(changed.c.id, changed.c.changes, changed.c.status, changed.c.modified)
    statement = upsert(changes).from_select([owner, "number", "status", "at"], rows)
    return statement.on_conflict_do_nothing().cte("history")


def _project(added: CTE) -> CTE:
    """Add the project of something that was added, if it is the first."""
    rows = select(_text("project")).where(exists(select(added.c.id).where(added.c.added)))
    return upsert(_projects).from_select(["name"], rows).on_conflict_do_nothing().cte("project")


def _commit(added: CTE, counted: str) -> CTE:
    """Count something that was added."""
    rows = select(_text("project"), _text("ref"), _text("sha1"), literal_column("1")).where(
        exists(select(added.c.id).where(added.c.added))
    )
    statement = upsert(_commits).from_select(["project", "ref", "sha1", counted], rows)
    more = {counted: _commits.c[counted] + 1}
    return statement.on_conflict_do_update(index_elements=["project", "ref", "sha1"], set_=more).cte("counted")


def _with_the_rest(posted: CTE, history: CTE, counted: str) -> Select[Any]:
    """Make one statement of what is posted, its history, its project and commit, and the event."""
    query = select(posted.c.id).add_cte(history, _project(posted), _commit(posted, counted), as_part())
    return query.execution_options(**PREPARED)


@dataclass(frozen=True, kw_only=True)
class RepoReport:
    """What a storage node says about a repo; None is what it has not said."""

    node_url: str
    ref: str | None = None
    sha1: str | None = None
    distro: str | None = None
    distro_version: str | None = None
    status: str | None = None
    url: str | None = None
    flavor: str | None = None
    #: A JSON object as text.
    extra: str | None = None
    archs: list[str] | None = None


#: What a repo must have when it is posted first, beside its URL on its storage node.
REPO_NEEDS = ("ref", "sha1", "distro", "distro_version", "status")

# New architectures come behind those that are known; none is ever taken away.
_merged_archs = _repos.c.archs + func.array(
    select(literal_column("arch", Text))
    .select_from(func.unnest(_given_archs).table_valued("arch", with_ordinality="place").render_derived(name="given"))
    # By its name: SQLAlchemy would select from the table once more.
    .where(literal_column("arch", Text) != func.all(literal_column("repos.archs", ARRAY(Text))))
    .order_by(literal_column("place"))
    .scalar_subquery()
)
_CHANGES = {
    "status": func.coalesce(_text("status"), _repos.c.status),
    "url": func.coalesce(_text("url"), _repos.c.url),
    "extra": func.coalesce(_text("extra"), _repos.c.extra),
    "archs": case((_given_archs.is_(None), _repos.c.archs), else_=_merged_archs),
    # Of two reports at once, the later one may be the one that was made first.
    "modified": func.greatest(_now, _repos.c.modified),
    "changes": _repos.c.changes + cast(func.coalesce(_text("status"), _repos.c.status) != _repos.c.status, Integer),
}
_RETURNED = (_repos.c.id, _repos.c.status, _repos.c.changes, _repos.c.modified)
_posted = (
    upsert(_repos)
    .values(
        {
            **{name: _text(name) for name in ("node_url", "project", "ref", "sha1", "flavor", "distro", "status")},
            **{name: _text(name) for name in ("version", "distro_version", "distro_codename", "platform")},
            "url": func.coalesce(_text("url"), ""),
            "extra": func.coalesce(_text("extra"), "{}"),
            "archs": func.coalesce(_given_archs, literal_column("'{}'::text[]")),
            "modified": _now,
        }
    )
    .on_conflict_do_update(index_elements=["node_url"], set_=_CHANGES)
    # A row version that nobody has replaced yet was inserted.
    .returning(*_RETURNED, literal_column("xmax = 0", Boolean).label("added"))
    .cte("posted")
)
_POST_REPO = _with_the_rest(_posted, _history(table(RepoStatusChange), "repo_id", _posted), "repos")
_changed = update(_repos).where(_repos.c.node_url == _text("node_url")).values(_CHANGES).returning(*_RETURNED)
_known = _changed.cte("changed")
_CHANGE_REPO = (
    select(_known.c.id)
    .add_cte(_history(table(RepoStatusChange), "repo_id", _known), as_part(exists(select(_known.c.id))))
    .execution_options(**PREPARED)
)


def post_repo(session: Session, project: str, report: RepoReport) -> None:
    """Add a repo, or change what a report says of the one that is known by that URL on its storage node.

    The status ``deleted`` removes it. Raises :class:`Invalid` that names what is missing if the repo is not known.
    """
    missing = [name for name in REPO_NEEDS if getattr(report, name) is None]
    if report.status == RepoStatus.DELETED:
        if not _remove(session, _repos.c.node_url == report.node_url) and missing:
            raise _unknown(missing)
        return
    part = part_values(session, "repo.posted", f"repos/{report.node_url}", status=report.status)
    values = {**asdict(report), "project": project}
    if missing:
        if session.execute(_CHANGE_REPO, {**_given(values), **part, "now": clock.now()}).first() is None:
            raise _unknown(missing)
        return
    assert report.distro is not None and report.distro_version is not None
    version = distros.resolve(report.distro, report.distro_version)
    values |= {
        "flavor": report.flavor or DEFAULT_FLAVOR,
        "version": report.distro_version,
        "distro_version": version.number,
        "distro_codename": version.codename,
        "platform": version.platform,
    }
    session.execute(_POST_REPO, {**_given(values), **part, "now": clock.now()})


def _unknown(missing: list[str]) -> Invalid:
    return Invalid(f"this repo is not known yet; to add it, send also {', '.join(missing)}")


@dataclass(frozen=True)
class Leaf:
    """The repos of one commit in one flavor for one version of a distribution."""

    project: str
    ref: str
    sha1: str
    platform: str
    flavor: str = DEFAULT_FLAVOR


def remove_repos(session: Session, leaf: Leaf) -> None:
    """Remove the repos of a leaf; raises :class:`NotFound` if there are none."""
    if not _remove(session, *(_repos.c[name] == value for name, value in asdict(leaf).items())):
        raise NotFound("there is no such repo")


def _remove(session: Session, *conditions: ColumnElement[bool]) -> bool:
    """Remove repos of one commit; tells whether there were any."""
    held = select(_repos.c.id).where(*conditions).order_by(_repos.c.id).with_for_update().cte("held")
    same = ("project", "ref", "sha1")
    gone = (
        delete(_repos)
        .where(_repos.c.id.in_(select(held.c.id)))
        .returning(_repos.c.node_url, *(_repos.c[name] for name in same))
        .cte("gone")
    )
    count = select(*(gone.c[name] for name in same), func.count().label("count")).group_by(
        *(gone.c[name] for name in same)
    )
    less = count.subquery("less")
    counted = (
        update(_commits)
        .where(*(_commits.c[name] == less.c[name] for name in same))
        .values(repos=_commits.c.repos - less.c.count)
        .returning(_commits.c.id, (_commits.c.repos + _commits.c.builds).label("left"))
        .cte("counted")
    )
    both = gone.join(counted, true())
    removed = session.execute(select(gone.c.node_url, counted.c.id, counted.c.left).select_from(both)).all()
    if not removed:
        return False
    record_all(session, [("repo.removed", f"repos/{row.node_url}", {}) for row in removed])
    if removed[0].left == 0:
        # Unless somebody has added something meanwhile.
        empty = (_commits.c.id == removed[0].id, _commits.c.repos == 0, _commits.c.builds == 0)
        session.execute(delete(_commits).where(*empty))
    return True


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What a build job says about its build; None is what it has not said."""

    url: str
    ref: str
    sha1: str
    status: str
    log_url: str | None = None
    flavor: str = DEFAULT_FLAVOR
    #: A JSON object as text.
    extra: str | None = None
    distro: str | None = None
    distro_version: str | None = None
    distro_arch: str | None = None


_SAME = ("project", "ref", "sha1", "flavor", "platform")
_found = (
    select(_builds.c.id)
    .where(
        *(_builds.c[name] == _text(name) for name in _SAME),
        func.coalesce(_builds.c.distro_arch, "") == func.coalesce(_text("distro_arch"), ""),
        (_builds.c.status == BuildStatus.QUEUED) | (_builds.c.url == _text("url")),
    )
    .order_by((_builds.c.status == BuildStatus.QUEUED).desc(), _builds.c.id)
    .limit(1)
    .cte("found")
)
_completed = case((_text("status") == BuildStatus.COMPLETED, _now), else_=None)
_BUILD_RETURNED = (_builds.c.id, _builds.c.status, _builds.c.changes, _builds.c.modified)
_updated_build = (
    update(_builds)
    .where(_builds.c.id == _found.c.id)
    .values(
        url=_text("url"),
        status=_text("status"),
        log_url=func.coalesce(_text("log_url"), _builds.c.log_url),
        extra=func.coalesce(_text("extra"), _builds.c.extra),
        modified=_now,
        completed=func.coalesce(_completed, _builds.c.completed),
        changes=_builds.c.changes + cast(_builds.c.status != _text("status"), Integer),
    )
    .returning(*_BUILD_RETURNED, literal_column("false", Boolean).label("added"))
    .cte("updated_build")
)
_BUILD_COLUMNS = (*_SAME, "url", "status", "log_url", "distro", "distro_version", "distro_codename", "distro_arch")
_added_build = (
    insert(_builds)
    .from_select(
        [*_BUILD_COLUMNS, "extra", "modified", "started", "completed"],
        select(
            *(_text(name) for name in _BUILD_COLUMNS),
            func.coalesce(_text("extra"), "{}"),
            _now,
            _now,
            _completed,
        ).where(not_(exists(select(_found.c.id)))),
    )
    .returning(*_BUILD_RETURNED, literal_column("true", Boolean).label("added"))
    .cte("added_build")
)
_posted_build = select(_updated_build).union_all(select(_added_build)).cte("posted_build")
_POST_BUILD = _with_the_rest(_posted_build, _history(table(BuildStatusChange), "build_id", _posted_build), "builds")
#: One report of a build after the other, so that two first ones make one build.
_LOCK_BUILD = select(func.pg_advisory_xact_lock(int(Lock.BUILD), func.hashtext(_text("build")))).execution_options(
    **PREPARED
)


def post_build(session: Session, project: str, report: BuildReport) -> None:
    """Add a build or change it.

    A report is of the queued build of the same commit, flavor, distribution and architecture, whatever its URL, for a
    build has another one while it waits; else of the one with the same URL, too; else of a new one.
    """
    values: dict[str, Any] = {
        **asdict(report),
        "project": project,
        "distro_codename": None,
        "platform": "",
    }
    if report.distro and report.distro_version:
        version = distros.resolve(report.distro, report.distro_version)
        values["platform"] = version.platform
        values["distro_version"], values["distro_codename"] = version.number, version.codename
    elif report.distro or report.distro_version:
        values["platform"] = f"{report.distro or ''}/{report.distro_version or ''}".lower()
    same = "\n".join([*(values[name] for name in _SAME), report.distro_arch or ""])
    session.execute(_LOCK_BUILD, {"given_build": same})
    subject = f"builds/{project}/{report.ref}/{report.sha1}"
    part = part_values(session, "build.posted", subject, status=report.status, url=report.url)
    session.execute(_POST_BUILD, {**_given(values), **part, "now": clock.now()})
