"""Which hosts a pattern means."""

import pytest

from labctl.errors import Invalid
from labctl.remote.patterns import MOST_PARTS, choose

HOSTS = {
    "[x]": [],
    "db1": ["db"],
    "db2": ["db", "old"],
    "fe80::1": [],
    "web": ["front"],
    "web1": ["front"],
    "web2": ["front", "old"],
    "web:1": [],
}


def meant(*texts: str) -> list[str]:
    chosen, missing = choose(HOSTS, texts)
    assert missing == []
    return chosen


@pytest.mark.parametrize(
    ("pattern", "hosts"),
    [
        ("*", list(HOSTS)),
        ("all", list(HOSTS)),
        ("web?", ["web1", "web2"]),
        ("web[12]", ["web1", "web2"]),
        ("web[!1]", ["web2"]),
        ("db*", ["db1", "db2"]),
        ("db", ["db1", "db2"]),
        ("front", ["web", "web1", "web2"]),
        ("db,front", ["db1", "db2", "web", "web1", "web2"]),
        ("web1,db1,web1", ["db1", "web1"]),
        (" web1 , db1 ", ["db1", "web1"]),
        ("db*,!db1", ["db2"]),
        ("!db1,db*", ["db2"]),
        ("front,&old", ["web2"]),
        ("*,&old,!db", ["web2"]),
        ("*,&old,&db", ["db2"]),
        ("!front", ["[x]", "db1", "db2", "fe80::1", "web:1"]),
        ("&old", ["db2", "web2"]),
        ("!web*,web1", []),
        ("db,!nosuch*", ["db1", "db2"]),
        ("db, ! nosuch[]12]", ["db1", "db2"]),
        ("db*, ! db1", ["db2"]),
        ("front, & old", ["web2"]),
        ("front,&db", []),
    ],
)
def test_a_pattern_means_hosts_in_their_order_and_once(pattern: str, hosts: list[str]) -> None:
    assert choose(HOSTS, [pattern]) == (hosts, [] if hosts else [pattern])


@pytest.mark.parametrize("name", ["web:1", "fe80::1", "[x]", "web"])
def test_the_name_of_a_host_means_that_host_whatever_characters_it_has(name: str) -> None:
    assert meant(name) == [name]
    assert meant(f"{name},db1") == sorted([name, "db1"])
    assert name not in meant(f"*,!{name}")


@pytest.mark.parametrize("name", ["a,b", "!a", "&a", "*", "a b"])
def test_even_one_that_is_a_pattern_to_others(name: str) -> None:
    assert choose({name: [], "a": [], "b": []}, [name]) == ([name], [])


@pytest.mark.parametrize(
    "pattern", ["WEB1", "Db*", "web", "~web.", "web1:db1", "web[", "nosuch", "old1", ",", "!", "&", ""]
)
def test_letter_case_matters_and_nothing_else_is_a_pattern(pattern: str) -> None:
    hosts = {name: groups for name, groups in HOSTS.items() if name != "web"}
    assert choose(hosts, [pattern]) == ([], [pattern])


def test_several_texts_are_taken_in_their_order_and_those_that_mean_nothing_are_told() -> None:
    assert choose(HOSTS, ["web2", "nosuch", "db*", "web2", ","]) == (["web2", "db1", "db2"], ["nosuch", ","])


@pytest.mark.parametrize(
    ("texts", "hosts"),
    [
        (["all", "!web1"], [host for host in HOSTS if host != "web1"]),
        (["!web1", "all"], [host for host in HOSTS if host != "web1"]),
        (["web2", "!web1,!old", "web1", "db1"], ["db1"]),
        (["web2", "db*", "!db1"], ["web2", "db2"]),
        (["db*", "web*", "&old"], ["db2", "web2"]),
        (["front", "&old", "&db,db"], ["db2"]),
        (["!web*", "!db"], ["[x]", "fe80::1"]),
        (["&old", "!db"], ["web2"]),
        (["db1", "!nosuch*"], ["db1"]),
    ],
)
def test_signed_parts_apply_to_all_texts_wherever_they_stand(texts: list[str], hosts: list[str]) -> None:
    assert meant(*texts) == hosts
    # What only means something together does not depend on which part is in which text.
    assert sorted(meant(",".join(texts))) == sorted(hosts)


@pytest.mark.parametrize("texts", [["web1", "!web1"], ["front", "&db"], ["*,!*", "db1"], ["!*"]])
def test_texts_that_leave_no_host_are_all_told(texts: list[str]) -> None:
    assert choose(HOSTS, texts) == ([], texts)


@pytest.mark.parametrize(
    ("texts", "nothing"),
    [
        (["!lob*"], ["!lob*"]),
        (["!lob*,!web1"], ["!lob*"]),
        (["!web1", "!lob*", "!lib?"], ["!lob*", "!lib?"]),
        (["&old", "!lob*"], ["!lob*"]),
    ],
)
def test_a_mistake_behind_a_sign_does_not_mean_every_host(texts: list[str], nothing: list[str]) -> None:
    assert choose(HOSTS, texts)[1] == nothing
    assert choose(HOSTS, ["db1", "db2", *texts])[1] == []


def test_the_name_of_a_host_is_no_sign_for_the_other_texts() -> None:
    hosts: dict[str, list[str]] = {name: [] for name in ("!a", "&b", "a", "b", "c,!a")}
    for texts in (["!a", "a"], ["a", "&b"], ["c,!a", "a", "b"]):
        assert choose(hosts, texts) == (texts, [])
    assert choose(hosts, ["all", "!!a"]) == (["&b", "a", "b", "c,!a"], [])


@pytest.mark.parametrize(
    ("pattern", "nothing"),
    [
        ("web1,nosuch", ["nosuch"]),
        ("nosuch,web1,other", ["nosuch", "other"]),
        ("web1,nosuch*", ["nosuch*"]),
        ("all,!nosuch", ["!nosuch"]),
        ("!nosuch", ["!nosuch"]),
        ("web*,!nosuch*,!other", ["!other"]),
        ("front,&nosuch", ["&nosuch"]),
        ("front,&nosuch*", ["&nosuch*"]),
        ("web1,!", ["!"]),
        ("web1,&", ["&"]),
        ("web1,,nosuch,nosuch", ["nosuch"]),
        ("all,!!db*", ["!!db*"]),
        ("all,! !db*", ["!!db*"]),
        ("all,!&db*", ["!&db*"]),
        ("all,!db[12", ["!db[12"]),
        ("all,!db[]*", ["!db[]*"]),
    ],
)
def test_a_part_that_means_no_host_is_told(pattern: str, nothing: list[str]) -> None:
    assert choose(HOSTS, [pattern])[1] == nothing
    assert choose(HOSTS, ["db1", pattern])[1] == nothing


def test_there_is_a_limit_on_patterns_but_none_on_names() -> None:
    hosts = {f"host{number}": [] for number in range(MOST_PARTS * 2)}
    assert choose(hosts, hosts) == (list(hosts), [])
    with pytest.raises(Invalid, match="more than 100 patterns"):
        choose(hosts, ["a*"] * (MOST_PARTS + 1))
    with pytest.raises(Invalid, match="more than 100 patterns"):
        choose(hosts, [",".join(["a*"] * (MOST_PARTS + 1))])


def test_a_pattern_that_is_made_to_be_slow_is_not() -> None:
    hosts = {"a" * 200 + str(number): ["g"] for number in range(1000)}
    assert choose(hosts, ["*a" * 50 + "b"]) == ([], ["*a" * 50 + "b"])
