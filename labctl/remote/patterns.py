"""Which hosts a pattern means: names of hosts and groups, shell patterns, and how they are put together."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import translate

from labctl.errors import Invalid

#: The hosts there are, in the order in which they are told, each with its groups.
Hosts = Mapping[str, Collection[str]]

#: How many parts of one request may be anything but the name of a host: each is compared with all there are.
MOST_PARTS = 100
_WILD = re.compile(r"[*?\[]")
#: Characters of which a shell pattern takes one, as ``fnmatch`` reads them.
_ONE_OF = re.compile(r"\[!?+\]?+[^]]*\]")


def choose(hosts: Hosts, given: Collection[str]) -> tuple[list[str], list[str]]:
    """Give the hosts that the given texts mean together, in their order and once each, and what of them means none.

    The name of a host means that host, whatever characters it has. Else a text consists of parts with commas between
    them, each the name of a host, the name of a group, ``all``, or a shell pattern (``*``, ``?``, ``[...]``); letter
    case matters. A part behind ``!`` takes its hosts away, one behind ``&`` leaves only its hosts. It makes no
    difference whether parts are in one text or in several, nor where the signed ones stand: they apply to all that is
    given, so that what somebody has excluded is never done after all. Where there are only such parts, all hosts are
    what they start from.

    Every part must mean some host: a typing mistake must not make the list of hosts shorter, nor longer behind ``!``.
    Only a shell pattern behind ``!`` may mean none, for it takes away whatever has such a name: ``all,!old*``; but not
    where there are only signed parts, since a mistake in ``!old*`` would mean every host, nor one with a second sign or
    with a ``[`` that is never closed, which are mistakes. A group without hosts is not known.
    """
    place = {host: number for number, host in enumerate(hosts)}
    added: dict[str, None] = {}
    taken: set[str] = set()
    kept = set(hosts)
    #: What means no host, and whether it may where something is added.
    nothing: dict[str, bool] = {}
    adds = signed = False
    for text, parts in _split(hosts, given):
        found: set[str] = set()
        for sign, name in parts:
            fitting = _fitting(name, hosts)
            if not fitting:
                nothing[sign + name] = sign == "!" and _is_pattern(name)
            if sign == "!":
                taken |= fitting
            elif sign == "&":
                kept &= fitting
            else:
                found |= fitting
            adds, signed = adds or not sign, signed or bool(sign)
        if not parts:
            nothing[text] = False
        added |= dict.fromkeys(sorted(found, key=place.__getitem__))
    if signed and not adds:
        added = dict.fromkeys(hosts)
    chosen = [host for host in added if host in kept and host not in taken]
    missing = [part for part, may in nothing.items() if not (may and adds)]
    return chosen, missing if chosen or missing else list(dict.fromkeys(given))


def _split(hosts: Hosts, given: Iterable[str]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Give each text with its parts, which are a sign or none, and what stands behind it."""
    count = 0
    for text in given:
        if text in hosts:
            yield text, [("", text)]
            continue
        count += text.count(",") + 1
        if count > MOST_PARTS:
            raise Invalid(f"more than {MOST_PARTS} patterns in one request")
        yield text, [_signed(part, hosts) for part in map(str.strip, text.split(",")) if part]


def _signed(part: str, hosts: Hosts) -> tuple[str, str]:
    sign = part[0] if part[0] in "!&" and len(part) > 1 and part not in hosts else ""
    return sign, part[len(sign) :].strip()


def _is_pattern(name: str) -> bool:
    """Tell whether it is a shell pattern that somebody can have meant."""
    return bool(_WILD.search(name)) and name[0] not in "!&" and "[" not in _ONE_OF.sub("", name)


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
