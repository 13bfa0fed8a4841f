"""Reading what the name of a run says about it."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

_NAME = re.compile(r"(?P<user>.+?)-(?P<time>\d{4}-\d{2}-\d{2}_\d{2}:\d{2}:\d{2})-(?P<rest>.+)", re.DOTALL)
#: Words that are a flavor: they tell where in the name the kernel and the flavor stand.
_FLAVORS = frozenset(
    ("basic", "default", "gcov", "notcmalloc", "jaeger", "crimson", "crimson-debug", "crimson-release")
)
_DISTRO = re.compile(r"(?:ubuntu|debian|centos|rhel|fedora|opensuse|sles?|rocky|alma)([\d._][\w.]*)?", re.IGNORECASE)
#: Suites with a hyphen in their name; for any other, what follows the first hyphen belongs to the branch.
_HYPHENATED_SUITES = ("ceph-deploy", "ceph-ansible")


@dataclass(frozen=True)
class RunName:
    """What a name tells; the texts are empty, ``scheduled`` is None, where it does not tell."""

    user: str = ""
    scheduled: datetime | None = None
    suite: str = ""
    branch: str = ""
    machine_type: str = ""


def parse(name: str) -> RunName:
    """Read ``USER-YYYY-MM-DD_HH:MM:SS-SUITE-BRANCH-KERNEL-FLAVOR[-MACHINE[-DISTRO]]``.

    Every part but the time may hold hyphens, so a name alone can be read in several ways. No list of suites or machine
    types is needed for this one: the first date ends the user; the last word that is a flavor divides what follows, or,
    if there is none, the last word is the machine type and the one before it the flavor; left of the flavor stand the
    kernel, one word (``-`` is one, too), and before it the suite, one word unless it is known to have a hyphen, and the
    branch, all the rest; right of the flavor stands the machine type, less a distribution at its end. Where that is
    wrong (a suite ``a-b``), the first job that says its suite, branch or machine type corrects the run.

    The time is local to the server. A name of another form tells nothing.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return RunName()
    try:
        scheduled = datetime.strptime(match["time"], "%Y-%m-%d_%H:%M:%S").astimezone(UTC)
    except (ValueError, OverflowError):
        return RunName()
    words = match["rest"].split("-")
    flavor = _flavor(words)
    if flavor is None:
        return RunName()
    suite, branch = _suite_and_branch(words[: flavor.start - 1])
    machine = words[flavor.stop :]
    if len(machine) > 1 and _DISTRO.fullmatch(machine[-1]):
        machine.pop()
    return RunName(_bare(match["user"]), scheduled, suite, branch, _bare("-".join(machine)))


def _flavor(words: list[str]) -> slice | None:
    """Find the words of the flavor; None if too few stand before it for a suite, a branch and a kernel."""
    for start in range(len(words) - 1, 2, -1):
        for stop in (start + 2, start + 1):
            if "-".join(words[start:stop]) in _FLAVORS:
                return slice(start, stop)
    return slice(len(words) - 2, len(words) - 1) if len(words) >= 5 else None


def _suite_and_branch(words: list[str]) -> tuple[str, str]:
    text = "-".join(words)
    for suite in _HYPHENATED_SUITES:
        if text.startswith(f"{suite}-"):
            return suite, _bare(text.removeprefix(suite))
    suite, _, branch = text.partition("-")
    return _bare(suite), _bare(branch)


def _bare(text: str) -> str:
    return text.strip(" -")
