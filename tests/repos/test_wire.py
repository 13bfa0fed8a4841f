"""What storage nodes and build jobs send, and what searches ask for, read into labctl's own words."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labctl.errors import Invalid
from labctl.http import body
from labctl.repos import wire
from labctl.repos.search import Search, Wanted
from labctl.repos.service import BuildReport, RepoReport
from tests.repos.factories import SHA1, build, repo


def read_repo(data: dict[str, Any]) -> RepoReport:
    return wire.repo_from_wire(body.parse(wire.RepoInput, data))


def read_build(data: dict[str, Any]) -> BuildReport:
    return wire.build_from_wire(body.parse(wire.BuildInput, data))


def refused(read: Any, data: Any) -> str:
    with pytest.raises(Invalid) as error:
        read(data)
    return f"{error.value.field}: {error.value.message}" if error.value.field else error.value.message


def test_a_report_of_a_repo_is_read_whole() -> None:
    sent = repo(flavor="crimson", extra={"version": "1", "n": [1, None]}, status="queued")
    assert read_repo(sent) == RepoReport(
        node_url=sent["chacra_url"],
        ref="main",
        sha1=SHA1,
        distro="ubuntu",
        distro_version="jammy",
        status="queued",
        url=sent["url"],
        flavor="crimson",
        extra='{"version":"1","n":[1,null]}',
        archs=["x86_64"],
    )


def test_what_a_report_of_a_repo_does_not_say_or_says_as_null_is_none() -> None:
    silent = RepoReport(node_url="https://c/")
    assert read_repo({"chacra_url": "https://c/"}) == silent
    keys = ("ref", "sha1", "distro", "distro_version", "status", "url", "flavor", "extra", "archs")
    assert read_repo({"chacra_url": "https://c/", **dict.fromkeys(keys)}) == silent


def test_empty_is_not_the_same_as_nothing_where_it_may_be_empty() -> None:
    report = read_repo({"chacra_url": "https://c/", "url": "", "extra": {}, "archs": []})
    assert (report.url, report.extra, report.archs) == ("", "{}", [])


def test_architectures_that_are_named_twice_come_once_in_their_order() -> None:
    assert read_repo(repo(archs=["b", "a", "b", "c", "a"])).archs == ["b", "a", "c"]


@pytest.mark.parametrize(("sent", "read"), [(9, "9"), (0, "0"), (10, "10"), ("9", "9"), ("09", "09")])
def test_a_whole_number_where_a_name_belongs_is_its_digits(sent: Any, read: str) -> None:
    assert read_repo(repo(distro_version=sent, ref=sent, archs=[sent])).distro_version == read
    assert read_build(build(distro_version=sent)).distro_version == read


@pytest.mark.parametrize(
    "wrong", [{"ref": 1.5}, {"ref": True, "extra": []}, {"sha1": "latest", "archs": "x", "url": 1}]
)
def test_everything_that_is_wrong_is_named_at_once(wrong: dict[str, Any]) -> None:
    message = refused(read_repo, repo(**wrong))
    assert all(f"{name}:" in message for name in wrong)


@pytest.mark.parametrize("left", [[], ["ref"], ["sha1", "status"], ["distro", "distro_version"]])
def test_without_chacra_url_all_that_is_missing_is_named(left: list[str]) -> None:
    needed = ["chacra_url", "ref", "sha1", "distro", "distro_version", "status"]
    message = refused(read_repo, {name: value for name, value in repo().items() if name in left})
    assert [name for name in needed if f" {name}" in message] == [name for name in needed if name not in left]


def test_a_report_of_a_build_is_read_whole_and_has_the_default_flavor() -> None:
    sent = build(extra={"a": 1}, build_id=9)
    assert read_build(sent) == BuildReport(
        url=sent["url"],
        ref="main",
        sha1=SHA1,
        status="started",
        log_url=sent["log_url"],
        flavor="default",
        extra='{"a":1}',
        distro="ubuntu",
        distro_version="jammy",
        distro_arch="x86_64",
    )
    assert read_build(build(flavor=None)).flavor == "default"
    assert read_build(build(flavor="crimson")).flavor == "crimson"


@pytest.mark.parametrize("length", [1, 2000])
def test_a_url_may_be_this_long(length: int) -> None:
    url = ("https://" + "x" * 2000)[:length]
    assert read_repo(repo(chacra_url=url, url=url)).url == read_build(build(url=url)).url == url


@pytest.mark.parametrize(("field", "most"), [("ref", 256), ("sha1", 128), ("distro", 64), ("distro_version", 64)])
def test_a_name_may_be_this_long_and_no_longer(field: str, most: int) -> None:
    for read, make in ((read_repo, repo), (read_build, build)):
        assert getattr(read(make(**{field: "ä" * most})), field) == "ä" * most  # type: ignore[operator]
        assert refused(read, make(**{field: "ä" * (most + 1)})).startswith(f"{field}: ")  # type: ignore[operator]


@settings(deadline=None)
@given(st.text() | st.characters(max_codepoint=0x2FF))
def test_no_url_that_is_taken_can_end_a_header(text: str) -> None:
    try:
        report = read_repo(repo(url=text))
    except Invalid:
        return
    assert report.url is not None
    assert report.url == text
    assert text.isascii() and not any(letter.isspace() or ord(letter) < 32 or ord(letter) == 127 for letter in text)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*repo(), "extra", "flavor", "other"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()) | st.just({}),
    )
)
def test_whatever_is_sent_is_read_or_refused(data: dict[str, Any]) -> None:
    for read in (read_repo, read_build):
        with suppress(Invalid):
            read(data)


# Searches


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ubuntu/jammy", [Wanted("ubuntu/22.04")]),
        ("ubuntu/22.04", [Wanted("ubuntu/22.04")]),
        ("Ubuntu/JAMMY/x86_64", [Wanted("ubuntu/22.04", "x86_64")]),
        ("ubuntu/noble,debian/bookworm", [Wanted("ubuntu/24.04"), Wanted("debian/12")]),
        ("ubuntu/xenial,centos/7", [Wanted("ubuntu/16.04"), Wanted("centos/7")]),
        ("centos/9/x86_64,centos/9/arm64", [Wanted("centos/9", "x86_64"), Wanted("centos/9", "arm64")]),
        ("ubuntu/jammy, ubuntu/22.04", [Wanted("ubuntu/22.04"), Wanted("ubuntu/22.04")]),
        ("fedora/Rawhide", [Wanted("fedora/rawhide")]),
        (",".join(["centos/9"] * 50), [Wanted("centos/9")] * 50),
    ],
)
def test_distributions_are_read_in_the_order_they_are_asked_for(text: str, wanted: list[Wanted]) -> None:
    assert wire.wanted_from_wire(text) == wanted


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("ubuntu", "ubuntu"),
        ("", ""),
        ("ubuntu/", "ubuntu"),
        ("/jammy", ""),
        ("/", ""),
        ("ubuntu/jammy/", "ubuntu"),
        ("ubuntu//x86_64", "ubuntu"),
        ("ubuntu/jammy/x86_64/more", "ubuntu"),
        ("ubuntu/jammy,", ""),
        (",ubuntu/jammy", ""),
        ("ubuntu/jammy,centos", "centos"),
        ("ubuntu/jammy;centos/9/x/y", "ubuntu"),
    ],
)
def test_a_distribution_that_is_none_is_refused_in_the_words_that_clients_know(text: str, named: str) -> None:
    assert f"Invalid version or codename for distro: {named}" in refused(wire.wanted_from_wire, text)
    assert refused(wire.wanted_from_wire, text).startswith("distros: ")


def test_more_distributions_than_anybody_needs_are_refused() -> None:
    assert refused(wire.wanted_from_wire, ",".join(["centos/9"] * 51)).startswith("distros: ")


def test_a_search_takes_its_filters_and_leaves_the_rest() -> None:
    given_ = {"project": "ceph", "ref": "main", "sha1": "aa", "flavor": "default", "status": "ready"}
    asked = {**given_, "distros": "centos/9", "count": "3", "wait": "5"}
    assert wire.search_from_wire(asked) == Search(given_, [Wanted("centos/9")])
    assert wire.search_from_wire({"count": "3"}) == Search({}, ())
    assert wire.search_from_wire({"status": ""}) == Search({"status": ""}, ())
