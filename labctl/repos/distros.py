"""Translating the versions of distributions: the number into the codename, the codename into the number."""

import csv
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

# Once through the text however long it is: it comes from a request.
_NUMBER = re.compile(r"\.*[0-9][0-9.]*")


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a distribution as answers show it: its number and its codename, None where unknown."""

    number: str | None
    codename: str | None
    #: The same for every spelling: what is stored and searched, e.g. "ubuntu/22.04", "centos/9", "ubuntu/frobnicate".
    platform: str


def resolve(distro: str, version: str) -> Version:
    """Tell the number and the codename of a version that is given by either; letter case does not matter.

    What the table of releases does not know is a number if it is made of digits and dots, else a codename, and is shown
    as it was given; the other one is unknown. Any text will do.
    """
    name, wanted = distro.lower(), version.lower()
    known = _releases().get((name, wanted))
    if known is not None:
        return known
    platform = f"{name}/{wanted}"
    if _NUMBER.fullmatch(version):
        return Version(version, None, platform)
    return Version(None, version, platform)


@cache
def _releases() -> dict[tuple[str, str], Version]:
    """Read the table: each release by its distribution and either of its number and its codename."""
    known = {}
    with resources.files("labctl.repos").joinpath("releases.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            distro, number, codename = row["distro"], row["version"], row["codename"]
            release = Version(number, codename, f"{distro}/{number}")
            known[distro, number] = known[distro, codename] = release
    return known
