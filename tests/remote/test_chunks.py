"""Pieces of output that are too long: as much of them is kept as fits."""

import json
from typing import Any

import pytest

from labctl.remote import chunks
from labctl.remote.states import Status

MOST = 100_000


def make(**values: Any) -> tuple[int, dict[str, Any]]:
    """Give the length of a chunk, and what it says."""
    chunk = chunks.make(Status.OK, values, MOST)
    return len(chunk.encode()), json.loads(chunk)


@pytest.mark.parametrize("piece", ["x", "\n", "\N{EURO SIGN}", "\0", "\ud800", "\x01"])
@pytest.mark.parametrize("times", [MOST, 3 * MOST])
def test_of_one_long_text_as_much_is_kept_as_fits(piece: str, times: int) -> None:
    length, said = make(stdout=piece * times, stderr="", rtc=0)

    assert 0.98 * MOST < length <= MOST
    assert "characters are left out" in said["stdout"] and (said["rtc"], said["status"]) == (0, 1)


def test_a_text_that_fits_beside_a_longer_one_is_kept_whole() -> None:
    length, said = make(stdout="o" * 3 * MOST, stderr="e" * (MOST // 4))

    assert 0.98 * MOST < length <= MOST
    assert said["stderr"] == "e" * (MOST // 4) and said["stdout"].count("o") > 0.7 * MOST


def test_texts_that_are_all_too_long_have_the_same_share() -> None:
    length, said = make(stdout="Q" * 3 * MOST, stderr="Z" * 2 * MOST)

    assert 0.98 * MOST < length <= MOST
    assert said["stdout"].count("Q") == said["stderr"].count("Z")


def test_what_fits_is_left_as_it_is() -> None:
    text = "x" * (MOST - 100)
    assert make(stdout=text)[1]["stdout"] == text


def test_what_cannot_be_cut_says_how_long_it_was() -> None:
    length, said = make(numbers=list(range(MOST)))

    assert length < 100 and said["message"].endswith("bytes of output are too many")
