"""Which hosts a pattern means: names of hosts and groups, shell patterns, and how they are put together."""

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import translate

from labctl.errors import Invalid

#: The hosts there are, in the order in which they are told, each with its groups.
Hosts = Mapping[str, Collection[str]]

#: How many parts of one request may be anything but the name of a host: each is compared with all there are.
MOST_PARTS = 100
_WILD = re.compile(r"[*?\[]")


def choose(hosts: Hosts, given: Iterable[str]) -> tuple[list[str], list[str]]:
    """Give the hosts that any of the given texts means, in their order and once each, and the texts that mean none.

    The name of a host means that host, whatever characters it has. Else a text consists of parts with commas between
    them, each the name of a host, the name of a group, ``all``, or a shell pattern (``*``, ``?``, ``[...]``); letter
    case matters. A part behind ``!`` takes its hosts away, one behind ``&`` leaves only its hosts, wherever they stand;
    where there are only such parts, all hosts are what they start from.
    """
    chosen: dict[str, None] = {}
    missing = []
    parts = 0
    for text in given:
        if text in hosts:
            chosen[text] = None
            continue
        parts += text.count(",") + 1
        if parts > MOST_PARTS:
            raise Invalid(f"more than {MOST_PARTS} patterns in one request")
        found = _meant(text, hosts)
        if not found:
            missing.append(text)
        chosen |= dict.fromkeys(host for host in hosts if host in found)
    return list(chosen), missing


def _meant(text: str, hosts: Hosts) -> set[str]:
    added: set[str] = set()
    taken: set[str] = set()
    kept: set[str] | None = None
    adds = False
    for part in filter(None, map(str.strip, text.split(","))):
        if part in hosts:
            adds, added = True, added | {part}
        elif part[0] == "!" and len(part) > 1:
            taken |= _fitting(part[1:], hosts)
        elif part[0] == "&" and len(part) > 1:
            fitting = _fitting(part[1:], hosts)
            kept = fitting if kept is None else kept & fitting
        else:
            adds, added = True, added | _fitting(part, hosts)
    if not adds and (taken or kept is not None):
        added = set(hosts)
    if kept is not None:
        added &= kept
    return added - taken


def _fitting(part: str, hosts: Hosts) -> set[str]:
    if part in hosts:
        return {part}
    if members := {host for host, groups in hosts.items() if part in groups}:
        return members
    if part == "all":
        return set(hosts)
    if not _WILD.search(part):
        return set()
    fits = re.compile(translate(part)).match
    return {host for host in hosts if fits(host)}
