"""Storage nodes as JSON, and the names that they may have."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from labctl import times
from labctl.errors import Invalid

#: What no node can be named: its URL means something else.
RESERVED = frozenset(("next",))

_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>{_LABEL}(?:\.{_LABEL})*))(?P<port>:[1-9][0-9]{{0,4}})?")
#: A name whose last label is a number is an address, or a mistake in one.
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9A-Fa-f]*)")
_LONGEST = 253


def host_from_wire(text: str) -> str:
    """Read the host of a node, perhaps with a port, into the one way to write it; raises :class:`Invalid`."""
    with suppress(ValueError):
        if (match := _HOST.fullmatch(text)) and int((match["port"] or ":1")[1:]) <= 65535:
            host = f"[{IPv6Address(match['v6'])}]" if match["v6"] else _name(match["name"])
            # The port that https has anyway makes no other node.
            return host if match["port"] in (None, ":443") else host + match["port"]
    raise Invalid(
        "must be a host name, an IPv4 address or an IPv6 address in brackets, perhaps with a port (1 to 65535)"
        f" after a colon; a name has up to {_LONGEST} letters, digits, '-', '_' and '.', and is not"
        f" {' or '.join(sorted(RESERVED))}",
        field="host",
    )


def _name(text: str) -> str:
    """Write a name or an IPv4 address in lower case; raises ValueError."""
    name = text.lower()
    if len(name) > _LONGEST or name in RESERVED:
        raise ValueError
    return str(IPv4Address(name)) if _NUMBER.fullmatch(name) else name


def node_to_wire(node: Mapping[Any, Any]) -> dict[str, Any]:
    """Shape a node."""
    return {
        "host": node["host"],
        "last_used": times.to_wire(node["last_used"]),
        "last_check": times.to_wire(node["last_check"]),
        "healthy": node["healthy"],
        "down_count": node["down_count"],
    }


def nodes_to_wire(nodes: Sequence[Mapping[Any, Any]]) -> dict[str, Any]:
    """Shape all nodes, by their hosts."""
    return {node["host"]: node_to_wire(node) for node in nodes}


def url_to_wire(host: str) -> str:
    """Write where a node is."""
    return f"https://{host}/"
