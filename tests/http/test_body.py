"""What clients send: bodies as JSON, parameters of the query, and what is refused."""

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.errors import Invalid
from labctl.http import body
from labctl.http.resource import Request

LIMIT = 1024


def request(sent: bytes = b"", query: str = "", **environ: Any) -> Request:
    return Request.blank(f"/?{query}", method="POST", body=sent, environ=environ)


def query(text: str) -> Request:
    return Request.blank(f"/?{text}")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text("ab\\u0/é😀\n"),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\\u0"), inner, max_size=3),
        max_leaves=10,
    ).filter(lambda value: "Infinity" not in json.dumps(value))
)
def test_whatever_is_json_is_read(value: Any) -> None:
    for sent in (json.dumps(value).encode(), json.dumps(value, ensure_ascii=False).encode()):
        assert body.read_json(request(sent), 10**6) == value


def test_a_body_of_the_largest_size_is_read_and_one_byte_more_is_not() -> None:
    largest = b'"' + b"x" * (LIMIT - 2) + b'"'
    assert body.read_json(request(largest), LIMIT) == "x" * (LIMIT - 2)
    with pytest.raises(Invalid, match="larger than 1024 bytes"):
        body.read_json(request(largest + b" "), LIMIT)


def test_a_body_without_a_length_is_kept_up_to_the_limit_and_the_rest_is_passed_over_up_to_a_bound() -> None:
    def chunked(sent: bytes) -> tuple[Request, io.BytesIO]:
        stream = io.BytesIO(sent)
        return Request.blank("/", {"wsgi.input": stream, "wsgi.input_terminated": True}, method="POST"), stream

    asked, _ = chunked(b'{"a": 1}')
    assert body.read_json(asked, LIMIT) == {"a": 1}
    asked, stream = chunked(b"[" + b"1," * LIMIT * 1000)
    with pytest.raises(Invalid, match="larger than 1024 bytes"):
        body.read_json(asked, LIMIT)
    assert LIMIT < stream.tell() <= 17 * LIMIT + 65536


@pytest.mark.parametrize(
    "sent",
    [
        *(b"", b" ", b"{", b"a=b", b"{'a': 1}", b"[1,]", b"\xff", b'"\xff"', b'"\xed\xa0\x80"', b'"\\ud800"', b"nul"),
        *(b"NaN", b"Infinity", b'{"a": 1}x', b"\xef\xbb\xbf{}", b'"\n"', b"[" * 5000, b"[" * 10_000 + b"]" * 10_000),
    ],
)
def test_what_is_no_json_is_refused(sent: bytes) -> None:
    with pytest.raises(Invalid, match="could not decode JSON body"):
        body.read_json(request(sent), 10**6)


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        (b'"\\u0000"', "body"),
        (b'["\\u0000"]', "body"),
        (b'{"a": "x\\u0000"}', "a"),
        (b'{"a": {"b": ["x", "\\u0000"]}}', "a.b"),
        (b'{"a": {"b\\u0000": 1}}', "a.'b\\x00'"),
        (b'{"b\\u0000": 1}', "'b\\x00'"),
    ],
)
def test_a_nul_anywhere_is_refused_with_the_place_named(sent: bytes, named: str) -> None:
    with pytest.raises(Invalid, match="NUL") as refused:
        body.read_json(request(sent), LIMIT)
    assert refused.value.field == named


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    assert body.read_json(request(b'{"a": "\\\\u0000"}'), LIMIT) == {"a": "\\u0000"}


def test_a_body_may_be_a_hundred_levels_deep_and_no_deeper() -> None:
    def deep(levels: int) -> bytes:
        return b'{"tasks": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"

    assert "tasks" in body.read_json(request(deep(100)), LIMIT)
    with pytest.raises(Invalid, match="nested deeper") as refused:
        body.read_json(request(deep(103)), LIMIT)
    assert refused.value.field == "tasks"


def test_many_shallow_lists_are_not_too_deep() -> None:
    assert body.read_json(request(b"[" + b",".join([b"[]"] * 300) + b"]"), LIMIT) == [[]] * 300


@pytest.mark.parametrize("sent", [b"[]", b"null", b"1", b'"a"', b"true"])
def test_what_is_no_object_is_refused_where_one_is_wanted(sent: bytes) -> None:
    with pytest.raises(Invalid, match="must be a JSON object"):
        body.read_object(request(sent), LIMIT)


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("true", True), ("True", True), ("0", False), ("false", False)]
)
def test_a_flag_is_read(text: str, value: bool) -> None:
    assert body.flag(query(f"up={text}"), "up") is value


@pytest.mark.parametrize("text", ["2", "yes", "TRUE", " 1", "on", "%00", "%ff"])
def test_a_bad_flag_is_refused_by_name(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        body.flag(query(f"up={text}"), "up")
    assert refused.value.field == "up"


def test_a_flag_or_number_that_is_missing_is_its_default() -> None:
    assert body.flag(query(""), "up") is None
    assert body.flag(query("up="), "up") is None
    assert body.integer(query(""), "count", 7, least=1, most=9) == 7
    assert body.names(query(""), "fields") is None


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("9", 9), ("007", 7), ("%2B3", 3)])
def test_a_number_is_read(text: str, value: int) -> None:
    assert body.integer(query(f"count={text}"), "count", 7, least=1, most=9) == value


@pytest.mark.parametrize("text", ["0", "10", "-1", "1.0", "1e0", "", "x", "%D9%A3", "9" * 5000, "%00", "%ff", "0x1"])
def test_a_bad_number_is_refused_by_name(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        body.integer(query(f"count={text}"), "count", 7, least=1, most=9)
    assert refused.value.field == "count"


def test_names_are_separated_by_commas_and_empty_ones_do_not_count() -> None:
    assert body.names(query("fields=a,,b,"), "fields") == ["a", "b"]
    assert body.names(query("fields="), "fields") == []


def test_a_body_that_is_broken_off_is_a_clear_error() -> None:
    class Gone(io.BytesIO):
        def read(self, *size: Any) -> bytes:
            raise OSError("the client disconnected")

    asked = Request.blank("/", {"wsgi.input": Gone(), "wsgi.input_terminated": True}, method="POST")
    with pytest.raises(Invalid, match="broken off"):
        body.read_json(asked, LIMIT)
