"""Storage nodes as JSON, and what they may be called."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from labctl.errors import Invalid
from labctl.nodes import wire


@pytest.mark.parametrize(
    ("sent", "host"),
    [
        ("chacra.example.com", "chacra.example.com"),
        ("chacra.example.com:8443", "chacra.example.com:8443"),
        ("1.chacra.Example.COM", "1.chacra.example.com"),
        ("node-1", "node-1"),
        ("node_1:1", "node_1:1"),
        ("_node", "_node"),
        ("3com", "3com"),
        ("a:65535", "a:65535"),
        ("10-0-0-1.example.com", "10-0-0-1.example.com"),
        ("next.example.com", "next.example.com"),
        ("next1", "next1"),
        ("xn--mnchen-3ya.example", "xn--mnchen-3ya.example"),
        ("0xcafe.example", "0xcafe.example"),
        ("a" * 63, "a" * 63),
        (".".join(["a" * 49] * 5) + ".abc", ".".join(["a" * 49] * 5) + ".abc"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1:9141", "127.0.0.1:9141"),
        ("[::1]", "[::1]"),
        ("[::1]:443", "[::1]"),
        ("storage.example.com:443", "storage.example.com"),
        ("[2001:DB8:0:0::1]:8443", "[2001:db8::1]:8443"),
        ("[::ffff:10.0.0.1]", "[::ffff:a00:1]"),
    ],
)
def test_a_host_is_read_into_the_one_way_to_write_it(sent: str, host: str) -> None:
    assert wire.host_from_wire(sent) == host
    assert wire.host_from_wire(host) == host


@pytest.mark.parametrize(
    "sent",
    [
        "",
        " ",
        "a b",
        " a",
        "a ",
        "a\n",
        "a\r\nHost: b",
        "a\tb",
        "a\x00b",
        "a\x7f",
        ".",
        "..",
        "a.",
        ".a",
        "a..b",
        "-a",
        "a-",
        "a-.b",
        "a" * 64,
        ".".join(["a" * 49] * 5) + ".abcd",
        "a" * 5000,
        "next",
        "NEXT",
        "next:443",
        "a/b",
        "a/",
        "a\\b",
        "a?b",
        "a#b",
        "a%2fb",
        "a%00",
        "user@a",
        "user:password@a",
        "https://a",
        "https:a",
        "a:",
        "a:0",
        "a:00443",
        "a:65536",
        "a:123456",
        "a:-1",
        "a:+1",
        "a: 1",
        "a:1:2",
        "a:http",
        "a:４４３",  # noqa: RUF001
        "münchen.example",
        "\u212aelvin",
        "a\u3002b",
        "a,b",
        "a;b",
        "a=b",
        "a*",
        "~a",
        "$a",
        "{a}",
        "256.1.1.1",
        "127.1",
        "127.0.0.1.",
        "127.0.0.01",
        "1.2.3.4.5",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0X7F.0.0.0x1",
        "a.1",
        "::1",
        "::1:443",
        "2001:db8::1",
        "[]",
        "[::1",
        "::1]",
        "[::1]x",
        "[::1]:",
        "[::1]:65536",
        "[::1%25eth0]",
        "[fe80::1%eth0]",
        "[127.0.0.1]",
        "[a]",
        "[:::]",
        "[1::2::3]",
        "[1:2:3:4:5:6:7:8:9]",
        "[12345::]",
        "[" + ":" * 5000 + "]",
    ],
)
def test_what_is_no_host_is_refused_with_a_word_on_what_is(sent: str) -> None:
    with pytest.raises(Invalid, match=r"host name.*IPv4.*IPv6.*port") as refused:
        wire.host_from_wire(sent)
    assert refused.value.field == "host"
    assert sent == "" or len(sent) < 3 or sent.lower().startswith("next") or sent not in refused.value.message


def test_a_node_that_was_never_checked_nor_used_says_so() -> None:
    node = {
        "host": "a:1",
        "last_used": datetime(1970, 1, 1, tzinfo=UTC),
        "last_check": None,
        "healthy": True,
        "down_count": 0,
    }
    assert wire.node_to_wire(node) == {
        "host": "a:1",
        "last_used": "1970-01-01 00:00:00",
        "last_check": None,
        "healthy": True,
        "down_count": 0,
    }


def test_times_of_a_node_are_utc_without_a_zone() -> None:
    east = timezone(timedelta(hours=2))
    node = {
        "host": "a",
        "last_used": datetime(2026, 11, 20, 13, 30, 54, 118418, east),
        "last_check": datetime(2026, 11, 20, 13, 30, 54, tzinfo=east),
        "healthy": False,
        "down_count": 2,
    }
    shaped = wire.nodes_to_wire([node])
    assert list(shaped) == ["a"]
    assert shaped["a"]["last_used"] == "2026-11-20 11:30:54.118418"
    assert shaped["a"]["last_check"] == "2026-11-20 11:30:54"


def test_the_url_of_a_node_ends_in_a_slash() -> None:
    assert wire.url_to_wire("[::1]:443") == "https://[::1]:443/"
