"""``/api/search``: which repos are found, in which order, and waiting for them."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as configured
from hypothesis import strategies as st
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl.app import make_app
from labctl.http import waiting
from labctl.settings import Settings
from tests.repos.factories import (
    KEY,
    REPO_KEYS,
    SHA1,
    USER,
    ask,
    next_of,
    numbers,
    post_repo,
    undone,
    walk,
)

SLASHES = pytest.mark.parametrize("slash", ["", "/"])

#: One repo a second, told apart by their places in this list.
REPOS: list[dict[str, Any]] = [
    {"sha1": "aa", "distro_version": "jammy", "archs": ["x86_64", "arm64"]},
    {"sha1": "aa", "distro": "centos", "distro_version": "9"},
    {"sha1": "aa", "distro": "Ubuntu", "distro_version": "24.04"},
    {"sha1": "bb", "distro_version": "22.04"},
    {"sha1": "bb", "distro": "centos", "distro_version": 9, "archs": ["arm64"]},
    {"sha1": "cc", "distro_version": "jammy", "flavor": "crimson"},
    {"sha1": "cc", "ref": "wip", "distro": "centos", "distro_version": "9", "status": "queued"},
    {"sha1": "dd", "project": "csi", "distro": "fedora", "distro_version": "Rawhide"},
]


@pytest.fixture
def lab(app: TestApp, stopped_clock: Any) -> TestApp:
    for number, changes in enumerate(REPOS):
        stopped_clock.advance(seconds=1)
        post_repo(app, number, **changes)
    return app


def search(app: TestApp, query: str) -> str:
    """Give the places of the repos that are found, in order."""
    return "".join(numbers(app.get(f"/api/search/?{query}").json))


@SLASHES
def test_without_parameters_every_repo_is_found_the_last_modified_first(
    lab: TestApp, slash: str, stopped_clock: Any
) -> None:
    answer = lab.get(f"/api/search{slash}")
    assert answer.content_type == "application/json"
    assert numbers(answer.json) == list("76543210")
    assert all(list(each) == REPO_KEYS for each in answer.json)
    stopped_clock.advance(seconds=1)
    post_repo(lab, 2, status="failed")
    assert numbers(lab.get(f"/api/search{slash}").json) == list("27654310")


def test_whoever_has_no_credential_may_search(anybody: TestApp) -> None:
    assert anybody.get("/api/search").json == []


@pytest.mark.parametrize(
    ("query", "repos"),
    [
        ("project=ceph", "6543210"),
        ("project=csi", "7"),
        ("project=nosuch", ""),
        ("project=", ""),
        ("project=Ceph", ""),
        ("ref=main", "7543210"),
        ("ref=wip", "6"),
        ("ref=nosuch", ""),
        ("sha1=bb", "43"),
        ("sha1=b", ""),
        ("flavor=crimson", "5"),
        ("flavor=default", "7643210"),
        ("status=queued", "6"),
        ("status=ready", "7543210"),
        ("status=Ready", ""),
        ("distros=ubuntu/jammy", "530"),
        ("distros=ubuntu/22.04", "530"),
        ("distros=UBUNTU/Jammy", "530"),
        ("distros=ubuntu/noble", "2"),
        ("distros=ubuntu/24.04", "2"),
        ("distros=centos/9", "641"),
        ("distros=CentOS/9", "641"),
        ("distros=fedora/rawhide", "7"),
        ("distros=ubuntu/focal", ""),
        ("distros=centos/jammy", ""),
        ("distros=ubuntu/9", ""),
        ("distros=ubuntu/jammy,centos/9", "654310"),
        ("distros=centos/9,ubuntu/jammy", "654310"),
        ("distros=centos%2F9%2Cubuntu%2Fjammy", "654310"),
        ("distros=ubuntu/jammy,ubuntu/22.04", "530"),
        ("distros=ubuntu/jammy/arm64", "0"),
        ("distros=ubuntu/jammy/ARM64", ""),
        ("distros=ubuntu/jammy/x86_64,ubuntu/22.04/arm64", "530"),
        ("distros=ubuntu/jammy/arm64,ubuntu/jammy", "530"),
        ("distros=ubuntu/jammy,ubuntu/jammy/arm64", "530"),
        ("distros=ubuntu/jammy/arm64,centos/9/arm64", "40"),
        ("distros=ubuntu/jammy/riscv,centos/9", "641"),
        ("distros=ubuntu/jammy/riscv", ""),
        ("project=ceph&ref=main&sha1=aa&flavor=default&status=ready&distros=centos/9/x86_64", "1"),
        ("project=ceph&ref=main&sha1=aa&flavor=default&status=queued&distros=centos/9/x86_64", ""),
        ("status=ready&project=ceph&flavor=default&distros=centos%2F9%2Fx86_64&ref=main", "1"),
        ("sha1=cc&ref=main", "5"),
        ("sha1=aa&distros=ubuntu/jammy,ubuntu/noble", "20"),
        ("distros=ubuntu/jammy&count=2", "53"),
        ("distros=ubuntu/jammy,centos/9&count=2", "65"),
        ("distros=ubuntu/jammy,centos/9&count=2&page=2", "43"),
        ("distros=ubuntu/jammy&count=2&page=2", "0"),
        ("count=3&page=3", "10"),
        ("count=3&page=4", ""),
        ("distros=ubuntu/jammy,centos/9&count=3&page=3", ""),
        ("count=10000&page=1000000", ""),
        ("count=10000&page=1000000&distros=centos/9,ubuntu/jammy", ""),
        (f"distros={','.join(f'ubuntu/{number}' for number in range(49))},ubuntu/jammy", "530"),
    ],
)
def test_filters_choose_repos_alone_and_together(lab: TestApp, query: str, repos: str) -> None:
    assert search(lab, query) == repos


@pytest.mark.parametrize(
    ("query", "repos"),
    [
        # All repos of the newest commit, after the other filters.
        ("sha1=latest", "7"),
        ("sha1=latest&project=ceph", "65"),
        ("sha1=latest&ref=main&project=ceph", "5"),
        ("sha1=latest&ref=main&flavor=default&project=ceph", "43"),
        ("sha1=latest&status=ready&project=ceph", "5"),
        ("sha1=latest&project=nosuch", ""),
        # The newest commit that has a repo for each distribution, one repo for each, in the order asked.
        ("sha1=latest&distros=ubuntu/jammy", "5"),
        ("sha1=latest&distros=ubuntu/jammy&flavor=default", "3"),
        ("sha1=latest&distros=centos/9", "6"),
        ("sha1=latest&distros=centos/9,ubuntu/jammy", "65"),
        ("sha1=latest&distros=ubuntu/jammy,centos/9", "56"),
        ("sha1=latest&distros=centos/9,ubuntu/jammy&ref=main", "43"),
        ("sha1=latest&distros=ubuntu/22.04,centos/9&ref=main", "34"),
        ("sha1=latest&distros=ubuntu/jammy,centos/9,ubuntu/noble", "012"),
        ("sha1=latest&distros=ubuntu/noble,centos/9,ubuntu/jammy", "210"),
        ("sha1=latest&distros=ubuntu/jammy/x86_64,centos/9/x86_64&ref=main", "01"),
        ("sha1=latest&distros=ubuntu/jammy,centos/9/arm64", "34"),
        ("sha1=latest&distros=ubuntu/jammy/arm64,centos/9", "01"),
        ("sha1=latest&distros=ubuntu/jammy/arm64,centos/9/arm64", ""),
        ("sha1=latest&distros=ubuntu/jammy,ubuntu/focal", ""),
        ("sha1=latest&distros=ubuntu/jammy,fedora/rawhide", ""),
        ("sha1=latest&distros=ubuntu/jammy,centos/9&status=ready", "34"),
        ("sha1=latest&distros=ubuntu/jammy&project=csi", ""),
        # One repo may be the one for two of them.
        ("sha1=latest&distros=ubuntu/jammy/x86_64,ubuntu/22.04/arm64", "00"),
        ("sha1=latest&distros=ubuntu/jammy,ubuntu/jammy&ref=main&flavor=default", "33"),
        # All of it is one page.
        ("sha1=latest&distros=ubuntu/jammy,centos/9,ubuntu/noble&count=1", "012"),
        ("sha1=latest&project=ceph&flavor=default&ref=main&count=1", "4"),
        ("sha1=latest&project=ceph&flavor=default&ref=main&count=1&page=2", "3"),
        (f"sha1=latest&project=ceph&distros={','.join(['ubuntu/noble'] * 50)}", "2" * 50),
    ],
)
def test_latest_finds_the_newest_commit_that_has_all_that_is_asked_for(lab: TestApp, query: str, repos: str) -> None:
    assert search(lab, query) == repos


def test_the_example_of_the_documentation_finds_the_latest_jewel_for_both(app: TestApp, stopped_clock: Any) -> None:
    lacks = [("aa", "14.04", "7"), ("bb", "16.04", None), ("cc", "xenial", "7"), ("dd", "Xenial", None)]
    for number, (sha1, ubuntu, centos) in enumerate(lacks):
        stopped_clock.advance(seconds=1)
        post_repo(app, f"u{number}", ref="jewel", sha1=sha1, distro="Ubuntu", distro_version=ubuntu)
        if centos:
            post_repo(app, f"c{number}", ref="jewel", sha1=sha1, distro="centos", distro_version=centos)
    found = app.get("/api/search/?project=ceph&distros=ubuntu/xenial,centos/7&ref=jewel&sha1=latest").json
    assert numbers(found) == ["u2", "c2"]


def test_latest_does_not_look_at_the_status(app: TestApp, stopped_clock: Any) -> None:
    post_repo(app, 1, sha1="aa")
    stopped_clock.advance(seconds=1)
    post_repo(app, 2, sha1="bb", status="failed")
    for distros in ("", "&distros=ubuntu/jammy"):
        assert search(app, f"sha1=latest{distros}") == "2"
        assert search(app, f"sha1=latest&status=ready{distros}") == "1"


def test_a_commit_is_as_new_as_its_newest_repo_that_passes_the_filters(app: TestApp, stopped_clock: Any) -> None:
    post_repo(app, 1, sha1="aa")
    post_repo(app, 2, sha1="bb")
    stopped_clock.advance(seconds=1)
    post_repo(app, 3, sha1="aa", distro="centos", distro_version="9", status="failed")
    # A repo of another distribution makes the commit newer; one that the filters do not let through does not.
    assert search(app, "sha1=latest&distros=ubuntu/jammy") == "1"
    assert search(app, "sha1=latest&distros=ubuntu/jammy&status=ready") == "2"


@SLASHES
@pytest.mark.parametrize("name", ["sha", "arch", "distro", "Project", "", "limit", "_", "ä", "%FF", "a%00b", "a%0Ab"])
def test_any_other_parameter_is_refused_with_its_name(app: TestApp, slash: str, name: str) -> None:
    answer = app.get(f"/api/search{slash}?project=ceph&{name}=1", status=400)
    assert answer.content_type == "text/plain"
    assert "parameter" in answer.text
    if name.isidentifier():
        assert name in answer.text


@pytest.mark.parametrize(
    "distros",
    [
        *(
            "ubuntu",
            "",
            "ubuntu/",
            "/jammy",
            "ubuntu/jammy,centos",
            "ubuntu/jammy/x86_64/more",
            "ubuntu/jammy,",
            "a//b",
        ),
        ",".join(["centos/9"] * 51),
    ],
)
@pytest.mark.parametrize("latest", ["", "&sha1=latest"])
def test_distributions_that_are_none_are_refused(app: TestApp, distros: str, latest: str) -> None:
    answer = app.get(f"/api/search/?distros={distros}{latest}", status=400)
    assert answer.content_type == "text/plain"
    assert answer.text.startswith("distros: ")
    assert "Invalid version or codename for distro: " in answer.text or distros.count(",") > 40


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("count", value) for value in ("0", "-1", "x", "", "1.5", "10001", "9" * 30, "\0")),
        *(("page", value) for value in ("0", "-1", "x", "", "1000001")),
        *(("after", value) for value in ("0", "x", "", "1-", "-1", "1-2-3", "9" * 18 + "-1", "1-" + "9" * 19, "\0")),
        *(("wait", value) for value in ("-1", "x", "", "nan", "inf", "-inf", "1e999", "\0", "1s")),
        *((name, "\0") for name in ("project", "distros", "ref", "sha1", "flavor", "status", "history")),
    ],
)
def test_a_bad_parameter_is_refused_by_its_name(app: TestApp, name: str, value: str) -> None:
    for latest in ({}, {"sha1": "latest"}) if name != "sha1" else ({},):
        answer = app.get("/api/search", {**latest, name: value}, status=400)
        assert answer.content_type == "text/plain"
        assert answer.text.startswith(f"{name}: ")


def test_text_that_is_no_utf_8_is_refused(app: TestApp) -> None:
    for name in ("project", "distros", "ref", "sha1", "flavor", "status"):
        assert app.get(f"/api/search?{name}=%ff", status=400).text.startswith(f"{name}: ")


def test_names_that_need_encoding_are_found(app: TestApp) -> None:
    names = {
        "ref": "a/b & c=d",
        "sha1": "ä+%",
        "flavor": "<f>",
        "status": "half ready?",
        "distro": "dä",
        "archs": ["a'"],
    }
    post_repo(app, project="c%20d", distro_version="v:1", **names)
    query = {name: names[name] for name in ("ref", "sha1", "flavor", "status")} | {"project": "c d"}
    (found,) = app.get("/api/search", {**query, "distros": "Dä/V:1/a'"}).json
    assert found["ref"] == names["ref"]


# Pages


QUERIES = pytest.mark.parametrize(
    "query",
    [
        "project=ceph",
        "",
        "distros=ubuntu/jammy",
        "distros=ubuntu/jammy,centos/9",
        "distros=ubuntu/jammy/x86_64,centos/9/x86_64&status=ready&ref=main",
        f"sha1={SHA1}",
        "sha1=latest",
        "sha1=latest&project=ceph&ref=main",
    ],
)


def add_many(app: TestApp, stopped_clock: Any, count: int = 11) -> list[str]:
    """Post repos of one commit for two distributions; always three were modified at the same time."""
    for number in range(count):
        stopped_clock.advance(seconds=number % 3 == 0)
        centos = {"distro": "centos", "distro_version": "9"} if number % 2 else {}
        post_repo(app, number, **centos)
    return [str(number) for number in reversed(range(count))]


def of(query: str, expected: list[str]) -> list[str]:
    return [number for number in expected if "centos" in query or "distros" not in query or int(number) % 2 == 0]


@QUERIES
@pytest.mark.parametrize("count", [1, 2, 3, 10, 11, 12])
def test_the_links_lead_through_the_whole_list_and_show_nothing_twice(
    app: TestApp, stopped_clock: Any, query: str, count: int
) -> None:
    expected = of(query, add_many(app, stopped_clock))
    assert numbers(walk(app, f"/api/search/?{query}&count={count}")) == expected


@QUERIES
def test_repos_that_are_posted_while_somebody_follows_the_links_change_nothing_for_them(
    app: TestApp, stopped_clock: Any, query: str
) -> None:
    expected = of(query, add_many(app, stopped_clock))
    found, following, posted = [], f"/api/search?{query}&count=2", 0
    while following:
        answer = ask(app, following)
        found += numbers(answer.json)
        following = next_of(answer) or ""
        # Of the same commit, of a newer one, and at the same moment as what was seen last.
        for sha1 in (SHA1, "newer"):
            posted += 1
            post_repo(app, f"new{posted}", sha1=sha1)
            stopped_clock.advance(seconds=1)
            posted += 1
            post_repo(app, f"new{posted}", sha1=sha1, distro="centos", distro_version="9")
    assert found == expected


def test_a_repo_that_is_removed_at_the_cursor_does_not_stop_the_walk(app: TestApp, stopped_clock: Any) -> None:
    expected = add_many(app, stopped_clock)
    answer = app.get("/api/search?count=4")
    post_repo(app, expected[3], status="deleted")
    assert numbers(walk(app, next_of(answer) or "")) == expected[4:]


def test_a_hundred_are_shown_unless_count_says_otherwise(app: TestApp) -> None:
    for number in range(102):
        post_repo(app, number)
    answer = app.get("/api/search?project=ceph")
    assert len(answer.json) == 100
    assert numbers(ask(app, next_of(answer) or "").json) == ["1", "0"]
    assert len(app.get("/api/search?count=102").json) == 102
    assert len(app.get("/api/search?sha1=latest").json) == 100


def test_the_link_keeps_the_other_parameters_but_the_page(app: TestApp, stopped_clock: Any) -> None:
    add_many(app, stopped_clock)
    answer = app.get("/api/search/?page=2&count=2&distros=ubuntu%2Fjammy,centos/9&history=1&status=ready")
    assert numbers(answer.json) == ["8", "7"]
    rest = ask(app, next_of(answer) or "")
    assert numbers(rest.json) == ["6", "5"]
    assert all(len(each["history"]) == 1 for each in rest.json)
    assert "page=" not in (next_of(answer) or "")


def test_the_list_with_one_repo_for_each_distribution_has_no_link(app: TestApp, stopped_clock: Any) -> None:
    add_many(app, stopped_clock)
    for count in (1, 2, 3):
        answer = app.get(f"/api/search?sha1=latest&distros=ubuntu/jammy,centos/9&count={count}")
        assert numbers(answer.json) == ["10", "9"]
        assert next_of(answer) is None


# Against a reference


@dataclass
class Known:
    """A repo as the protocol sees it."""

    number: str
    order: int
    modified: int
    project: str
    ref: str
    sha1: str
    platform: str
    flavor: str
    status: str
    archs: list[str]


@dataclass(frozen=True)
class Asked:
    """A part of ``distros``."""

    platform: str
    spelled: str
    arch: str | None

    def fits(self, repo: Known) -> bool:
        return repo.platform == self.platform and (self.arch is None or self.arch in repo.archs)

    def text(self) -> str:
        return self.spelled if self.arch is None else f"{self.spelled}/{self.arch}"


class Reference:
    """What the protocol says, by going through all repos."""

    def __init__(self) -> None:
        self.repos: dict[str, Known] = {}
        self.projects: set[str] = set()
        self.posted = 0

    def post(self, now: int, new: Known) -> None:
        self.posted += 1
        known = self.repos.get(new.number)
        if new.status == "deleted":
            self.repos.pop(new.number, None)
        elif known is None:
            self.projects.add(new.project)
            self.repos[new.number] = replace(new, order=self.posted, modified=now)
        else:
            known.status, known.modified = new.status, now
            known.archs += [arch for arch in new.archs if arch not in known.archs]

    def choose(self, **values: str | None) -> list[Known]:
        """Give the repos with these values, the newest first; of those of one time, the one added last."""
        fits = (
            repo
            for repo in self.repos.values()
            if all(value is None or getattr(repo, name) == value for name, value in values.items())
        )
        return sorted(fits, key=lambda repo: (repo.modified, repo.order), reverse=True)

    def search(self, filters: dict[str, str], asked: list[Asked]) -> list[Known]:
        return [repo for repo in self.choose(**filters) if not asked or any(each.fits(repo) for each in asked)]

    def latest(self, filters: dict[str, str], asked: list[Asked]) -> list[Known]:
        passed = self.choose(**filters)
        for sha1 in dict.fromkeys(repo.sha1 for repo in passed):
            of_commit = [repo for repo in passed if repo.sha1 == sha1]
            if not asked:
                return of_commit
            chosen = [next((repo for repo in of_commit if each.fits(repo)), None) for each in asked]
            if all(chosen):
                return [repo for repo in chosen if repo]
        return []

    def latest_at(self, **place: str | None) -> list[Known] | None:
        """Give the repos of the newest commit that is ready at a place; None if there is none."""
        ready = self.choose(**place, status="ready")
        return self.choose(**place, sha1=ready[0].sha1) if ready else None

    def ready_at(self, arch: str | None, **place: str | None) -> Known | None:
        fits = [
            repo
            for repo in self.latest_at(**place) or []
            if repo.status == "ready" and (arch is None or arch in repo.archs)
        ]
        return fits[0] if fits else None


#: A platform, and how it is spelled.
SPELLINGS = {
    "ubuntu/22.04": ["ubuntu/22.04", "ubuntu/jammy", "Ubuntu/Jammy"],
    "ubuntu/24.04": ["ubuntu/noble", "UBUNTU/24.04"],
    "centos/9": ["centos/9", "CentOS/9"],
}
SPELLED = st.sampled_from([(platform, each) for platform, spellings in SPELLINGS.items() for each in spellings])
ARCHS = ["x86_64", "arm64"]
VALUES: dict[str, list[str]] = {
    "project": ["ceph", "ceph", "ceph", "csi"],
    "ref": ["main", "main", "wip"],
    "sha1": ["aa", "bb", "cc", "dd"],
    "flavor": ["default", "default", "crimson"],
    "status": ["ready", "ready", "ready", "building"],
}


@st.composite
def posts(draw: st.DrawFn) -> tuple[int, str, Known]:
    """How far the clock moves, the spelling of the platform, and the repo."""
    platform, spelled = draw(SPELLED)
    values = {name: draw(st.sampled_from(each)) for name, each in VALUES.items()}
    if draw(st.integers(0, 9)) == 0:
        values["status"] = "deleted"
    archs = draw(st.lists(st.sampled_from(ARCHS), unique=True, max_size=2))
    number = draw(st.sampled_from("abcdefghijklmnop"))
    return draw(st.integers(0, 2)), spelled, Known(number, 0, 0, platform=platform, archs=archs, **values)


@st.composite
def questions(draw: st.DrawFn) -> tuple[dict[str, str], list[Asked], bool, int]:
    """Filters, distributions, whether the latest is wanted, and how many on a page."""
    names = draw(st.sets(st.sampled_from(list(VALUES)), max_size=3))
    filters = {name: draw(st.sampled_from(VALUES[name])) for name in sorted(names)}
    asked = draw(
        st.lists(
            st.builds(lambda spelled, arch: Asked(*spelled, arch), SPELLED, st.sampled_from([None, None, *ARCHS])),
            max_size=3,
        )
    )
    latest = draw(st.booleans())
    if latest:
        filters.pop("sha1", None)
    return filters, asked, latest, draw(st.sampled_from([1, 2, 3, 100]))


PLACES = st.tuples(
    st.sampled_from(VALUES["ref"]),
    SPELLED,
    st.sampled_from([None, "default", "crimson"]),
    st.sampled_from([None, *ARCHS]),
)


def check_search(
    app: TestApp, reference: Reference, filters: dict[str, str], asked: list[Asked], latest: bool, count: int
) -> None:
    query = {**filters, "count": str(count)}
    if asked:
        query["distros"] = ",".join(each.text() for each in asked)
    if latest:
        query["sha1"] = "latest"
    expected = reference.latest(filters, asked) if latest else reference.search(filters, asked)
    assert numbers(walk(app, f"/api/search?{urlencode(query)}")) == [repo.number for repo in expected], query


def check_latest(
    app: TestApp, reference: Reference, ref: str, spelled: tuple[str, str], flavor: str | None, arch: str | None
) -> None:
    root = f"/api/repos/ceph/{ref}/latest"
    platform, spelling = spelled
    distro = platform.partition("/")[0]
    place = {"project": "ceph", "ref": ref}
    levels: list[tuple[str, dict[str, str | None], Callable[[Known], Any]]] = [
        ("", {}, lambda repo: repo.platform.partition("/")[0]),
        (f"/{spelling}/flavors", {"platform": platform}, lambda repo: repo.flavor),
    ]
    for path, more, value in levels:
        expected = reference.latest_at(**place, **more)
        answer = app.get(f"{root}{path}", status="*")
        if expected is None:
            assert answer.status_int == (504 if "ceph" in reference.projects else 404)
        else:
            assert sorted(each.lower() for each in answer.json) == sorted({value(repo) for repo in expected})

    # The versions of a distribution, by what one of its spellings stands for.
    ready = [repo for repo in reference.choose(**place, status="ready") if repo.platform.startswith(f"{distro}/")]
    answer = app.get(f"{root}/{distro}", status="*")
    if ready:
        versions = {
            repo.platform for repo in reference.choose(**place, sha1=ready[0].sha1) if repo.platform.startswith(distro)
        }
        stands_for = {spelling.lower(): name for name, spellings in SPELLINGS.items() for spelling in spellings}
        assert {stands_for[f"{distro}/{version}".lower()] for version in answer.json} == versions
        assert len(answer.json) == len(versions)
    else:
        assert answer.status_int in (504, 404)

    leaf = f"{root}/{spelling}" if flavor is None else f"{root}/{spelling}/flavors/{flavor}"
    at = {**place, "platform": platform, "flavor": flavor or "default"}
    listed, found = reference.latest_at(**at), reference.ready_at(arch, **at)
    answer = app.get(leaf, status="*")
    if listed is None:
        assert answer.status_int == (504 if "ceph" in reference.projects else 404)
    else:
        assert numbers(answer.json) == [repo.number for repo in listed]
    redirects = [(f"repo?arch={arch}" if arch else "repo", "https://chacra.example/repos/{}/repo")]
    if arch:
        redirects.append((f"{arch}/a/b", "https://chacra.example/r/{}/a/b"))
    for path, location in redirects:
        answer = app.get(f"{leaf}/{path}", status="*")
        if found is None:
            assert answer.status_int == (504 if "ceph" in reference.projects else 404)
        else:
            assert answer.headers["Location"] == location.format(found.number)


@configured(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    acts=st.lists(posts(), min_size=2, max_size=22),
    asked=st.lists(questions(), min_size=3, max_size=6),
    places=st.lists(PLACES, min_size=1, max_size=2),
)
def test_search_and_latest_find_what_going_through_all_repos_finds(
    app: TestApp,
    session: Session,
    stopped_clock: Any,
    acts: list[tuple[int, str, Known]],
    asked: list[tuple[dict[str, str], list[Asked], bool, int]],
    places: list[tuple[str, tuple[str, str], str | None, str | None]],
) -> None:
    reference, now = Reference(), 0
    with undone(session):
        for step, spelled, new in acts:
            now += step
            stopped_clock.advance(microseconds=step)
            distro, version = spelled.split("/")
            values = {name: getattr(new, name) for name in ("ref", "sha1", "flavor", "status", "archs")}
            post_repo(app, new.number, new.project, distro=distro, distro_version=version, **values)
            reference.post(now, new)
        for question in asked:
            check_search(app, reference, *question)
        for place in places:
            check_latest(app, reference, *place)


# Waiting


@pytest.fixture
def make(committed: Engine, settings: Settings) -> Callable[..., TestApp]:
    """The application over a database where transactions commit, with changed settings."""

    def make(**changes: Any) -> TestApp:
        app = TestApp(make_app(replace(settings, **changes)))
        app.authorization = ("Basic", (USER, KEY))
        return app

    return make


def client(app: TestApp) -> TestApp:
    """Give a client for a thread of its own."""
    other = TestApp(app.app)
    other.authorization = ("Basic", (USER, KEY))
    return other


def somebody_waits(app: TestApp) -> bool:
    """Tell, where one request may wait, whether one does."""
    return bool(client(app).get("/api/search?project=none&wait=0.01", status="*").status_int == 503)


def until_somebody_waits(app: TestApp) -> None:
    deadline = time.monotonic() + 20
    while not somebody_waits(app):
        assert time.monotonic() < deadline, "nobody waits"


def wait_for(app: TestApp, query: str) -> Any:
    """Wait; whoever only looks whether somebody waits may be in the place for a moment."""
    while (answer := client(app).get(f"/api/search?{query}", status="*")).status_int == 503:
        pass
    return answer


@pytest.mark.parametrize(
    ("query", "others"),
    [
        ("project=ceph&ref=main&status=ready", {"status": "building"}),
        ("sha1=latest&distros=ubuntu/jammy,centos/9&status=ready", {"distro": "centos", "distro_version": "9"}),
        ("sha1=latest&project=ceph", {"project": "other"}),
    ],
)
def test_a_waiting_search_answers_as_soon_as_what_it_asks_for_is_posted(
    make: Callable[..., TestApp], at_once: Callable[..., list[Any]], query: str, others: dict[str, Any]
) -> None:
    app = make(max_waiters=1)
    heard = threading.Event()

    def wait() -> Any:
        try:
            return wait_for(app, f"{query}&wait=30").json
        finally:
            heard.set()

    def report() -> None:
        until_somebody_waits(app)
        post_repo(client(app), "other", **others)
        # Something else does not end the wait, and whoever does not wait is answered meanwhile.
        assert somebody_waits(app)
        assert client(app).get("/api/search").status_int == 200
        assert not heard.is_set()
        post_repo(client(app), "it")

    began = time.monotonic()
    found, _ = at_once([wait, report])
    assert "it" in numbers(found)
    assert time.monotonic() - began < 20
    # The place is free again.
    assert app.get("/api/search?project=nosuch&wait=0.01").json == []


def test_what_is_there_already_is_not_waited_for_even_if_all_places_are_taken(
    make: Callable[..., TestApp], at_once: Callable[..., list[Any]]
) -> None:
    app = make(max_waiters=1)
    post_repo(app)

    def others() -> None:
        until_somebody_waits(app)
        began = time.monotonic()
        assert numbers(client(app).get("/api/search?project=ceph&wait=30").json) == ["1"]
        assert time.monotonic() - began < 5
        refused = client(app).get("/api/search?project=other&wait=30", status=503)
        assert refused.content_type == "text/plain"
        assert int(refused.headers["Retry-After"]) > 0
        post_repo(client(app), 2, project="awaited")

    found, _ = at_once([lambda: wait_for(app, "project=awaited&wait=30").json, others])
    assert numbers(found) == ["2"]


def test_a_wait_for_what_does_not_come_ends_with_an_empty_list_at_its_deadline(make: Callable[..., TestApp]) -> None:
    app = make()
    for query in ("", "&sha1=latest", "&sha1=latest&distros=ubuntu/jammy"):
        began = time.monotonic()
        assert app.get(f"/api/search?project=nosuch&wait=0.3{query}").json == []
        assert 0.3 <= time.monotonic() - began < 5


def test_a_wait_is_no_longer_than_the_setting(make: Callable[..., TestApp]) -> None:
    began = time.monotonic()
    assert make(max_wait=0.1).get("/api/search?wait=3600").json == []
    assert time.monotonic() - began < 5


def test_nobody_waits_where_the_setting_allows_none(make: Callable[..., TestApp]) -> None:
    app = make(max_waiters=0)
    assert app.get("/api/search").json == app.get("/api/search?wait=0").json == []
    assert "Retry-After" in app.get("/api/search?wait=1", status=503).headers
    post_repo(app)
    assert len(app.get("/api/search?wait=1").json) == 1


@pytest.mark.parametrize("seconds", ["0.6", "20"])
def test_a_repo_that_is_not_the_newest_of_all_ends_a_wait_too(
    make: Callable[..., TestApp],
    at_once: Callable[..., list[Any]],
    stopped_clock: Any,
    monkeypatch: pytest.MonkeyPatch,
    seconds: str,
) -> None:
    """One that takes long to commit, or comes from a clock that is slow: at the next look, or at the deadline."""
    if seconds == "20":
        monkeypatch.setattr(waiting, "AT_LEAST", 0.4)
    app = make(max_waiters=1)
    post_repo(app, "newest", project="other")
    stopped_clock.advance(days=-1)

    def report() -> None:
        until_somebody_waits(app)
        post_repo(client(app), "late", project="ceph")

    began = time.monotonic()
    found, _ = at_once([lambda: wait_for(app, f"project=ceph&wait={seconds}").json, report])
    assert numbers(found) == ["late"]
    assert time.monotonic() - began < 10


def test_a_waiting_search_holds_no_database_connection_between_its_looks(
    make: Callable[..., TestApp], at_once: Callable[..., list[Any]], committed: Engine
) -> None:
    app = make(max_waiters=1)
    pool: Any = committed.pool
    # What tests before this one have left going, such as looking for output of jobs.
    others = pool.checkedout()

    def watch() -> int:
        until_somebody_waits(app)
        deadline = time.monotonic() + 20
        free = 0
        while free < 100:
            assert time.monotonic() < deadline, "a connection is held"
            free += pool.checkedout() <= others
        assert somebody_waits(app)
        post_repo(client(app))
        return free

    _, free = at_once([lambda: wait_for(app, "project=ceph&wait=30").json, watch])
    assert free == 100


def test_many_waiting_searches_ask_the_database_together(
    make: Callable[..., TestApp], at_once: Callable[..., list[Any]], committed: Engine
) -> None:
    app = make()
    glances: list[float] = []
    finds: list[float] = []
    seconds = 1.5

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        prepared = {execute: sql for sql, execute in connection.info.get("labctl_prepared", {}).items()}
        sql = prepared.get(statement, statement)
        if "FROM repos" in sql:
            (finds if "document" in sql else glances).append(time.monotonic())

    def ask_with(waiters: int) -> None:
        del glances[:], finds[:]
        url = f"/api/search?project=nosuch&wait={seconds}"
        answers = at_once([lambda: client(app).get(url).json] * waiters)
        assert answers == [[]] * waiters
        # However many they are, not more often than this.
        assert len(glances) - 1 <= (glances[-1] - glances[0]) / (waiting.INTERVAL / 2)
        assert len(glances) >= seconds / waiting.INTERVAL / 2
        # Each has looked when it came, and at its deadline.
        assert len(finds) == 2 * waiters

    event.listen(committed, "before_cursor_execute", note)
    try:
        ask_with(2)
        ask_with(20)
    finally:
        event.remove(committed, "before_cursor_execute", note)
