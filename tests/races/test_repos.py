"""Many storage nodes and build jobs post, delete and search the same repos and builds at the same moment."""

import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, text
from webtest import TestApp

from labctl.app import make_app
from labctl.settings import Settings
from tests.repos.factories import KEY, SHA1, USER, build, numbers, repo

THREADS = 16
LEAF = f"/api/repos/ceph/main/{SHA1}/ubuntu/jammy"
BUILDS = f"/api/builds/ceph/main/{SHA1}"

AtOnce = Callable[[list[Callable[[], Any]]], list[Any]]


@pytest.fixture
def client(committed: Engine, settings: Settings) -> Callable[[], TestApp]:
    """A client for each thread: WebTest's keeps cookies and is nobody else's."""
    application = make_app(replace(settings, api_user=USER, api_key=KEY))

    def client() -> TestApp:
        app = TestApp(application)
        app.authorization = ("Basic", (USER, KEY))
        return app

    return client


@pytest.fixture
def assert_consistent(committed: Engine) -> Callable[[], None]:
    """Check that commits count their repos and builds right, and that none is there for nothing."""
    real = """
    SELECT project, ref, sha1, sum(repos)::int, sum(builds)::int FROM (
        SELECT project, ref, sha1, 1 AS repos, 0 AS builds FROM repos
        UNION ALL SELECT project, ref, sha1, 0, 1 FROM builds) each
    GROUP BY project, ref, sha1 ORDER BY 1, 2, 3"""

    def check() -> None:
        with committed.connect() as connection:
            counted = connection.execute(
                text("SELECT project, ref, sha1, repos, builds FROM commits ORDER BY project, ref, sha1")
            ).all()
            # Those of the last repo may stay when something came meanwhile, but then they count nothing.
            assert [row for row in counted if row.repos or row.builds] == connection.execute(text(real)).all()
            lost = "SELECT count(*) FROM commits c WHERE NOT EXISTS (SELECT FROM projects WHERE name = c.project)"
            assert connection.execute(text(lost)).scalar() == 0

    return check


def post(app: TestApp, number: Any = 1, project: str = "ceph", **changes: Any) -> int:
    return int(app.post_json(f"/api/repos/{project}/", repo(number, **changes), status="*").status_int)


def post_build(app: TestApp, number: Any = 1, project: str = "ceph", **changes: Any) -> int:
    return int(app.post_json(f"/api/builds/{project}/", build(number, **changes), status="*").status_int)


def found(app: TestApp, **query: Any) -> list[dict[str, Any]]:
    return list(app.get("/api/search/", {"count": 1000, **query}).json)


def test_sixteen_first_posts_of_one_chacra_url_make_one_repo_that_is_counted_once(
    client: Callable[[], TestApp], at_once: AtOnce, assert_consistent: Callable[[], None]
) -> None:
    for turn in range(5):
        # Some of them think that it is of another project, or of another commit.
        acts = [
            lambda n=n: post(client(), f"u{turn}", f"p{turn}-{n % 2}", sha1=str(n % 3), archs=[f"a{n}"])  # noqa: B023
            for n in range(THREADS)
        ]
        assert at_once(acts) == [200] * THREADS
        assert_consistent()
    repos = found(client())
    assert sorted(numbers(repos)) == [f"u{turn}" for turn in range(5)]
    # None of the architectures was lost.
    assert [sorted(each["archs"]) for each in repos] == [sorted(f"a{n}" for n in range(THREADS))] * 5


def test_sixteen_first_repos_of_a_new_project_and_commit_are_all_counted(
    client: Callable[[], TestApp], at_once: AtOnce, assert_consistent: Callable[[], None]
) -> None:
    for turn in range(5):
        project = f"p{turn}"
        acts: list[Callable[[], int]] = [lambda n=n: post(client(), f"{turn}-{n}", project) for n in range(THREADS - 4)]  # noqa: B023
        acts += [lambda n=n: post_build(client(), n, project, distro_arch=str(n)) for n in range(4)]  # noqa: B023
        assert at_once(acts) == [200] * THREADS
        assert_consistent()
        assert client().get(f"/api/repos/{project}/main").json == [SHA1]
    assert len(found(client())) == 5 * (THREADS - 4)


def test_reports_of_one_known_repo_at_once_are_all_kept(client: Callable[[], TestApp], at_once: AtOnce) -> None:
    post(client(), status="requested", archs=[])
    words = [f"status {number}" for number in range(THREADS)]

    def report(number: int) -> int:
        sent = {"chacra_url": repo()["chacra_url"], "status": words[number], "archs": [f"a{number}", "source"]}
        return int(client().post_json("/api/repos/ceph/", sent, status="*").status_int)

    assert at_once([lambda n=n: report(n) for n in range(THREADS)]) == [200] * THREADS
    (shown,) = found(client(), history=1)
    assert sorted(shown["archs"]) == sorted([*(f"a{number}" for number in range(THREADS)), "source"])
    told = [each["status"] for each in shown["history"]]
    assert told[0] == "requested"
    assert sorted(told[1:]) == sorted(words)
    assert told[-1] == shown["status"]
    *seconds, last = [each["seconds"] for each in shown["history"]]
    assert last is None
    assert all(each >= 0 for each in seconds), seconds
    assert shown["history"][-1]["at"] == shown["modified"]


def test_posting_while_deleting_leaves_counts_that_are_right_and_no_error(
    client: Callable[[], TestApp], at_once: AtOnce, assert_consistent: Callable[[], None]
) -> None:
    def work(seed: int) -> list[tuple[str, int]]:
        chance, app, answers = random.Random(seed), client(), []
        for _ in range(25):
            sha1, number = chance.choice("ab"), chance.randrange(6)
            version = ("jammy", "22.04", "noble")[number % 3]
            act = chance.choice(["post", "post", "delete", "leaf", "build", "partly"])
            url = f"https://chacra.example/repos/{sha1}{number}/"
            if act == "post":
                answer = post(app, f"{sha1}{number}", sha1=sha1, distro_version=version)
            elif act == "delete":
                answer = post(app, f"{sha1}{number}", sha1=sha1, distro_version=version, status="deleted")
            elif act == "partly":
                sent = {"chacra_url": url, "status": chance.choice(["ready", "deleted"])}
                answer = app.post_json("/api/repos/ceph/", sent, status="*").status_int
            elif act == "leaf":
                answer = app.delete(f"/api/repos/ceph/main/{sha1}/ubuntu/{version}", status="*").status_int
            else:
                answer = post_build(app, number, sha1=sha1, status=chance.choice(["queued", "started"]))
            answers.append((act, answer))
        return answers

    allowed = {"post": {200}, "delete": {200}, "build": {200}, "leaf": {200, 404}, "partly": {200, 400}}
    for turn in range(4):
        answers = at_once([lambda seed=turn * 100 + n: work(seed) for n in range(THREADS)])
        wrong = Counter(each for of_one in answers for each in of_one if each[1] not in allowed[each[0]])
        assert not wrong
        assert_consistent()
    app = client()
    assert sorted(app.get("/api/repos/ceph/main").json) == sorted({each["sha1"] for each in found(app)})


def test_of_many_removals_at_once_one_succeeds_and_the_commit_is_counted_off_once(
    client: Callable[[], TestApp], at_once: AtOnce, assert_consistent: Callable[[], None]
) -> None:
    for kept in (0, 1):
        for number in range(5):
            post(client(), number)
        for number in range(kept):
            post(client(), f"kept{number}", flavor="crimson")
        answers = at_once([lambda: client().delete(LEAF, status="*").status_int] * THREADS)
        assert Counter(answers) == {200: 1, 404: THREADS - 1}
        assert_consistent()
        assert len(found(client())) == kept
        assert client().get("/api/repos/ceph/main").json == [SHA1][: kept or 0]


def test_the_last_repo_of_a_commit_goes_while_another_comes_and_the_commit_stays_in_the_list(
    client: Callable[[], TestApp], at_once: AtOnce, assert_consistent: Callable[[], None]
) -> None:
    for turn in range(25):
        sha1 = f"sha{turn}"
        post(client(), f"old{turn}", sha1=sha1)
        acts = [
            lambda: post(client(), f"old{turn}", sha1=sha1, status="deleted"),  # noqa: B023
            lambda: post(client(), f"new{turn}", sha1=sha1),  # noqa: B023
            lambda: post(client(), f"newer{turn}", sha1=sha1, distro="centos"),  # noqa: B023
        ]
        assert at_once(acts) == [200] * 3
        assert sha1 in client().get("/api/repos/ceph/main").json
    assert_consistent()


def test_whoever_reads_while_repos_come_and_go_gets_whole_answers(
    client: Callable[[], TestApp], at_once: AtOnce
) -> None:
    post(client(), 0)
    ended = threading.Event()

    def write() -> set[int]:
        try:
            answers = set()
            for turn in range(60):
                answers |= {post(client(), number, status=str(turn)) for number in range(2)}
                answers.add(client().delete(LEAF, status="*").status_int)
            return answers
        finally:
            ended.set()

    def read() -> int:
        app, looks = client(), 0
        while not ended.is_set():
            for url in (
                f"{LEAF}?history=1",
                "/api/search?history=1",
                "/api/search?history=1&sha1=latest&distros=ubuntu/jammy,ubuntu/22.04",
                "/api/repos",
            ):
                answer = app.get(url, status="*")
                assert answer.status_int == 200, answer.text
                if "history" in url:
                    assert all(each["project"] == "ceph" for each in answer.json)
            looks += 1
        return looks

    answers, *looks = at_once([write, read, read, read])
    assert answers == {200}
    assert all(looks)


def test_sixteen_first_posts_of_one_build_make_one_build(
    client: Callable[[], TestApp], at_once: AtOnce, assert_consistent: Callable[[], None]
) -> None:
    for turn in range(5):
        status = "queued" if turn % 2 else "started"
        versions = ("jammy", "22.04", "Jammy")
        acts = [
            lambda n=n: post_build(client(), turn, sha1=str(turn), status=status, distro_version=versions[n % 3])  # noqa: B023
            for n in range(THREADS)
        ]
        assert at_once(acts) == [200] * THREADS
        (shown,) = client().get(f"/api/builds/ceph/main/{turn}?history=1").json
        assert len(shown["history"]) == 1
    assert_consistent()


@pytest.mark.parametrize("urls", [1, 2])
def test_a_queued_build_that_many_take_over_at_once_is_taken_over_by_one(
    client: Callable[[], TestApp], at_once: AtOnce, assert_consistent: Callable[[], None], urls: int
) -> None:
    for turn in range(5):
        sha1 = str(turn)
        post_build(client(), "queue", sha1=sha1, status="queued")
        acts = [lambda n=n: post_build(client(), n % urls, sha1=sha1, status="started") for n in range(THREADS)]  # noqa: B023
        assert at_once(acts) == [200] * THREADS
        builds = client().get(f"/api/builds/ceph/main/{sha1}?history=1").json
        assert sorted(each["url"] for each in builds) == [build(number)["url"] for number in range(urls)]
        # One of them was the queued one.
        told = sorted([each["status"] for each in shown["history"]] for shown in builds)
        assert told == [["queued", "started"], ["started"]][:urls]
    assert_consistent()


def test_builds_and_repos_of_one_commit_that_are_posted_at_once_do_not_wait_for_each_other_for_ever(
    client: Callable[[], TestApp], at_once: AtOnce, assert_consistent: Callable[[], None]
) -> None:
    def work(number: int) -> set[int]:
        app, answers = client(), set()
        for turn in range(10):
            project = f"p{turn}"
            if number % 2:
                answers.add(post(app, f"{turn}-{number}", project, sha1=str(turn)))
                answers.add(post_build(app, number, project, sha1=str(turn), distro_arch=str(number)))
            else:
                answers.add(post_build(app, number, project, sha1=str(turn), status="queued"))
                answers.add(post(app, f"{turn}-{number}", project, sha1=str(turn)))
        return answers

    assert at_once([lambda n=n: work(n) for n in range(THREADS)]) == [{200}] * THREADS
    assert_consistent()
    assert len(found(client())) == 10 * THREADS
