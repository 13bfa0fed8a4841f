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
    """Give the hosts that any of the given texts means, in their order and once each, and what of the texts means none.

    The name of a host means that host, whatever characters it has. Else a text consists of parts with commas between
    them, each the name of a host, the name of a group, ``all``, or a shell pattern (``*``, ``?``, ``[...]``); letter
    case matters. A part behind ``!`` takes its hosts away, one behind ``&`` leaves only its hosts, wherever they stand;
    where there are only such parts, all hosts are what they start from.

    Every part must mean some host: a typing mistake must not make the list of hosts shorter, nor longer behind ``!``.
    Only a shell pattern behind ``!`` may mean none, for it takes away whatever has such a name: ``all,!old*``. A group
    without hosts is not known.
    """
    chosen: dict[str, None] = {}
    missing: dict[str, None] = {}
    parts = 0
    for text in given:
        if text in hosts:
            chosen[text] = None
            continue
        parts += text.count(",") + 1
        if parts > MOST_PARTS:
            raise Invalid(f"more than {MOST_PARTS} patterns in one request")
        found, nothing = _meant(text, hosts)
        chosen |= dict.fromkeys(host for host in hosts if host in found)
        if not found and not nothing:
            nothing = [text]
        missing |= dict.fromkeys(nothing)
    return list(chosen), list(missing)


def _meant(text: str, hosts: Hosts) -> tuple[set[str], list[str]]:
    """Give the hosts that a text means, and those of its parts that mean none although they should."""
    added: set[str] = set()
    taken: set[str] = set()
    kept: set[str] | None = None
    adds = signed = False
    nothing = []
    for part in filter(None, map(str.strip, text.split(","))):
        sign = part[0] if part[0] in "!&" and len(part) > 1 and part not in hosts else ""
        name = part[len(sign) :]
        fitting = _fitting(name, hosts)
        if not fitting and not (sign == "!" and _WILD.search(name)):
            nothing.append(part)
        signed = signed or bool(sign)
        if sign == "!":
            taken |= fitting
        elif sign == "&":
            kept = fitting if kept is None else kept & fitting
        else:
            adds, added = True, added | fitting
    if signed and not adds:
        added = set(hosts)
    if kept is not None:
        added &= kept
    return added - taken, nothing


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
