"""The verbs of repos and builds, and what follows from them: counts, lists, histories, events."""

import json
from collections import Counter
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from labctl import db
from labctl.errors import Invalid, NotFound
from labctl.events.models import Event
from labctl.paging import Page
from labctl.repos import queries, service
from labctl.repos.models import Build, BuildStatusChange, Commit, Project, Repo, RepoStatusChange
from labctl.repos.queries import Place
from labctl.repos.service import BuildReport, Leaf, RepoReport
from tests.repos.factories import undone

WHOLE = RepoReport(
    node_url="https://c/1", ref="main", sha1="aa", distro="ubuntu", distro_version="jammy", status="ready"
)
BUILD = BuildReport(url="https://j/1", ref="main", sha1="aa", status="started")
LEAF = Leaf("ceph", "main", "aa", "ubuntu/22.04")


def post(session: Session, project: str = "ceph", **changes: Any) -> None:
    service.post_repo(session, project, replace(WHOLE, **changes))


def post_build(session: Session, project: str = "ceph", **changes: Any) -> None:
    service.post_build(session, project, replace(BUILD, **changes))


def fresh(session: Session, model: Any) -> list[Any]:
    return list(session.scalars(select(model).order_by("id").execution_options(populate_existing=True)))


def counts(session: Session) -> dict[tuple[str, str, str], tuple[int, int]]:
    return {(each.project, each.ref, each.sha1): (each.repos, each.builds) for each in fresh(session, Commit)}


def real_counts(session: Session) -> dict[tuple[str, str, str], tuple[int, int]]:
    repos, builds = (Counter((each.project, each.ref, each.sha1) for each in fresh(session, m)) for m in (Repo, Build))
    return {commit: (repos[commit], builds[commit]) for commit in repos.keys() | builds.keys()}


def test_a_new_repo_is_there_with_its_project_commit_history_and_event(session: Session, stopped_clock: Any) -> None:
    post(session, archs=["x86_64"], extra='{"a":1}', flavor="crimson")
    (repo,) = fresh(session, Repo)
    assert (repo.platform, repo.version, repo.distro_version, repo.distro_codename) == (
        "ubuntu/22.04",
        "jammy",
        "22.04",
        "jammy",
    )
    assert (repo.flavor, repo.archs, repo.extra, repo.url) == ("crimson", ["x86_64"], '{"a":1}', "")
    assert repo.modified == stopped_clock.time
    assert counts(session) == {("ceph", "main", "aa"): (1, 0)}
    assert session.scalars(select(Project.name)).all() == ["ceph"]
    (change,) = session.scalars(select(RepoStatusChange))
    assert (change.repo_id, change.number, change.status, change.at) == (repo.id, 0, "ready", stopped_clock.time)
    (event,) = session.scalars(select(Event))
    assert (event.kind, event.subject, event.data) == ("repo.posted", "repos/https://c/1", {"status": "ready"})


def test_the_stored_document_says_what_the_columns_say(session: Session) -> None:
    strange = 'a "quoted" \\ back/slash <ä> 😀'
    post(session, ref=strange, sha1=strange, distro=strange, distro_version=strange, status=strange, flavor=strange)
    (repo,) = fresh(session, Repo)
    document = json.loads(repo.document)
    assert document.pop("modified") == f"{repo.modified:%Y-%m-%d %H:%M:%S.%f}+00:00"
    assert document == {
        "url": "",
        "chacra_url": "https://c/1",
        **dict.fromkeys(("ref", "sha1", "distro", "status", "flavor", "distro_codename"), strange),
        "distro_version": None,
        "project": "ceph",
        "archs": [],
        "extra": {},
    }
    post_build(session, ref=strange, sha1=strange, distro=strange, distro_arch=strange, log_url="https://l")
    (build,) = fresh(session, Build)
    document = json.loads(build.document)
    for key in ("modified", "started"):
        assert document.pop(key) == f"{getattr(build, key):%Y-%m-%d %H:%M:%S.%f}+00:00"
    assert document == {
        "url": "https://j/1",
        "log_url": "https://l",
        **dict.fromkeys(("ref", "sha1", "distro", "distro_arch"), strange),
        "flavor": "default",
        "status": "started",
        "extra": {},
        "completed": None,
        "project": "ceph",
        "distro_version": None,
        "distro_codename": None,
    }


def test_times_are_shown_in_utc_whatever_the_zone_of_the_connection(session: Session) -> None:
    at = datetime.fromisoformat("2026-07-01T00:30:00.000001+02:00")
    session.execute(text("SET LOCAL timezone = 'Asia/Kathmandu'"))
    post(session)
    session.execute(text("UPDATE repos SET modified = :at"), {"at": at})
    assert json.loads(fresh(session, Repo)[0].document)["modified"] == "2026-06-30 22:30:00.000001+00:00"


@pytest.mark.parametrize("missing", service.REPO_NEEDS)
def test_an_unknown_repo_that_lacks_something_is_refused_by_its_name_and_nothing_is_written(
    session: Session, missing: str
) -> None:
    with pytest.raises(Invalid, match=rf"\b{missing}$"):
        post(session, **{missing: None})
    for model in (Repo, Commit, Project, Event, RepoStatusChange):
        assert session.scalar(select(func.count()).select_from(model)) == 0


def test_a_partial_report_of_a_known_repo_is_recorded_with_what_it_says(session: Session) -> None:
    post(session)
    service.post_repo(session, "other", RepoReport(node_url="https://c/1", extra='{"b":2}'))
    (repo,) = fresh(session, Repo)
    assert (repo.project, repo.status, repo.extra) == ("ceph", "ready", '{"b":2}')
    assert [event.kind for event in session.scalars(select(Event))] == ["repo.posted"] * 2
    assert counts(session) == {("ceph", "main", "aa"): (1, 0)}


def test_a_leaf_that_is_removed_takes_its_histories_along_and_records_each_repo(session: Session) -> None:
    for number in (1, 2, 3):
        post(session, node_url=f"https://c/{number}", flavor="crimson" if number == 3 else None)
    service.remove_repos(session, LEAF)
    (left,) = fresh(session, Repo)
    assert left.node_url == "https://c/3"
    assert session.scalars(select(RepoStatusChange.repo_id)).all() == [left.id]
    assert counts(session) == {("ceph", "main", "aa"): (1, 0)}
    removed = session.scalars(select(Event.subject).where(Event.kind == "repo.removed")).all()
    assert sorted(removed) == ["repos/https://c/1", "repos/https://c/2"]


def test_a_commit_goes_with_its_last_repo_unless_it_has_builds(session: Session) -> None:
    post(session)
    post(session, node_url="https://c/2")
    post(session, node_url="https://c/3", sha1="bb")
    post_build(session, sha1="bb")
    post(session, status="deleted")
    assert counts(session) == {("ceph", "main", "aa"): (1, 0), ("ceph", "main", "bb"): (1, 1)}
    post(session, node_url="https://c/2", status="deleted")
    assert counts(session) == {("ceph", "main", "bb"): (1, 1)}
    service.remove_repos(session, replace(LEAF, sha1="bb"))
    assert counts(session) == {("ceph", "main", "bb"): (0, 1)}
    assert session.scalars(select(Project.name)).all() == ["ceph"]


@pytest.mark.parametrize(
    "leaf",
    [
        replace(LEAF, project="other"),
        replace(LEAF, ref="other"),
        replace(LEAF, sha1="other"),
        replace(LEAF, sha1="latest"),
        replace(LEAF, platform="ubuntu/24.04"),
        replace(LEAF, flavor="other"),
    ],
)
def test_a_leaf_without_repos_cannot_be_removed(session: Session, leaf: Leaf) -> None:
    post(session)
    with pytest.raises(NotFound):
        service.remove_repos(session, leaf)
    assert counts(session) == {("ceph", "main", "aa"): (1, 0)}


def test_a_repo_that_is_removed_between_finding_it_and_reading_its_history_has_none(session: Session) -> None:
    """Each statement of a read sees what is there when it begins."""
    post(session)
    rows = [(repo.document, repo.modified, repo.id) for repo in fresh(session, Repo)]
    service.remove_repos(session, LEAF)
    ((document, _, _),) = queries.with_history(session, rows, queries.REPO_HISTORY)
    assert json.loads(document)["history"] == []


def test_a_report_that_was_overtaken_by_a_later_one_does_not_turn_back_the_time(
    session: Session, stopped_clock: Any
) -> None:
    """A report takes its time when it begins, and may have to wait for another one that began after it."""
    post(session, status="queued")
    stopped_clock.advance(seconds=10)
    post(session, status="building")
    stopped_clock.advance(seconds=-4)
    post(session, status="ready")
    service.post_repo(session, "ceph", RepoReport(node_url="https://c/1", status="failed"))
    (repo,) = fresh(session, Repo)
    ((document, _, _),) = queries.with_history(session, [(repo.document, None, repo.id)], queries.REPO_HISTORY)
    told = [(each["status"], each["seconds"]) for each in json.loads(document)["history"]]
    assert told == [("queued", 10), ("building", 0), ("ready", 0), ("failed", None)]
    stopped_clock.advance(seconds=4)
    assert repo.modified == stopped_clock.time


@pytest.mark.parametrize("status", ["Deleted", "deleted ", "DELETED"])
def test_only_the_word_deleted_removes(session: Session, status: str) -> None:
    post(session)
    post(session, status=status)
    assert [repo.status for repo in fresh(session, Repo)] == [status]


def test_a_build_keeps_its_number_through_its_life_and_its_history(session: Session, stopped_clock: Any) -> None:
    began = stopped_clock.time
    for status in ("queued", "started", "started", "completed"):
        post_build(session, status=status)
        stopped_clock.advance(seconds=1)
    (build,) = fresh(session, Build)
    assert build.started == began
    assert build.completed is not None and (build.completed - began).total_seconds() == 3
    told = session.execute(select(BuildStatusChange.status, BuildStatusChange.number).order_by("number")).all()
    assert [tuple(row) for row in told] == [("queued", 0), ("started", 1), ("completed", 2)]
    assert counts(session) == {("ceph", "main", "aa"): (0, 1)}
    assert [event.kind for event in session.scalars(select(Event))] == ["build.posted"] * 4


def test_a_build_that_was_completed_keeps_the_time_of_that_whatever_is_reported_afterwards(
    session: Session, stopped_clock: Any
) -> None:
    post_build(session, status="completed")
    completed = stopped_clock.time
    stopped_clock.advance(seconds=1)
    post_build(session, status="failed")
    (build,) = fresh(session, Build)
    assert (build.status, build.completed, build.modified) == ("failed", completed, stopped_clock.time)


# After anything that may happen


PROJECTS, REFS, SHA1S = st.sampled_from(["ceph", "csi"]), st.sampled_from(["main", "wip"]), st.sampled_from("ab")
POST = st.builds(
    lambda url, project, ref, sha1, version, status: (
        "post",
        project,
        {"node_url": url, "ref": ref, "sha1": sha1, "distro_version": version, "status": status},
    ),
    st.sampled_from("12345"),
    PROJECTS,
    REFS,
    SHA1S,
    st.sampled_from(["jammy", "22.04", "noble"]),
    st.sampled_from(["ready", "ready", "queued", "deleted"]),
)
REMOVE = st.builds(
    lambda project, ref, sha1, platform: ("remove", project, {"ref": ref, "sha1": sha1, "platform": platform}),
    PROJECTS,
    REFS,
    SHA1S,
    st.sampled_from(["ubuntu/22.04", "ubuntu/24.04"]),
)
POST_BUILD = st.builds(
    lambda url, project, ref, sha1, status: (
        "build",
        project,
        {"url": url, "ref": ref, "sha1": sha1, "status": status},
    ),
    st.sampled_from("12"),
    PROJECTS,
    REFS,
    SHA1S,
    st.sampled_from(["queued", "started"]),
)
PLATFORMS = {"jammy": "ubuntu/22.04", "22.04": "ubuntu/22.04", "noble": "ubuntu/24.04"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=st.lists(POST | POST | REMOVE | POST_BUILD, max_size=20))
def test_after_any_sequence_of_posts_and_removals_counts_and_lists_say_what_there_is(
    session: Session, acts: list[tuple[str, str, dict[str, Any]]]
) -> None:
    with undone(session):
        known: dict[str, tuple[str, str, str, str]] = {}
        projects: set[str] = set()
        for act, project, given_ in acts:
            if act == "build":
                post_build(session, project, **given_)
                projects.add(project)
            elif act == "remove":
                leaf = (project, *given_.values())
                if leaf in known.values():
                    service.remove_repos(session, Leaf(project, **given_))
                else:
                    with pytest.raises(NotFound):
                        service.remove_repos(session, Leaf(project, **given_))
                known = {url: at for url, at in known.items() if at != leaf}
            else:
                post(session, project, **given_)
                if given_["status"] == "deleted":
                    known.pop(given_["node_url"], None)
                elif given_["node_url"] not in known:
                    at = (project, given_["ref"], given_["sha1"], PLATFORMS[given_["distro_version"]])
                    known[given_["node_url"]] = at
                    projects.add(project)

        there = {each.node_url: (each.project, each.ref, each.sha1, each.platform) for each in fresh(session, Repo)}
        assert there == known
        assert counts(session) == real_counts(session)
        assert session.scalar(select(func.count()).select_from(RepoStatusChange)) >= len(known)
        builds = {(each.project, each.ref, each.sha1) for each in fresh(session, Build)}
        of_repos = {(project, ref, sha1) for project, ref, sha1, _ in known.values()}
        assert queries.projects(session) == sorted(projects)
        for having, commits in (("repos", of_repos), ("builds", builds)):
            for project in ("ceph", "csi"):
                refs = sorted({ref for name, ref, _ in commits if name == project})
                assert queries.refs(session, project, having) == refs
                for ref in ("main", "wip"):
                    listed = queries.commits(session, project, ref, having, 10, None).sha1s
                    assert sorted(listed) == sorted(sha1 for *at, sha1 in commits if at == [project, ref])
        every = {
            name: (set(json.loads(refs)), set(json.loads(sha1s))) for name, refs, sha1s in queries.all_repos(session)
        }
        assert every == {
            name: ({ref for p, ref, _ in of_repos if p == name}, {sha1 for p, _, sha1 in of_repos if p == name})
            for name in projects
        }


# Statements that a connection has no room to keep prepared


def test_everything_works_on_a_connection_that_keeps_no_prepared_statements(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "MOST_PREPARED", 0)
    for archs in (None, [], ["x86_64"], ["x86_64", "it's"]):
        post(session, archs=archs)
        service.post_repo(session, "ceph", RepoReport(node_url="https://c/1", archs=archs))
    assert [repo.archs for repo in fresh(session, Repo)] == [["x86_64", "it's"]]
    post_build(session)
    place = Place("ceph", "main", "latest", platform="ubuntu/22.04", flavor="default")
    assert queries.ready(session, place, "x86_64") is not None
    assert queries.ready(session, place, "it's") is not None
    assert queries.values(session, Place("ceph", "main", "latest"), "distro") == ["ubuntu"]
    assert len(queries.repos_at(session, place, Page(5, 0), history=True).documents) == 1
    assert len(queries.builds(session, "ceph", "main", "aa", Page(), history=True).documents) == 1
    assert queries.refs(session, "ceph", "repos") == ["main"]
    service.remove_repos(session, LEAF)
    assert counts(session) == {("ceph", "main", "aa"): (0, 1)}
