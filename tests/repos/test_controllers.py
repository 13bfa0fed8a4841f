"""``/api/repos`` and ``/api/builds``: what clients send and get, and what is in the database afterwards."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as configured
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl.app import make_app
from labctl.events.models import Event
from labctl.models import metadata
from labctl.settings import Settings
from labctl.tokens import service as tokens
from tests.repos.factories import (
    BUILD_KEYS,
    KEY,
    REPO_KEYS,
    SHA1,
    USER,
    ask,
    build,
    next_of,
    numbers,
    post_build,
    post_repo,
    repo,
    walk,
)

SLASHES = pytest.mark.parametrize("slash", ["", "/"])
TIME = re.compile(r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}\.\d{6}\+00:00")
JAMMY = f"/api/repos/ceph/main/{SHA1}/ubuntu/jammy"
LATEST = "/api/repos/ceph/main/latest/ubuntu/jammy"
BUILDS = f"/api/builds/ceph/main/{SHA1}"

#: The example of shaman's documentation.
EXAMPLE = {
    "distro": "Ubuntu",
    "distro_version": "Trusty",
    "ref": "jewel",
    "sha1": SHA1,
    "url": f"https://chacra.ceph.com/r/ceph/jewel/{SHA1}/ubuntu/trusty/",
    "chacra_url": f"https://chacra.ceph.com/repos/ceph/jewel/{SHA1}/ubuntu/trusty/",
    "status": "requested",
}


@pytest.fixture
def rows(session: Session) -> Callable[[], dict[str, int]]:
    """Count the rows of every table."""
    return lambda: {
        table.name: session.scalar(select(func.count()).select_from(table)) for table in metadata.sorted_tables
    }


def found(app: TestApp, **query: str) -> list[dict[str, Any]]:
    return list(app.get("/api/search/", query).json)


def one(app: TestApp, **query: str) -> dict[str, Any]:
    (only,) = found(app, **query)
    return dict(only)


# Projects: S1, S2


@SLASHES
def test_the_index_and_the_tree_of_repos_tell_the_projects(app: TestApp, anybody: TestApp, slash: str) -> None:
    assert anybody.get(f"/api{slash}").json["repos"] == []
    assert anybody.get(f"/api/repos{slash}").json == {}
    post_repo(app, 1, ref="main", sha1="aa")
    post_repo(app, 2, ref="jewel", sha1="aa")
    post_repo(app, 3, ref="jewel", sha1="bb")
    post_repo(app, 4, project="ceph-csi", ref="v1")
    assert sorted(anybody.get(f"/api{slash}").json["repos"]) == ["ceph", "ceph-csi"]
    listed = anybody.get(f"/api/repos{slash}").json
    assert sorted(listed) == ["ceph", "ceph-csi"]
    assert {key: sorted(values) for key, values in listed["ceph"].items()} == {
        "refs": ["jewel", "main"],
        "sha1s": ["aa", "bb"],
    }
    assert listed["ceph-csi"] == {"refs": ["v1"], "sha1s": [SHA1]}


def test_a_project_that_has_only_builds_is_a_project_without_repos(app: TestApp) -> None:
    post_build(app)
    assert app.get("/api/").json["repos"] == ["ceph"]
    assert app.get("/api/repos/").json == {"ceph": {"refs": [], "sha1s": []}}
    assert app.get("/api/builds/").json == {"ceph": ["main"]}
    assert app.get("/api/repos/ceph").json == []


# Posting repos: S3


@SLASHES
def test_the_example_of_the_documentation_is_added_and_then_updated_by_its_chacra_url(
    app: TestApp, slash: str, stopped_clock: Any
) -> None:
    assert app.post_json(f"/api/repos/ceph{slash}", EXAMPLE).json == {}
    shown = one(app)
    assert list(shown) == REPO_KEYS
    assert shown == {
        **EXAMPLE,
        "distro_version": "14.04",
        "distro_codename": "trusty",
        "modified": "2026-01-02 03:04:05.000000+00:00",
        "flavor": "default",
        "project": "ceph",
        "archs": [],
        "extra": {},
    }
    stopped_clock.advance(seconds=1.5)
    update = {"chacra_url": EXAMPLE["chacra_url"], "status": "ready"}
    assert app.post_json(f"/api/repos/ceph{slash}", update).json == {}
    assert one(app) == {**shown, "status": "ready", "modified": "2026-01-02 03:04:06.500000+00:00"}


def test_what_chacra_sends_beside_a_repo_is_ignored(app: TestApp) -> None:
    others = {
        "path": None,
        "project_name": "other",
        "modified": "1999-01-01 00:00:00",
        "signed": False,
        "needs_update": True,
        "is_updating": [1],
        "is_queued": {"a": "b"},
        "type": "rpm",
        "size": 0,
        "id": 99,
        "node_url": "https://other.example/",
        "project": "other",
        "document": "{}",
    }
    assert app.post_json("/api/repos/ceph/", repo(**others)).json == {}
    assert one(app)["project"] == "ceph"
    assert list(one(app)) == REPO_KEYS
    assert not one(app)["modified"].startswith("1999")
    assert one(app)["chacra_url"] == repo()["chacra_url"]


def test_a_known_repo_changes_in_nothing_but_status_url_extra_and_archs(app: TestApp, stopped_clock: Any) -> None:
    post_repo(app, status="queued", extra={"version": "1", "b": 2}, archs=["x86_64"], flavor="crimson")
    before = one(app)
    stopped_clock.advance(seconds=1)
    post_repo(
        app,
        ref="other",
        sha1="ffff",
        distro="centos",
        distro_version="9",
        flavor="other",
        status="ready",
        url="https://new.example/",
        extra={"version": "2"},
        archs=["arm64"],
    )
    assert one(app) == {
        **before,
        "status": "ready",
        "url": "https://new.example/",
        "extra": {"version": "2"},
        "archs": ["x86_64", "arm64"],
        "modified": "2026-01-02 03:04:06.000000+00:00",
    }
    assert app.get("/api/repos/ceph/").json == ["main"]


@pytest.mark.parametrize(
    ("sent", "changed"),
    [
        ({"status": "ready"}, {"status": "ready"}),
        ({"url": "https://u/"}, {"url": "https://u/"}),
        ({"url": ""}, {"url": ""}),
        ({"extra": {}}, {"extra": {}}),
        ({"extra": {"n": [1, None, "ä"]}}, {"extra": {"n": [1, None, "ä"]}}),
        ({"archs": ["arm64"]}, {"archs": ["x86_64", "arm64"]}),
        ({"archs": []}, {}),
        ({"status": None, "url": None, "extra": None, "archs": None, "flavor": None, "ref": None}, {}),
        ({}, {}),
    ],
)
def test_of_a_known_repo_only_what_is_sent_changes_and_modified_moves(
    app: TestApp, stopped_clock: Any, sent: dict[str, Any], changed: dict[str, Any]
) -> None:
    post_repo(app, status="building", extra={"version": "1"})
    before = one(app)
    stopped_clock.advance(seconds=1)
    assert app.post_json("/api/repos/ceph/", {"chacra_url": repo()["chacra_url"], **sent}).json == {}
    assert one(app) == {**before, **changed, "modified": "2026-01-02 03:04:06.000000+00:00"}


def test_a_repo_is_known_by_its_chacra_url_over_all_projects(app: TestApp) -> None:
    post_repo(app, project="ceph", status="queued")
    post_repo(app, project="other", status="ready")
    assert (one(app)["project"], one(app)["status"]) == ("ceph", "ready")
    app.post_json("/api/repos/third/", {"chacra_url": repo()["chacra_url"], "status": "failed"})
    assert (one(app)["project"], one(app)["status"]) == ("ceph", "failed")
    # Another chacra_url is another repo, whatever else is the same; so is one with other letters' case.
    post_repo(app, chacra_url=repo()["chacra_url"].rstrip("/"))
    post_repo(app, chacra_url=repo()["chacra_url"].replace("repos", "Repos"))
    assert len(found(app)) == 3
    app.post_json("/api/repos/other/", {"chacra_url": repo()["chacra_url"], "status": "deleted"})
    assert len(found(app)) == 2


@pytest.mark.parametrize("flavor", [..., None, "default"])
def test_a_repo_without_a_flavor_is_of_the_default_one(app: TestApp, flavor: Any) -> None:
    post_repo(app, flavor=flavor)
    assert one(app)["flavor"] == "default"
    assert app.get(JAMMY).json == app.get(f"{JAMMY}/flavors/default").json == [one(app)]


def test_architectures_are_added_in_the_order_they_come_and_never_removed(app: TestApp) -> None:
    post_repo(app, archs=["source", "x86_64", "source"])
    assert one(app)["archs"] == ["source", "x86_64"]
    for archs in (["noarch", "x86_64", "arm64", "noarch"], [], ..., None, ["arm64"], ["aarch64"]):
        post_repo(app, archs=archs)
    assert one(app)["archs"] == ["source", "x86_64", "noarch", "arm64", "aarch64"]


def test_a_new_repo_may_be_posted_without_url_extra_and_archs(app: TestApp) -> None:
    post_repo(app, url=..., extra=..., archs=...)
    assert (one(app)["url"], one(app)["extra"], one(app)["archs"]) == ("", {}, [])


@pytest.mark.parametrize(
    ("distro", "version", "number", "codename"),
    [
        ("ubuntu", "jammy", "22.04", "jammy"),
        ("ubuntu", "22.04", "22.04", "jammy"),
        ("Ubuntu", "JAMMY", "22.04", "jammy"),
        ("ubuntu", "noble", "24.04", "noble"),
        ("debian", 12, "12", "bookworm"),
        ("debian", "bookworm", "12", "bookworm"),
        ("centos", 9, "9", None),
        ("centos", "9", "9", None),
        ("centos", "8.5", "8.5", None),
        ("fedora", "rawhide", None, "rawhide"),
    ],
)
def test_a_repo_shows_number_and_codename_whichever_was_posted(
    app: TestApp, distro: str, version: Any, number: str | None, codename: str | None
) -> None:
    post_repo(app, distro=distro, distro_version=version)
    shown = one(app)
    assert (shown["distro"], shown["distro_version"], shown["distro_codename"]) == (distro, number, codename)


NEEDED = ["chacra_url", "ref", "sha1", "distro", "distro_version", "status"]


@pytest.mark.parametrize("missing", [[name] for name in NEEDED] + [NEEDED, ["ref", "status"], ["chacra_url", "sha1"]])
@pytest.mark.parametrize("value", [..., None])
def test_a_new_repo_without_what_it_needs_is_refused_with_the_names_of_all_that_is_missing(
    app: TestApp, rows: Callable[[], dict[str, int]], missing: list[str], value: Any
) -> None:
    before = rows()
    answer = app.post_json("/api/repos/ceph/", repo(**dict.fromkeys(missing, value)), status=400)
    assert answer.content_type == "text/plain"
    assert {name for name in NEEDED if re.search(rf"\b{name}\b", answer.text)} == set(missing)
    assert rows() == before


WRONG: list[tuple[str, Any]] = [
    *((name, value) for name in ("ref", "sha1", "distro", "status", "flavor") for value in (True, 1.5, [], {}, ["a"])),
    *(("distro_version", value) for value in (True, 22.04, [], {})),
    *((name, value) for name in ("chacra_url", "url") for value in (1, True, [], {}, "https://a b/", "https://ä/")),
    *((name, "") for name in ("chacra_url", "ref", "sha1", "distro", "distro_version", "status", "flavor")),
    *(("extra", value) for value in ("", "{}", 1, [], [{}], False)),
    *(("archs", value) for value in ("x86_64", {}, 1, [1.5], [None], [["a"]], [""], [True])),
    *((name, "x" * 3000) for name in ("chacra_url", "url", "ref", "sha1", "distro", "distro_version", "status")),
    *((name, "x" * 3000) for name in ("flavor",)),
    ("archs", ["x" * 3000]),
    *((name, "a\0b") for name in ("chacra_url", "url", "ref", "sha1", "distro", "distro_version", "status", "flavor")),
    ("archs", ["a\0b"]),
    ("extra", {"a": ["\0"]}),
    ("extra", {"a\0": 1}),
    # A line break in what goes into the header of a redirect.
    *((name, f"https://a/{bad}Set-Cookie: a=b") for name in ("chacra_url", "url") for bad in ("\n", "\r\n", "\r")),
    *((name, f"https://a/{bad}") for name in ("chacra_url", "url") for bad in ("\t", "\x7f", "\x0b", " ", "\u2028")),
    *((name, "a\nb") for name in ("ref", "sha1", "distro", "distro_version", "status", "flavor")),
    ("archs", ["a\nb"]),
    ("sha1", "latest"),
    ("distro", "ubuntu/jammy"),
    ("distro", "/"),
    ("distro_version", "22.04/"),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_repo_with_something_wrong_is_refused_with_the_name_of_the_field(
    app: TestApp, rows: Callable[[], dict[str, int]], field: str, value: Any
) -> None:
    post_repo(app, "known")
    before = rows()
    for number in ("new", "known"):
        answer = app.post_json("/api/repos/ceph/", repo(number, **{field: value}), status=400)
        assert answer.content_type == "text/plain"
        assert re.match(rf"{field}\b", answer.text), answer.text
    assert rows() == before


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff", "JSON"),
        (b"chacra_url=a&status=ready", "JSON"),
        (b"[]", "object"),
        (b"null", "object"),
        (b'"a"', "object"),
        (b"{}", "chacra_url"),
        (b'{"extra": ' + b'{"a":' * 99 + b"1" + b"}" * 99 + b"}", "chacra_url"),
        (b'{"extra": ' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"}", "extra"),
        (b'{"chacra_url": "\\ud800"}', "JSON"),
        (b" " * (3 * 1024 * 1024), "larger"),
    ],
)
def test_a_body_that_is_no_report_is_refused(app: TestApp, raw: bytes, named: str) -> None:
    for url in ("/api/repos/ceph/", "/api/builds/ceph/"):
        answer = app.post(url, raw, content_type="application/json", status=400)
        assert answer.content_type == "text/plain"
        assert named in answer.text or (named == "chacra_url" and "url" in answer.text)


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/json"])
def test_json_is_read_whatever_its_content_type(app: TestApp, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    assert app.post("/api/repos/ceph/", json.dumps(repo()), headers=headers).json == {}
    assert app.post("/api/builds/ceph/", json.dumps(build()), headers=headers).json == {}
    assert len(found(app)) == len(app.get(BUILDS).json) == 1


@pytest.mark.parametrize("sha1", ["Latest", "latest2", "LATEST", "nolatest"])
def test_what_only_looks_like_latest_is_a_commit(app: TestApp, sha1: str) -> None:
    post_repo(app, sha1=sha1)
    assert numbers(app.get(f"/api/repos/ceph/main/{sha1}/ubuntu/jammy").json) == ["1"]


def test_the_longest_and_strangest_names_are_kept_as_they_are(app: TestApp) -> None:
    chance = Random(0)

    def name(length: int) -> str:
        """Give characters of four bytes each; what can be compressed would take less room in an index."""
        return "".join(chr(chance.randrange(0x20000, 0x2A6DF)) for _ in range(length))

    lengths = {"ref": 256, "sha1": 128, "distro": 64, "distro_version": 64, "status": 64, "flavor": 64}
    mixed = {key: name(length) for key, length in lengths.items()}
    project = name(128)
    url = "https://c/" + "".join(chr(33 + n * n % 90) for n in range(1990))
    sent = repo(**mixed, chacra_url=url, url=url, archs=[name(64)])
    path = f"/api/repos/{quote(project)}/"
    assert ask(app, path, "post", params=json.dumps(sent)).json == {}
    shown = one(app, project=project)
    assert {key: shown[key] for key in ("ref", "sha1", "distro", "status", "flavor")} == {
        key: mixed[key] for key in ("ref", "sha1", "distro", "status", "flavor")
    }
    assert (shown["chacra_url"], shown["url"], shown["archs"]) == (url, url, sent["archs"])
    below = "/".join(quote(mixed[key], safe="") for key in ("ref", "sha1", "distro", "distro_version"))
    leaf = f"{path}{below}/flavors/{quote(mixed['flavor'])}"
    assert ask(app, leaf).json == [shown]
    assert ask(app, path).json == [mixed["ref"]]
    sent = build(**mixed, url=url, log_url=url, distro_arch="a" * 64)
    assert ask(app, path.replace("/repos/", "/builds/"), "post", params=json.dumps(sent)).json == {}
    assert ask(app, leaf, "delete").json == {}


@pytest.mark.parametrize("name", ["x" * 129, "a%0Ab", "a%01b", "%E2%80%A8"])
def test_a_project_that_is_no_name_is_refused(app: TestApp, name: str) -> None:
    for tree, data in (("repos", repo()), ("builds", build())):
        answer = ask(app, f"/api/{tree}/{name}/", "post", params=json.dumps(data), status=400)
        assert answer.text.startswith("project: ")
    assert app.get("/api/").json["repos"] == []


@pytest.mark.parametrize("ref", ["a/b", "wip-ä b", "100%", "a?b#c", "v1.0", "...", "latest", "+", ";", "%2F"])
def test_a_ref_of_any_name_is_found_by_its_encoded_name(app: TestApp, ref: str) -> None:
    post_repo(app, ref=ref, sha1="1/2", flavor="a/b c", distro="ubuntu+", distro_version="x y")
    post_build(app, ref=ref, sha1="1/2")
    assert app.get("/api/repos/ceph").json == app.get("/api/builds/ceph").json == [ref]
    segment = quote(ref, safe="")
    assert ask(app, f"/api/repos/ceph/{segment}").json == ["1/2"]
    assert ask(app, f"/api/repos/ceph/{segment}/1%2F2").json == ["ubuntu+"]
    assert ask(app, f"/api/repos/ceph/{segment}/1%2F2/ubuntu+").json == ["x y"]
    leaf = f"/api/repos/ceph/{segment}/1%2F2/ubuntu+/x%20y"
    assert ask(app, f"{leaf}/flavors").json == ["a/b c"]
    assert ask(app, f"{leaf}/flavors/a%2Fb%20c").json == [one(app, ref=ref)]
    assert len(ask(app, f"/api/builds/ceph/{segment}/1%2F2").json) == 1


#: What JSON can say and the database store.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
VALUES = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)


@configured(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    extra=st.dictionaries(
        TEXT,
        st.recursive(
            VALUES | TEXT,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_any_extra_is_kept_as_it_is(app: TestApp, extra: dict[str, Any]) -> None:
    post_repo(app, extra=extra)
    post_build(app, extra=extra)
    assert one(app)["extra"] == builds(app)[0]["extra"] == extra


# Who may: S3, S4, S25


@SLASHES
def test_whoever_has_no_credential_may_read_everything_and_post_or_delete_nothing(
    app: TestApp, anybody: TestApp, rows: Callable[[], dict[str, int]], slash: str
) -> None:
    post_repo(app)
    post_build(app)
    before = rows()
    tree = [f"/api/repos/ceph/main/{SHA1}/ubuntu/jammy".rsplit("/", count)[0] for count in range(6)]
    for url in (*tree, f"{JAMMY}/flavors", f"{JAMMY}/flavors/default", "/api/builds", "/api/builds/ceph", BUILDS):
        assert anybody.get(f"{url}{slash}").status_int == 200
    for url in (f"{JAMMY}/repo", f"{JAMMY}/x86_64", f"{JAMMY}/flavors/default/repo"):
        assert anybody.get(f"{url}{slash}").status_int == 302
    for tree_, data in (("repos", repo(2)), ("builds", build(2)), ("repos", repo(status="deleted")), ("repos", {})):
        answer = anybody.post_json(f"/api/{tree_}/ceph{slash}", data, status=401)
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    for url in (JAMMY, f"{JAMMY}/flavors/default"):
        answer = anybody.delete(f"{url}{slash}", status=401)
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    assert rows() == before


@pytest.mark.parametrize(
    ("user", "key"), [(USER, "wrong"), ("wrong", KEY), (USER, ""), ("", KEY), ("", ""), (KEY, USER), (USER, KEY + "x")]
)
def test_a_wrong_api_user_or_api_key_is_refused_even_for_reading(app: TestApp, user: str, key: str) -> None:
    app.authorization = ("Basic", (user, key))
    for answer in (
        app.post_json("/api/repos/ceph/", repo(), status=401),
        app.post_json("/api/builds/ceph/", build(), status=401),
        app.delete(JAMMY, status=401),
        app.get("/api/repos/", status=401),
    ):
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
        assert answer.content_type == "text/plain"


@pytest.mark.parametrize(("user", "key"), [("", ""), ("chacra", ""), ("", "secret")])
def test_there_is_no_pair_where_half_of_it_is_not_configured(
    session: Session, settings: Settings, user: str, key: str
) -> None:
    app = TestApp(make_app(replace(settings, api_user=user, api_key=key)))
    app.authorization = ("Basic", (user, key))
    app.post_json("/api/repos/ceph/", repo(), status=401)


def test_a_token_is_accepted_by_basic_with_any_user_name_by_bearer_and_by_its_own_header(
    app: TestApp, session: Session
) -> None:
    tokens.add_user(session, "jenkins", rights=["repos"])
    secret = tokens.create_token(session, "jenkins")
    for number, user in enumerate(("jenkins", "", "chacra", "whoever")):
        app.authorization = ("Basic", (user, secret))
        post_repo(app, number)
        post_build(app, number, sha1=str(number))
    app.authorization = None
    for number, headers in enumerate(({"Authorization": f"Bearer {secret}"}, {"X-Auth-Token": secret})):
        app.post_json("/api/repos/ceph/", repo(f"h{number}"), headers=headers)
    assert len(found(app)) == 6
    assert app.delete(JAMMY, headers={"X-AUTH-TOKEN": secret}).json == {}


def test_a_user_with_a_password_posts_with_the_right_and_does_not_without(app: TestApp, session: Session) -> None:
    tokens.add_user(session, "jenkins", password="builds a lot", rights=["repos"])
    tokens.add_user(session, "ada", password="reads a lot", rights=["runs", "nodes", "machines", "queue", "events"])
    app.authorization = ("Basic", ("jenkins", "builds a lot"))
    post_repo(app)
    app.authorization = ("Basic", ("ada", "reads a lot"))
    for answer in (
        app.post_json("/api/repos/ceph/", repo(2), status=403),
        app.post_json("/api/builds/ceph/", build(), status=403),
        app.delete(JAMMY, status=403),
    ):
        assert answer.content_type == "text/plain"
    assert numbers(app.get(JAMMY).json) == ["1"]


@pytest.mark.parametrize(
    ("method", "url", "allowed"),
    [
        ("DELETE", "/api/repos", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/api/repos", {"GET", "HEAD", "OPTIONS"}),
        ("PUT", "/api/repos/ceph", {"GET", "HEAD", "OPTIONS", "POST"}),
        ("DELETE", "/api/repos/ceph", {"GET", "HEAD", "OPTIONS", "POST"}),
        ("POST", "/api/repos/ceph/main", {"GET", "HEAD", "OPTIONS"}),
        ("DELETE", f"/api/repos/ceph/main/{SHA1}", {"GET", "HEAD", "OPTIONS"}),
        ("POST", JAMMY, {"GET", "HEAD", "OPTIONS", "DELETE"}),
        ("DELETE", f"{JAMMY}/flavors", {"GET", "HEAD", "OPTIONS"}),
        ("DELETE", f"{JAMMY}/repo", {"GET", "HEAD", "OPTIONS"}),
        ("DELETE", f"{JAMMY}/x86_64", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/api/search", {"GET", "HEAD", "OPTIONS"}),
        ("DELETE", "/api/builds/ceph", {"GET", "HEAD", "OPTIONS", "POST"}),
        ("DELETE", BUILDS, {"GET", "HEAD", "OPTIONS"}),
        ("PATCH", BUILDS, {"GET", "HEAD", "OPTIONS"}),
    ],
)
@SLASHES
def test_a_wrong_method_is_405_with_those_that_are_allowed(
    app: TestApp, method: str, url: str, allowed: set[str], slash: str
) -> None:
    answer = app.request(f"{url}{slash}", method=method, status=405)
    assert set(answer.headers["Allow"].split(", ")) == allowed
    assert answer.content_type == "text/plain"
    assert set(app.options(f"{url}{slash}").headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    "url", ["/api/search/x", f"{BUILDS}/x", f"{JAMMY}/repo/x", "/api/repos//main", "/api/repos/a%00b/main"]
)
def test_a_path_that_cannot_be_is_404_in_plain_text(app: TestApp, url: str) -> None:
    answer = ask(app, url, status=404)
    assert answer.content_type == "text/plain"


# Browsing: S6 to S10, S13, S14


def add_lab(app: TestApp, stopped_clock: Any) -> None:
    """Post repos, one a second; commit bb is newer than aa, and only parts of it are ready."""
    for number, changes in enumerate(
        [
            {"sha1": "aa", "distro_version": "jammy"},
            {"sha1": "aa", "distro_version": "22.04", "archs": ["arm64"]},
            {"sha1": "aa", "distro_version": "jammy", "flavor": "crimson"},
            {"sha1": "aa", "distro": "centos", "distro_version": "9"},
            {"sha1": "aa", "distro": "CentOS", "distro_version": "10"},
            {"sha1": "bb", "distro_version": "jammy", "status": "building"},
            {"sha1": "bb", "distro_version": "noble"},
            {"sha1": "bb", "distro": "centos", "distro_version": "9", "status": "failed"},
            {"sha1": "cc", "ref": "wip", "distro": "centos", "distro_version": "9", "status": "queued"},
        ]
    ):
        stopped_clock.advance(seconds=1)
        post_repo(app, number, **changes)


@SLASHES
@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("", ["main", "wip"]),
        ("/main", ["aa", "bb"]),
        ("/wip", ["cc"]),
        ("/nosuch", []),
        ("/main/aa", ["centos", "ubuntu"]),
        ("/main/bb", ["centos", "ubuntu"]),
        ("/main/latest", ["centos", "ubuntu"]),
        ("/main/nosuch", []),
        ("/nosuch/aa", []),
        ("/main/aa/ubuntu", ["jammy"]),
        ("/main/aa/Ubuntu", ["jammy"]),
        ("/main/aa/centos", ["10", "9"]),
        ("/main/aa/CENTOS", ["10", "9"]),
        ("/main/aa/cent", []),
        ("/main/aa/debian", []),
        ("/main/latest/ubuntu", ["jammy", "noble"]),
        ("/main/latest/centos", ["10", "9"]),
        ("/main/aa/ubuntu/jammy/flavors", ["crimson", "default"]),
        ("/main/aa/ubuntu/22.04/flavors", ["crimson", "default"]),
        ("/main/latest/ubuntu/jammy/flavors", ["crimson", "default"]),
        ("/main/bb/ubuntu/jammy/flavors", ["default"]),
        ("/main/aa/ubuntu/noble/flavors", []),
        ("/main/aa/ubuntu/noble", []),
        ("/main/aa/ubuntu/jammy/flavors/nosuch", []),
    ],
)
def test_each_level_lists_what_is_below(
    app: TestApp, stopped_clock: Any, path: str, values: list[str], slash: str
) -> None:
    add_lab(app, stopped_clock)
    answer = app.get(f"/api/repos/ceph{path}{slash}")
    assert answer.content_type == "application/json"
    assert sorted(answer.json) == values


@SLASHES
@pytest.mark.parametrize(
    ("path", "repos"),
    [
        ("aa/ubuntu/jammy", ["1", "0"]),
        ("aa/ubuntu/22.04", ["1", "0"]),
        ("aa/UBUNTU/Jammy", ["1", "0"]),
        ("aa/ubuntu/jammy/flavors/default", ["1", "0"]),
        ("aa/ubuntu/22.04/flavors/crimson", ["2"]),
        ("aa/centos/9", ["3"]),
        ("aa/centos/10", ["4"]),
        ("bb/ubuntu/jammy", ["5"]),
        ("latest/ubuntu/jammy", ["1", "0"]),
        ("latest/ubuntu/22.04/flavors/crimson", ["2"]),
        ("latest/ubuntu/noble", ["6"]),
        ("latest/centos/9", ["3"]),
    ],
)
def test_a_leaf_lists_its_repos_the_last_modified_first(
    app: TestApp, stopped_clock: Any, path: str, repos: list[str], slash: str
) -> None:
    add_lab(app, stopped_clock)
    listed = app.get(f"/api/repos/ceph/main/{path}{slash}").json
    assert numbers(listed) == repos
    every = {each["chacra_url"]: each for each in found(app)}
    assert listed == [every[each["chacra_url"]] for each in listed]
    assert all(list(each) == REPO_KEYS and TIME.fullmatch(each["modified"]) for each in listed)


def test_an_update_of_a_repo_makes_its_commit_the_latest(app: TestApp, stopped_clock: Any) -> None:
    for number, sha1 in enumerate("ab"):
        stopped_clock.advance(seconds=1)
        post_repo(app, number, sha1=sha1)
    assert numbers(app.get(LATEST).json) == ["1"]
    stopped_clock.advance(seconds=1)
    post_repo(app, 0, sha1="a")
    assert numbers(app.get(LATEST).json) == ["0"]
    stopped_clock.advance(seconds=1)
    post_repo(app, 0, sha1="a", status="failed")
    assert numbers(app.get(LATEST).json) == ["1"]


def test_of_commits_modified_at_the_same_time_the_one_posted_last_is_the_latest(
    app: TestApp, stopped_clock: Any
) -> None:
    for number in range(5):
        post_repo(app, number, sha1=str(number))
        assert numbers(app.get(LATEST).json) == [str(number)]


@SLASHES
@pytest.mark.parametrize(
    "below",
    [
        "",
        "/ubuntu",
        "/ubuntu/jammy",
        "/ubuntu/jammy/repo",
        "/ubuntu/jammy/x86_64",
        "/ubuntu/jammy/x86_64/a/b.deb",
        "/ubuntu/jammy/flavors",
        "/ubuntu/jammy/flavors/default",
        "/ubuntu/jammy/flavors/default/repo",
        "/ubuntu/jammy/flavors/default/x86_64/a",
    ],
)
@pytest.mark.parametrize("ref", ["main", "nosuch"])
def test_latest_where_nothing_is_ready_is_504_that_says_what_is_missing(
    app: TestApp, ref: str, below: str, slash: str
) -> None:
    post_repo(app, status="building")
    answer = app.get(f"/api/repos/ceph/{ref}/latest{below}{slash}", status=504)
    assert answer.content_type == "text/plain"
    assert answer.text.startswith(f"no repository is ready for: ceph/{ref}")


@SLASHES
@pytest.mark.parametrize(
    "below",
    [
        *("", "/main", "/main/aa", "/main/latest", "/main/latest/ubuntu", "/main/aa/ubuntu/jammy"),
        *("/main/latest/ubuntu/jammy", "/main/aa/ubuntu/jammy/flavors", "/main/aa/ubuntu/jammy/flavors/default"),
        *("/main/aa/ubuntu/jammy/repo", "/main/latest/ubuntu/jammy/x86_64", "/main/aa/ubuntu/jammy/x86_64/a"),
    ],
)
def test_whatever_is_asked_of_an_unknown_project_is_404(app: TestApp, below: str, slash: str) -> None:
    post_repo(app)
    answer = app.get(f"/api/repos/nosuch{below}{slash}", status=404)
    assert answer.content_type == "text/plain"
    assert "nosuch" in answer.text


def test_a_long_leaf_goes_on_at_its_link(app: TestApp, stopped_clock: Any) -> None:
    for number in range(7):
        stopped_clock.advance(seconds=number % 2)
        post_repo(app, number)
    expected = list("6543210")
    for count in (1, 2, 3, 6, 7, 8):
        assert numbers(walk(app, f"{JAMMY}?count={count}")) == expected
        assert numbers(walk(app, f"{LATEST}/flavors/default/?count={count}")) == expected
    assert numbers(app.get(f"{JAMMY}?count=2&page=2").json) == ["4", "3"]
    assert numbers(app.get(f"{LATEST}?count=2&page=2").json) == ["4", "3"]
    for leaf in (JAMMY, LATEST):
        assert app.get(f"{leaf}?count=7&page=2").json == []
        app.get(f"{leaf.replace('ceph', 'nosuch')}?page=2", status=404)
        assert app.get(f"{leaf}?count=0", status=400).text.startswith("count: ")


@SLASHES
@pytest.mark.parametrize("ref", ["main", "latest", "a/b", "<ä>; ?"])
@pytest.mark.parametrize("flavors", ["", "/flavors/default"])
def test_the_link_of_the_latest_leaf_stays_at_the_commit_that_was_the_latest(
    app: TestApp, stopped_clock: Any, ref: str, flavors: str, slash: str
) -> None:
    for number in range(3):
        post_repo(app, number, ref=ref, sha1="1/2?")
    first = ask(app, f"/api/repos/ceph/{quote(ref, safe='')}/latest/ubuntu/jammy{flavors}{slash}?count=2")
    stopped_clock.advance(seconds=1)
    post_repo(app, "newer", ref=ref, sha1="bb")
    assert numbers(first.json) + numbers(walk(app, next_of(first) or "")) == ["2", "1", "0"]


def test_the_commits_of_a_ref_are_listed_the_last_posted_first_in_parts_if_count_says_so(app: TestApp) -> None:
    for number in range(7):
        post_repo(app, number, sha1=f"sha{number}")
        post_build(app, number, sha1=f"sha{number}")
    expected = [f"sha{number}" for number in reversed(range(7))]
    for tree in ("repos", "builds"):
        answer = app.get(f"/api/{tree}/ceph/main")
        assert answer.json == expected
        assert "Link" not in answer.headers
        for count in (1, 3, 7, 8):
            assert walk(app, f"/api/{tree}/ceph/main/?count={count}") == expected
        for bad in ("count=0", "count=x", "after=x", "after=-1", f"after={2**63}"):
            answer = app.get(f"/api/{tree}/ceph/main?{bad}", status=400)
            assert answer.text.startswith(f"{bad.partition('=')[0]}: ")


# Redirects: S11, S12, S14


@SLASHES
@pytest.mark.parametrize("node_url", ["https://chacra.example/repos/a/b/", "https://chacra.example/repos/a/b"])
def test_repo_sends_to_the_file_on_the_storage_node(app: TestApp, node_url: str, slash: str) -> None:
    post_repo(app, chacra_url=node_url)
    for leaf in (
        JAMMY,
        f"{JAMMY}/flavors/default",
        LATEST,
        f"{LATEST}/flavors/default",
        LATEST.replace("jammy", "22.04"),
    ):
        for query in ("", "?arch=x86_64"):
            answer = app.get(f"{leaf}/repo{slash}{query}", status=302)
            assert answer.headers["Location"] == "https://chacra.example/repos/a/b/repo"
            assert app.head(f"{leaf}/repo{slash}{query}", status=302).headers["Location"] == answer.headers["Location"]


@pytest.mark.parametrize(
    ("asked", "tail"),
    [
        ("", ""),
        ("/", ""),
        ("/noarch/repodata/repomd.xml", "noarch/repodata/repomd.xml"),
        ("/a/b/", "a/b/"),
        ("/a%20b", "a%20b"),
        ("/%C3%A4", "%C3%A4"),
        ("/100%25", "100%25"),
        ("/a%3Fb%23c", "a%3Fb%23c"),
        ("/a%2Fb/c", "a%2Fb/c"),
        ("/a%0D%0ASet-Cookie:%20a=b", "a%0D%0ASet-Cookie%3A%20a%3Db"),
    ],
)
@pytest.mark.parametrize("leaf", [JAMMY, f"{LATEST}/flavors/default"])
def test_an_architecture_sends_to_the_packages_and_is_no_part_of_the_path_there(
    app: TestApp, asked: str, tail: str, leaf: str
) -> None:
    post_repo(app, url="https://chacra.example/r/a/b/")
    answer = ask(app, f"{leaf}/x86_64{asked}", status=302)
    assert answer.headers["Location"] == f"https://chacra.example/r/a/b/{tail}"
    assert "Set-Cookie" not in answer.headers


def test_names_of_packages_with_plus_and_tilde_lead_to_the_same_names(app: TestApp) -> None:
    post_repo(app, url="https://chacra.example/r/a")
    location = ask(app, f"{JAMMY}/x86_64/libstdc++_1:2~rc1-1,x@y.deb", status=302).headers["Location"]
    assert location.startswith("https://chacra.example/r/a/")
    # Encoded or not, both are the same name.
    name = location.removeprefix("https://chacra.example/r/a/")
    assert unquote(name) == "libstdc++_1:2~rc1-1,x@y.deb"
    assert name.isascii() and "/" not in name


def test_a_redirect_leads_to_the_newest_ready_repo_of_its_flavor_with_the_architecture(
    app: TestApp, stopped_clock: Any
) -> None:
    for number, changes in enumerate(
        [
            {"archs": ["x86_64"]},
            {"archs": ["x86_64", "arm64"]},
            {"archs": ["arm64"], "flavor": "crimson"},
            {"archs": ["x86_64"], "flavor": "crimson"},
            {"archs": ["riscv"], "status": "building"},
            {"archs": ["source"], "distro_version": "noble"},
        ]
    ):
        stopped_clock.advance(seconds=1)
        post_repo(app, number, **changes)
    post_repo(app, 0)
    stopped_clock.advance(seconds=1)
    post_repo(app, 0)

    def leads(path: str) -> str | None:
        answer = app.get(f"{JAMMY}/{path}", status="*")
        assert answer.status_int == 302 or answer.text.startswith("no repository is ready for: ceph/main")
        assert answer.status_int in (302, 504)
        return answer.headers.get("Location")

    repos = "https://chacra.example/repos"
    packages = "https://chacra.example/r"
    assert leads("repo") == f"{repos}/0/repo"
    assert leads("repo?arch=x86_64") == f"{repos}/0/repo"
    assert leads("repo?arch=arm64") == f"{repos}/1/repo"
    assert leads("repo?arch=riscv") is None
    assert leads("repo?arch=source") is None
    assert leads("flavors/crimson/repo") == f"{repos}/3/repo"
    assert leads("flavors/crimson/repo?arch=arm64") == f"{repos}/2/repo"
    assert leads("flavors/nosuch/repo") is None
    assert leads("x86_64") == f"{packages}/0/"
    assert leads("arm64/a") == f"{packages}/1/a"
    assert leads("riscv/a") is None
    assert leads("flavors/crimson/arm64") == f"{packages}/2/"
    assert leads("flavors/crimson/source") is None


def test_a_repo_whose_packages_have_no_url_yet_does_not_send_the_client_back_to_labctl(app: TestApp) -> None:
    """chacra sends ``url`` with every report, but the protocol lets a repo be added without."""
    post_repo(app, url=...)
    for tail in ("", "/repodata/repomd.xml"):
        answer = app.get(f"{JAMMY}/x86_64{tail}", status="*")
        assert not answer.headers.get("Location", "").startswith("http://localhost")
        assert answer.status_int == 504


@pytest.mark.parametrize("what", ["status", "arch"])
def test_latest_of_a_redirect_is_the_newest_commit_that_is_ready_in_that_place(
    app: TestApp, stopped_clock: Any, what: str
) -> None:
    post_repo(app, 1, sha1="aa")
    stopped_clock.advance(seconds=1)
    post_repo(app, 2, sha1="bb", **({"status": "building"} if what == "status" else {"distro_version": "noble"}))
    assert app.get(f"{LATEST}/x86_64", status=302).headers["Location"] == "https://chacra.example/r/1/"
    assert app.get(f"{LATEST}/repo", status=302).headers["Location"] == "https://chacra.example/repos/1/repo"


# Deleting: S3d, S4


@SLASHES
@pytest.mark.parametrize("version", ["jammy", "22.04", "Jammy"])
def test_delete_removes_the_repos_of_a_leaf_and_no_others(app: TestApp, slash: str, version: str) -> None:
    for number, changes in enumerate(
        [{}, {"distro_version": "22.04"}, {"flavor": "crimson"}, {"sha1": "bb"}, {"ref": "wip"}, {"distro": "debian"}]
    ):
        post_repo(app, number, **changes)
    post_repo(app, 6, project="other")
    leaf = f"/api/repos/ceph/main/{SHA1}/Ubuntu/{version}"
    assert app.delete(f"{leaf}{slash}").json == {}
    assert sorted(numbers(found(app))) == list("23456")
    assert app.delete(f"{leaf}{slash}", status=404).content_type == "text/plain"
    assert app.delete(f"{leaf}/flavors/default{slash}", status=404)
    assert app.delete(f"{leaf}/flavors/crimson{slash}").json == {}
    assert sorted(numbers(found(app))) == list("3456")


def test_latest_is_not_deleted(app: TestApp) -> None:
    post_repo(app)
    for url in (LATEST, f"{LATEST}/", f"{LATEST}/flavors/default"):
        assert "latest" in app.delete(url, status=400).text
    assert len(found(app)) == 1


@pytest.mark.parametrize(
    "leaf", ["nosuch/main/x/ubuntu/jammy", "ceph/nosuch/x/ubuntu/jammy", "ceph/main/x/a/b/flavors/c"]
)
def test_deleting_what_is_not_there_is_404(app: TestApp, leaf: str) -> None:
    post_repo(app)
    app.delete(f"/api/repos/{leaf}", status=404)
    assert len(found(app)) == 1


@pytest.mark.parametrize("sent", [repo(), {"chacra_url": repo()["chacra_url"]}])
def test_a_repo_that_is_posted_as_deleted_is_gone(
    app: TestApp, rows: Callable[[], dict[str, int]], sent: dict[str, Any]
) -> None:
    post_repo(app, 2)
    before = rows()
    post_repo(app)
    assert app.post_json("/api/repos/ceph/", {**sent, "status": "deleted"}).json == {}
    assert numbers(found(app)) == ["2"]
    assert {**rows(), "events": 0} == {**before, "events": 0}


def test_an_unknown_repo_that_is_posted_as_deleted_is_fine_with_all_fields_and_refused_without(
    app: TestApp, rows: Callable[[], dict[str, int]]
) -> None:
    before = rows()
    assert app.post_json("/api/repos/ceph/", repo(status="deleted")).json == {}
    answer = app.post_json("/api/repos/ceph/", {"chacra_url": "https://c/", "status": "deleted"}, status=400)
    assert all(name in answer.text for name in ("ref", "sha1", "distro", "distro_version"))
    assert rows() == before


def test_a_ref_and_a_commit_disappear_with_their_last_repo_and_come_back_with_the_next(app: TestApp) -> None:
    post_repo(app, 1, ref="wip", sha1="aa")
    post_repo(app, 2, ref="wip", sha1="aa", distro_version="noble")
    post_repo(app, 3, ref="wip", sha1="bb")
    post_build(app, 1, ref="wip", sha1="bb")

    def listed() -> tuple[Any, Any, Any, Any]:
        tree = app.get("/api/repos/").json["ceph"]
        return app.get("/api/repos/ceph").json, app.get("/api/repos/ceph/wip").json, tree["refs"], sorted(tree["sha1s"])

    assert listed() == (["wip"], ["bb", "aa"], ["wip"], ["aa", "bb"])
    app.delete("/api/repos/ceph/wip/aa/ubuntu/jammy")
    assert listed() == (["wip"], ["bb", "aa"], ["wip"], ["aa", "bb"])
    app.post_json("/api/repos/ceph/", {"chacra_url": repo(2)["chacra_url"], "status": "deleted"})
    assert listed() == (["wip"], ["bb"], ["wip"], ["bb"])
    app.delete("/api/repos/ceph/wip/bb/ubuntu/jammy")
    assert listed() == ([], [], [], [])
    # The build keeps its commit in the list of builds, and the project stays.
    assert app.get("/api/builds/ceph/wip").json == ["bb"]
    assert app.get("/api/").json["repos"] == ["ceph"]
    post_repo(app, 2, ref="wip", sha1="aa", distro_version="noble")
    assert listed() == (["wip"], ["aa"], ["wip"], ["aa"])
    assert app.get("/api/builds/ceph/wip").json == ["bb"]
    assert one(app)["archs"] == ["x86_64"]


# History


def history(app: TestApp, url: str) -> list[tuple[str, str, float | None]]:
    (only,) = app.get(url).json
    assert list(only)[-1] == "history"
    return [(each["status"], each["at"], each["seconds"]) for each in only["history"]]


@pytest.mark.parametrize(
    "url",
    [
        *(f"{JAMMY}?history=1", f"{JAMMY}/flavors/default/?history=true", f"{LATEST}?history=1"),
        *("/api/search?history=1", "/api/search/?history=True&sha1=latest"),
        "/api/search?sha1=latest&distros=ubuntu/jammy&history=1",
    ],
)
def test_the_history_of_a_repo_tells_each_status_its_time_and_how_long_it_stayed(
    app: TestApp, stopped_clock: Any, url: str
) -> None:
    post_repo(app, status="requested")
    for seconds, status in ((10, "queued"), (0, "queued"), (5, "queued"), (2.5, "my own word"), (0, "ready")):
        stopped_clock.advance(seconds=seconds)
        post_repo(app, status=status)
    stopped_clock.advance(seconds=100)
    app.post_json("/api/repos/ceph/", {"chacra_url": repo()["chacra_url"], "extra": {"a": 1}})
    assert history(app, url) == [
        ("requested", "2026-01-02 03:04:05.000000+00:00", 10),
        ("queued", "2026-01-02 03:04:15.000000+00:00", 7.5),
        ("my own word", "2026-01-02 03:04:22.500000+00:00", 0),
        ("ready", "2026-01-02 03:04:22.500000+00:00", None),
    ]
    without = app.get(url.replace("history", "count")) if "True" not in url and "true" not in url else app.get(JAMMY)
    assert list(without.json[0]) == REPO_KEYS


def test_a_status_that_comes_back_is_told_twice(app: TestApp) -> None:
    for status in ("ready", "building", "ready"):
        post_repo(app, status=status)
    assert [status for status, _, _ in history(app, f"{JAMMY}?history=1")] == ["ready", "building", "ready"]


def test_a_repo_that_was_deleted_and_posted_again_begins_a_new_history(app: TestApp) -> None:
    for status in ("queued", "ready", "deleted", "requested"):
        post_repo(app, status=status)
    assert [status for status, _, _ in history(app, f"{JAMMY}?history=1")] == ["requested"]


@pytest.mark.parametrize("value", ["0", "false", "False", ""])
def test_without_history_there_is_none(app: TestApp, value: str) -> None:
    post_repo(app)
    post_build(app)
    for url in (JAMMY, "/api/search", BUILDS):
        assert "history" not in app.get(url, {"history": value}).json[0]


@pytest.mark.parametrize("value", ["2", "yes", "\0", "ä"])
def test_a_history_that_is_neither_true_nor_false_is_refused(app: TestApp, value: str) -> None:
    for url in (JAMMY, "/api/search", BUILDS):
        assert app.get(url, {"history": value}, status=400).text.startswith("history: ")


def test_each_of_many_repos_has_its_own_history(app: TestApp) -> None:
    for number in range(5):
        for status in ["queued", "building", "ready", "failed", "ready"][: number + 1]:
            post_repo(app, number, status=status)
    told = {numbers([each])[0]: len(each["history"]) for each in app.get(f"{JAMMY}?history=1&count=3").json}
    assert told == {"4": 5, "3": 4, "2": 3}


# Builds: S20, S21, S22


def builds(app: TestApp, url: str = BUILDS) -> list[dict[str, Any]]:
    return list(app.get(url).json)


@SLASHES
def test_a_build_is_added_updated_and_completed(app: TestApp, slash: str, stopped_clock: Any) -> None:
    post = f"/api/builds/ceph{slash}"
    assert app.post_json(post, build(status="queued", extra={"a": 1})).json == {}
    (shown,) = builds(app, f"{BUILDS}{slash}")
    assert list(shown) == BUILD_KEYS
    assert shown == {
        **build(),
        "status": "queued",
        "flavor": "default",
        "extra": {"a": 1},
        "modified": "2026-01-02 03:04:05.000000+00:00",
        "started": "2026-01-02 03:04:05.000000+00:00",
        "completed": None,
        "project": "ceph",
        "distro_version": "22.04",
        "distro_codename": "jammy",
    }
    stopped_clock.advance(seconds=1)
    assert app.post_json(post, build(status="started", extra={"b": 2}, log_url="https://log/")).json == {}
    changed = {"status": "started", "extra": {"b": 2}, "log_url": "https://log/"}
    assert builds(app) == [{**shown, **changed, "modified": "2026-01-02 03:04:06.000000+00:00"}]
    stopped_clock.advance(seconds=1)
    # What is not sent stays.
    assert app.post_json(post, build(status="completed", extra=..., log_url=...)).json == {}
    now = "2026-01-02 03:04:07.000000+00:00"
    assert builds(app) == [{**shown, **changed, "status": "completed", "modified": now, "completed": now}]


def test_a_build_needs_no_more_than_url_ref_sha1_and_status(app: TestApp) -> None:
    app.post_json("/api/builds/ceph/", {"url": "https://j/", "ref": "main", "sha1": SHA1, "status": "failed"})
    (shown,) = builds(app)
    absent = ("log_url", "completed", "distro", "distro_version", "distro_codename", "distro_arch")
    assert [shown[key] for key in absent] == [None] * 6
    assert (shown["flavor"], shown["extra"], shown["status"]) == ("default", {}, "failed")


def test_a_build_that_is_completed_at_once_is_completed(app: TestApp, stopped_clock: Any) -> None:
    post_build(app, status="completed")
    (shown,) = builds(app)
    assert shown["completed"] == shown["started"] == shown["modified"] == "2026-01-02 03:04:05.000000+00:00"


@pytest.mark.parametrize("url", ["https://other.example/", build()["url"]])
def test_a_queued_build_is_taken_over_whatever_its_url_and_only_once(app: TestApp, url: str) -> None:
    post_build(app, 1, status="queued", url="https://queue.example/")
    post_build(app, 2, status="started", url=url)
    (shown,) = builds(app)
    assert (shown["url"], shown["status"]) == (url, "started")
    post_build(app, 3, status="started", url="https://third.example/")
    assert [each["url"] for each in builds(app)] == ["https://third.example/", url]


def test_a_build_that_is_queued_again_stays_one_build(app: TestApp) -> None:
    post_build(app, 1, status="queued")
    post_build(app, 2, status="queued")
    (shown,) = builds(app)
    assert shown["url"] == build(2)["url"]


def test_a_queued_build_is_taken_over_even_if_there_is_one_with_the_same_url(app: TestApp, stopped_clock: Any) -> None:
    post_build(app, 1, status="started")
    post_build(app, 2, status="queued")
    stopped_clock.advance(seconds=1)
    post_build(app, 1, status="failed")
    assert [(each["url"], each["status"]) for each in builds(app)] == [
        (build(1)["url"], "failed"),
        (build(1)["url"], "started"),
    ]


DIFFERENT: list[dict[str, Any]] = [
    {"flavor": "crimson"},
    {"distro": "debian"},
    {"distro_version": "noble"},
    {"distro_arch": "arm64"},
    {"distro_arch": ...},
    {"distro": ..., "distro_version": ...},
    {"distro": ""},
    {"distro_version": ""},
]


@pytest.mark.parametrize("different", DIFFERENT)
@pytest.mark.parametrize("status", ["queued", "started"])
def test_a_build_of_something_else_is_another_one_even_with_the_same_url(
    app: TestApp, different: dict[str, Any], status: str
) -> None:
    post_build(app, status=status)
    post_build(app, status="started", **different)
    assert len(builds(app)) == 2


def test_builds_of_other_commits_refs_and_projects_are_other_ones(app: TestApp) -> None:
    post_build(app, status="queued")
    post_build(app, sha1="ffff")
    post_build(app, ref="wip")
    post_build(app, project="other")
    assert [each["status"] for each in builds(app)] == ["queued"]
    for url in ("ceph/main/ffff", f"ceph/wip/{SHA1}", f"other/main/{SHA1}"):
        (shown,) = builds(app, f"/api/builds/{url}")
        assert shown["status"] == "started"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"distro_version": "jammy"}, {"distro_version": "22.04"}),
        ({"distro_version": "22.04"}, {"distro": "Ubuntu", "distro_version": "Jammy"}),
        ({"distro": "centos", "distro_version": 9}, {"distro": "centos", "distro_version": "9"}),
        *(
            ({"distro": one, "distro_version": one}, {"distro": other, "distro_version": other})
            for one in ("", None, ...)
            for other in ("", None, ...)
        ),
        ({"distro_arch": ""}, {"distro_arch": ...}),
        ({"distro_arch": None}, {"distro_arch": ""}),
        ({"flavor": ...}, {"flavor": "default"}),
        ({"flavor": None}, {"flavor": "default"}),
    ],
)
@pytest.mark.parametrize("status", ["queued", "started"])
def test_a_build_of_the_same_in_another_spelling_is_the_same_build(
    app: TestApp, first: dict[str, Any], second: dict[str, Any], status: str
) -> None:
    post_build(app, status=status, **first)
    post_build(app, status="completed", **second)
    (shown,) = builds(app)
    assert shown["status"] == "completed"


def test_a_build_queued_as_ceph_build_queues_it_shows_what_was_sent(app: TestApp) -> None:
    post_build(app, status="queued", distro="", distro_version="", distro_arch="")
    (shown,) = builds(app)
    assert [shown[key] for key in ("distro", "distro_version", "distro_arch")] == ["", "", ""]
    assert shown["distro_codename"] is None


@pytest.mark.parametrize("missing", [["url"], ["ref"], ["sha1"], ["status"], ["url", "ref", "sha1", "status"]])
@pytest.mark.parametrize("value", [..., None])
def test_a_build_without_what_it_needs_is_refused_with_the_names_of_all_that_is_missing(
    app: TestApp, rows: Callable[[], dict[str, int]], missing: list[str], value: Any
) -> None:
    before = rows()
    answer = app.post_json("/api/builds/ceph/", build(**dict.fromkeys(missing, value)), status=400)
    needed = {"url", "ref", "sha1", "status"}
    assert {name for name in needed if re.search(rf"\b{name}\b", answer.text)} == set(missing)
    assert rows() == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            (name, value)
            for name in ("url", "log_url")
            for value in (1, True, [], "a b", "a\nb", "ä", "a\0", "x" * 3000)
        ),
        *((name, value) for name in ("ref", "sha1", "status", "flavor") for value in (True, 1.5, [], {}, "", "a\nb")),
        *(
            (name, "x" * 3000)
            for name in ("ref", "sha1", "status", "flavor", "distro", "distro_version", "distro_arch")
        ),
        *((name, value) for name in ("distro", "distro_version", "distro_arch") for value in (True, 1.5, [], "a\n")),
        *((name, "a/b") for name in ("distro", "distro_version")),
        *(("extra", value) for value in ("", [], 1, False)),
        ("sha1", "latest"),
    ],
)
def test_a_build_with_something_wrong_is_refused_with_the_name_of_the_field(
    app: TestApp, rows: Callable[[], dict[str, int]], field: str, value: Any
) -> None:
    before = rows()
    answer = app.post_json("/api/builds/ceph/", build(**{field: value}), status=400)
    assert answer.content_type == "text/plain"
    assert re.match(rf"{field}\b", answer.text), answer.text
    assert rows() == before


def test_what_else_is_sent_with_a_build_is_ignored(app: TestApp) -> None:
    post_build(app, build_id=7, id=9, project_="x", modified="1999-01-01", completed="1999-01-01", platform="x")
    (shown,) = builds(app)
    assert list(shown) == BUILD_KEYS
    assert shown["completed"] is None


@SLASHES
def test_builds_are_listed_by_project_ref_and_commit_the_newest_modified_first(
    app: TestApp, anybody: TestApp, stopped_clock: Any, slash: str
) -> None:
    assert anybody.get(f"/api/builds{slash}").json == {}
    for number, changes in enumerate(
        [{"sha1": "aa"}, {"sha1": "bb"}, {"sha1": "aa", "distro_version": "noble"}, {"ref": "wip"}, {"project": "csi"}]
    ):
        stopped_clock.advance(seconds=1)
        post_build(app, number, **changes)
    assert {name: sorted(refs) for name, refs in anybody.get(f"/api/builds{slash}").json.items()} == {
        "ceph": ["main", "wip"],
        "csi": ["main"],
    }
    assert sorted(anybody.get(f"/api/builds/ceph{slash}").json) == ["main", "wip"]
    assert sorted(anybody.get(f"/api/builds/ceph/main{slash}").json) == ["aa", "bb"]
    listed = f"/api/builds/ceph/main/aa{slash}"
    assert [each["url"] for each in anybody.get(listed).json] == [build(2)["url"], build(0)["url"]]
    stopped_clock.advance(seconds=1)
    post_build(app, 0, sha1="aa", status="completed")
    assert [each["url"] for each in anybody.get(listed).json] == [build(0)["url"], build(2)["url"]]
    for below in ("/nosuch", "/main/nosuch", "/nosuch/aa"):
        assert anybody.get(f"/api/builds/ceph{below}{slash}").json == []
    for below in ("", "/main", "/main/aa"):
        assert "nosuch" in anybody.get(f"/api/builds/nosuch{below}{slash}", status=404).text


def test_many_builds_of_a_commit_go_on_at_the_link(app: TestApp, stopped_clock: Any) -> None:
    for number in range(7):
        stopped_clock.advance(seconds=number % 2)
        post_build(app, number, distro_arch=str(number))
    for count in (1, 2, 7, 8):
        assert [each["distro_arch"] for each in walk(app, f"{BUILDS}?count={count}")] == list("6543210")
    assert [each["distro_arch"] for each in builds(app, f"{BUILDS}?count=3&page=2")] == ["3", "2", "1"]
    assert next_of(app.get(BUILDS)) is None


def test_the_history_of_a_build_tells_its_statuses_across_the_change_of_its_url(
    app: TestApp, stopped_clock: Any
) -> None:
    for number, status in enumerate(("queued", "started", "started", "held by a person", "completed")):
        post_build(app, min(number, 1), status=status)
        stopped_clock.advance(seconds=2)
    assert history(app, f"{BUILDS}/?history=1") == [
        ("queued", "2026-01-02 03:04:05.000000+00:00", 2),
        ("started", "2026-01-02 03:04:07.000000+00:00", 4),
        ("held by a person", "2026-01-02 03:04:11.000000+00:00", 2),
        ("completed", "2026-01-02 03:04:13.000000+00:00", None),
    ]


# The log of events


def test_every_change_of_a_repo_or_a_build_is_in_the_log_and_nothing_that_was_refused(
    app: TestApp, session: Session
) -> None:
    url = repo()["chacra_url"]
    post_repo(app, status="queued")
    app.post_json("/api/repos/ceph/", {"chacra_url": url, "status": "ready"})
    app.post_json("/api/repos/ceph/", repo(2, ref=...), status=400)
    app.post_json("/api/repos/ceph/", {"chacra_url": "https://nosuch/", "status": "ready"}, status=400)
    app.post_json("/api/repos/ceph/", repo("nosuch", status="deleted"))
    app.delete(JAMMY)
    app.delete(JAMMY, status=404)
    post_repo(app)
    app.post_json("/api/repos/ceph/", {"chacra_url": url, "status": "deleted"})
    post_build(app)
    log = session.scalars(select(Event).order_by(Event.seq)).all()
    assert [(event.kind, event.subject) for event in log] == [
        ("repo.posted", f"repos/{url}"),
        ("repo.posted", f"repos/{url}"),
        ("repo.removed", f"repos/{url}"),
        ("repo.posted", f"repos/{url}"),
        ("repo.removed", f"repos/{url}"),
        ("build.posted", f"builds/ceph/main/{SHA1}"),
    ]
    assert [event.data.get("status") for event in log] == ["queued", "ready", None, "ready", None, "started"]
    assert {event.actor for event in log} == {USER}


@pytest.mark.parametrize("dots", [".", "..", "%2E%2E"])
def test_nobody_is_led_out_of_the_packages_and_nothing_is_called_dots(app: TestApp, dots: str) -> None:
    post_repo(app, 1)
    leaf = f"/api/repos/ceph/main/{SHA1}/ubuntu/jammy"

    assert app.get(f"{leaf}/x86_64/a/{dots}/b", status=404).content_type == "text/plain"
    for field in ("ref", "sha1", "distro"):
        answer = app.post_json("/api/repos/ceph", repo(2, **{field: unquote(dots)}), status=400)
        assert answer.text.startswith(f"{field}: ")


@pytest.mark.parametrize("url", ["javascript:alert(1)", "//evil.example", "relative/x", "ftp://x/"])
def test_nobody_is_sent_to_what_is_no_web_page(app: TestApp, url: str) -> None:
    post_repo(app, 1, url=url, chacra_url=url)
    leaf = f"/api/repos/ceph/main/{SHA1}/ubuntu/jammy"

    for path in ("repo", "x86_64", "x86_64/a"):
        assert app.get(f"{leaf}/{path}", status=504).text.startswith("no repository is ready for: ceph/main")


def test_an_extra_that_is_too_large_is_refused(app: TestApp) -> None:
    answer = app.post_json("/api/repos/ceph", repo(1, extra={"a": "x" * 70_000}), status=400)

    assert answer.text == "extra: must have at most 65536 characters as JSON"
    assert app.get("/api/search").json == []
