"""The build farm of ``labctl demo``: what its build jobs and storage nodes say of the commits of a week."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any

PROJECT = "ceph"
FARM = "https://jenkins.example.com/job/ceph-dev-build"
#: For each branch that is always built, how many days lie between its builds.
BRANCHES = {"main": 1, "squid": 2, "reef": 3}
#: Where each of them is; all others come from main.
RELEASES = {"squid": "19.2.3", "reef": "18.2.7", "main": "20.3.0"}
#: What those are built for: flavor, distribution, version, architectures.
ALWAYS = (
    ("default", "ubuntu", "jammy", ("x86_64", "arm64")),
    ("default", "ubuntu", "noble", ("x86_64",)),
    ("default", "centos", "9", ("x86_64", "arm64")),
)
ONLY_MAIN = (("crimson-debug", "centos", "9", ("x86_64",)),)
#: What a branch under test is built for.
TESTED = (("default", "ubuntu", "jammy", ("x86_64",)), ("default", "centos", "9", ("x86_64",)))


@dataclass(frozen=True, order=True)
class Commit:
    """What is built: a commit of a branch, on a day."""

    day: date
    ref: str
    sha1: str


class Farm:
    """Build jobs and storage nodes; ``send`` is how they talk to labctl: method, path, body."""

    def __init__(self, send: Callable[[str, str, Any], Any], chance: random.Random) -> None:
        """Start with nothing built."""
        self.send = send
        self.chance = chance
        self.builds = 0
        self.repos = 0

    def run(self, commits: Iterable[Commit]) -> None:
        """Build commits, the oldest first; those of the last day are still going on."""
        ordered = sorted(set(commits))
        for commit in ordered:
            last = commit.day == ordered[-1].day
            wanted = (ALWAYS if commit.ref in BRANCHES else TESTED) + (ONLY_MAIN if commit.ref == "main" else ())
            for flavor, distro, version, archs in wanted:
                made = {"flavor": flavor, "distro": distro, "distro_version": version}
                built = [arch for arch in archs if self.build(commit, made, arch, last)]
                if built:
                    self.publish(commit, made, built, last)

    def build(self, commit: Commit, made: dict[str, str], arch: str, last: bool) -> bool:
        """Report a build as its job would: queued, started, completed or failed. Tells whether it has made packages."""
        odds = {"queued": 10, "started": 20, "completed": 70} if last else {"completed": 92, "failed": 8}
        end = self.chance.choices(list(odds), list(odds.values()))[0]
        url = f"{FARM}/ARCH={arch},DIST={made['distro_version']},FLAVOR={made['flavor']}/{int(commit.sha1[:4], 16)}/"
        build = {
            **made,
            "ref": commit.ref,
            "sha1": commit.sha1,
            "distro_arch": arch,
            "url": url,
            "log_url": f"{url}consoleFull",
            "extra": extra(commit, url),
        }
        before = {"queued": [], "started": ["queued"]}.get(end, ["queued", "started"])
        for status in (*before, end):
            self.send("POST", f"/api/builds/{PROJECT}/", {**build, "status": status})
        self.builds += 1
        return end == "completed"

    def publish(self, commit: Commit, made: dict[str, str], archs: list[str], last: bool) -> None:
        """Report a repo as its storage node would: requested, queued, building, ready or failed."""
        node = f"https://storage{1 + int(commit.sha1[0], 16) % 2:02d}.example.com"
        of = (PROJECT, commit.ref, commit.sha1, made["distro"], made["distro_version"], "flavors", made["flavor"])
        place = "/".join(of)
        repo = {
            **made,
            "ref": commit.ref,
            "sha1": commit.sha1,
            "url": f"{node}/r/{place}/",
            "chacra_url": f"{node}/repos/{place}/",
            "extra": extra(commit, f"{FARM}/{int(commit.sha1[:4], 16)}/"),
        }
        statuses = ["requested", "queued", "building", "failed" if self.chance.random() < 0.04 else "ready"]
        for status in statuses[: self.chance.randint(1, 4)] if last else statuses:
            # The packages of one architecture are there first.
            known = archs[:1] if status == "requested" else archs
            self.send("POST", f"/api/repos/{PROJECT}/", {**repo, "status": status, "archs": known})
        self.repos += 1


def extra(commit: Commit, build_url: str) -> dict[str, str]:
    """Say what build jobs add; the version tells the commits of a branch apart, and grows from day to day."""
    version = f"{RELEASES.get(commit.ref, RELEASES['main'])}-{commit.day.toordinal() % 1000}-g{commit.sha1[:8]}"
    return {
        "version": version,
        "package_manager_version": f"{version}-1",
        "build_url": build_url,
        "root_build_cause": "SCMTRIGGER" if commit.ref in BRANCHES else "MANUALTRIGGER",
        "node_name": f"builder{int(commit.sha1[1], 16):02d}",
        "job_name": "ceph-dev-build",
    }
