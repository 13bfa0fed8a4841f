from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.pools import Pool
from labctl.vms.catalog import Asked, Catalog, deal, share_pools

CATALOG = Catalog(
    [
        Pool(name="deb12", alias=["deb", "linux"]),
        Pool(name="deb11", alias=["deb", "deb12", "deb"], domain="old.com"),
        Pool(name="el9", alias=["el9", "linux"], domain=""),
    ],
    "example.com",
)


def test_a_name_stands_for_the_pool_of_that_name_and_then_for_those_that_have_it_as_an_alias() -> None:
    names = ("deb11", "deb12", "deb", "linux", "el9")
    assert [CATALOG.named(name) for name in names] == [
        ("deb11",),
        ("deb12", "deb11"),
        ("deb12", "deb11"),
        ("deb12", "el9"),
        ("el9",),
    ]
    assert CATALOG.named("nosuch") == ()
    assert CATALOG.unknown(["deb", "x", "el9", "y"]) == ["x", "y"]


def test_a_pool_has_its_own_domain_or_the_one_of_all() -> None:
    assert [CATALOG.domain_of(pool) for pool in ("deb12", "deb11", "el9")] == ["example.com", "old.com", ""]


def test_what_nothing_is_wanted_of_is_not_asked_for() -> None:
    assert CATALOG.asked({"deb": 2, "el9": 0}) == [Asked("deb", ("deb12", "deb11"), 2)]


def test_names_share_pools_if_one_pool_is_among_both_of_theirs() -> None:
    assert share_pools(CATALOG.asked({"deb": 1, "linux": 1}))
    assert not share_pools(CATALOG.asked({"deb": 1, "el9": 1}))


def test_a_name_leaves_a_pool_to_one_that_has_no_other() -> None:
    asked = [Asked("any", ("a", "b"), 1), Asked("a", ("a",), 1)]
    assert deal(asked, {"a": 1, "b": 1}) == {"any": {"a": 0, "b": 1}, "a": {"a": 1}}


def test_what_one_took_moves_along_a_chain_of_pools() -> None:
    asked = [Asked("x", ("a", "b"), 2), Asked("y", ("b", "c"), 2), Asked("z", ("a",), 2)]
    dealt = deal(asked, {"a": 2, "b": 2, "c": 2})
    assert dealt is not None
    assert {name: {pool: n for pool, n in of.items() if n} for name, of in dealt.items()} == {
        "x": {"b": 2},
        "y": {"c": 2},
        "z": {"a": 2},
    }


POOLS = ("a", "b", "c")


@given(
    wanted=st.lists(
        st.tuples(st.lists(st.sampled_from(POOLS), min_size=1, unique=True), st.integers(1, 3)),
        min_size=1,
        max_size=4,
    ),
    free=st.fixed_dictionaries({pool: st.integers(0, 4) for pool in POOLS}),
)
def test_vms_are_dealt_out_whenever_there_is_a_way(wanted: list[tuple[list[str], int]], free: dict[str, int]) -> None:
    asked = [Asked(str(number), tuple(pools), count) for number, (pools, count) in enumerate(wanted)]
    dealt = deal(asked, free)
    # Hall: there is a way if no set of names wants more than its pools have.
    enough = all(
        sum(each.count for each in some) <= sum(free[pool] for pool in {pool for each in some for pool in each.pools})
        for chosen in product((False, True), repeat=len(asked))
        if (some := [each for each, taken in zip(asked, chosen, strict=True) if taken])
    )
    assert (dealt is not None) == enough
    if dealt is not None:
        for each in asked:
            assert sum(dealt[each.name].values()) == each.count
            assert set(dealt[each.name]) <= set(each.pools)
            assert min(dealt[each.name].values()) >= 0
        for pool in POOLS:
            assert sum(of.get(pool, 0) for of in dealt.values()) <= free[pool]


@pytest.mark.parametrize("free", [{}, {"a": 1}, {"b": 5}])
def test_too_few_are_dealt_to_nobody(free: dict[str, int]) -> None:
    assert deal([Asked("a", ("a",), 2)], free) is None
