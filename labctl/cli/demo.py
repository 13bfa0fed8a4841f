"""``labctl demo``: a believable week of a lab, through the HTTP API of a running labctl."""

import base64
import hashlib
import http.client
import json
import random
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import click

from labctl.cli.farm import BRANCHES, Commit, Farm
from labctl.cli.hosts import Operated, operate
from labctl.cli.sessions import SESSIONS, Busy, Kept, maintain
from labctl.cli.vms import Empty, take_vms
from labctl.settings import Settings, load

MACHINES = {"smithi": 24, "mira": 8, "gibba": 12}
USERS = ("nightly", "scott", "ana", "yuri", "lin")
SUITES = ("rados", "rbd", "fs", "rgw", "smoke", "rados:thrash", "upgrade:quincy-x")
DISTROS = (("ubuntu", "22.04"), ("ubuntu", "24.04"), ("centos", "9.stream"))
FAILURES = (
    "Command failed on smithi012 with status 1: 'sudo ceph osd pool create test 32'",
    "timeout expired in wait_until_healthy",
    '"2026-01-02T03:04:05.678+0000 mon.a (mon.0) 512 : cluster [WRN] Health check failed" in cluster log',
    "SSH connection to smithi007 was lost: 'sudo yum install -y ceph'",
)


class Refused(click.ClickException):
    """labctl wants a credential, or another one."""


class Lab:
    """A running labctl; every request must succeed."""

    def __init__(self, url: str, authorization: str | None) -> None:
        """Connect to where it listens; a credential is only needed where the settings have closed a tree."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise click.BadParameter(f"{url} is no http or https URL")
        connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self.connection = connect(parts.hostname, parts.port, timeout=60)
        self.base = parts.path.rstrip("/")
        self.authorization = authorization
        self.requests = 0

    def send(self, method: str, path: str, body: Any = None, *, may_exist: bool = False) -> Any:
        """Send JSON and give the answer's; with ``may_exist`` a 400 that says so is fine: a demo may be repeated."""
        try:
            payload = None if body is None else json.dumps(body)
            headers = {"Authorization": self.authorization} if self.authorization else {}
            self.connection.request(method, self.base + path, payload, headers)
            answer = self.connection.getresponse()
            text = answer.read()
        except OSError as error:
            raise click.ClickException(f"labctl does not answer: {error}") from error
        self.requests += 1
        if answer.status == 503 and path.startswith(("/api/vm/", "/target")):
            raise Empty
        if answer.status in (409, 509) and path.startswith(SESSIONS):
            raise Busy(json.loads(text).get("error", ""))
        if answer.status not in (200, 201) and not (may_exist and b"already exists" in text):
            kind = Refused if answer.status in (401, 403) else click.ClickException
            raise kind(f"{method} {path}: {answer.status} {text.decode(errors='replace')[:300]}")
        return json.loads(text)


@dataclass
class Week:
    """What the demo's chance depends on: the seed, the number of runs, and the last day."""

    seed: int
    runs: int
    until: datetime

    def __post_init__(self) -> None:
        """Begin with the seed."""
        self.chance = random.Random(self.seed)  # noqa: S311 - a demo, not a secret

    @property
    def begin(self) -> datetime:
        """The time of the first of it."""
        return self.until - timedelta(days=7)

    def times(self) -> Iterator[datetime]:
        """Give the time of each run, over the seven days, the oldest first."""
        for seconds in sorted(self.chance.randrange(7 * 86400) for _ in range(self.runs)):
            yield self.begin + timedelta(seconds=seconds)

    def head_of(self, ref: str, day: date) -> Commit:
        """Give the commit that a branch is at on a day."""
        return Commit(day, ref, hashlib.sha1(f"{self.seed} {ref} {day}".encode(), usedforsecurity=False).hexdigest())

    def always_built(self) -> Iterator[Commit]:
        """Give the commits of the branches that are built whether somebody tests them or not."""
        for ref, days in BRANCHES.items():
            for day in range(7, -1, -days):
                yield self.head_of(ref, (self.begin + timedelta(days=day)).date())


@click.command()
@click.option("--url", default=None, help="Where labctl listens; default: as the settings host and port say.")
@click.option("--token", envvar="LABCTL_TOKEN", help="A token; builds and repos need one: default, this machine's.")
@click.option("--runs", type=click.IntRange(1, 100_000), default=60, show_default=True, help="How many test runs.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed makes the same lab.")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), default=None, help="The week's last day; default: today.")
def demo(url: str | None, token: str | None, runs: int, seed: int, until: datetime | None) -> None:
    """Fill a running labctl with a week of a test lab: machines, queues, runs and their jobs, builds and repos, VMs.

    On the hosts that labctl up begins with, some operations are run, one of which fails, and three maintenance sessions
    are left behind: one is done, one has failed, one waits for tomorrow. No other host is touched.
    """
    settings = load()
    lab = Lab(url or f"http://{settings.host}:{settings.port}", f"Bearer {token}" if token else None)
    last = (until.replace(tzinfo=UTC) if until else datetime.now(UTC)).replace(minute=0, second=0, microsecond=0)
    week = Week(seed, runs, last)
    farm = Farm(lab.send, week.chance)
    with closing(lab.connection):
        machines = add_machines(lab, week)
        add_queues(lab)
        jobs, tested = add_runs(lab, week, machines)
        # Whoever names another labctl does not want it to see the credential of this one.
        lab.authorization = lab.authorization or (own_credential(settings) if url is None else None)
        try:
            farm.run({*tested, *week.always_built()})
        except Refused as error:
            click.echo(f"builds and repos are left out: give a token with the right to repos in LABCTL_TOKEN ({error})")
        taken, returned = take_vms(lab.send, week.chance, USERS)
        operated = on_hosts(lab)
        sessions = keep_sessions(lab) if operated.hosts else Kept()
    done = f"{sum(map(len, machines.values()))} machines, {runs} runs, {jobs} jobs"
    click.echo(
        f"{done}, {farm.builds} builds, {farm.repos} repos; {taken} VMs taken, {returned} given back; "
        f"{operated.operations} operations on {operated.hosts} hosts, {operated.failed} failed; "
        f"maintenance sessions: {sessions}; {lab.requests} requests"
    )


def on_hosts(lab: Lab) -> Operated:
    """Run operations on hosts, where that may be done and there are hosts for it."""
    try:
        return operate(lab.send)
    except Refused as error:
        click.echo(f"operations on hosts are left out: give a token with the right to remote in LABCTL_TOKEN ({error})")
    except Empty:
        click.echo("operations on hosts are left out: no worker has read the inventory")
    return Operated()


def keep_sessions(lab: Lab) -> Kept:
    """Leave maintenance sessions behind, where that may be done and there are hosts for it."""
    try:
        kept = maintain(lab.send)
    except Refused as error:
        kept = Kept(reason=f"give a token with the right to maintenance in LABCTL_TOKEN ({error})")
    if kept.reason:
        click.echo(f"maintenance sessions are left out: {kept.reason}")
    return kept


def own_credential(settings: Settings) -> str | None:
    """Find what this machine's labctl lets post builds: api_user and api_key, or the token that labctl up has left."""
    if settings.api_user and settings.api_key:
        pair = f"{settings.api_user}:{settings.api_key}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"
    with suppress(OSError):
        return f"Bearer {Path(settings.home, 'admin.token').read_text().strip()}"
    return None


def add_machines(lab: Lab, week: Week) -> dict[str, list[str]]:
    """Register machines; some are down, some are locked by hand. Gives the names by type."""
    names: dict[str, list[str]] = {}
    for kind, count in MACHINES.items():
        names[kind] = [f"{kind}{number:03d}.front.example.com" for number in range(1, count + 1)]
        for name in names[kind]:
            os_type, os_version = week.chance.choice(DISTROS)
            machine = {
                "name": name, "machine_type": kind, "up": week.chance.random() > 0.08, "is_vm": False, "arch": "x86_64",
                "os_type": os_type, "os_version": os_version,
                "ssh_pub_key": f"ssh-ed25519 {week.chance.getrandbits(128):x}",
                "mac_address": ":".join(f"{week.chance.randrange(256):02x}" for _ in range(6)),
            }  # fmt: skip
            lab.send("POST", "/nodes/", machine, may_exist=True)
        for name in week.chance.sample(names[kind], 2):
            lock = {
                "name": name,
                "locked": True,
                "locked_by": f"{week.chance.choice(USERS)}@vossi",
                "description": "debugging",
            }
            if not lab.send("GET", f"/nodes/{name}/")["locked"]:
                lab.send("PUT", f"/nodes/{name}/lock/", lock)
    return names


def add_queues(lab: Lab) -> None:
    """Add a queue for each machine type, and pause one."""
    for kind in MACHINES:
        lab.send("POST", "/queue/", {"queue": kind}, may_exist=True)
    if not lab.send("POST", "/queue/stats/", {"queue": "mira"})["paused"]:
        lab.send("PUT", "/queue/", {"queue": "mira", "paused_by": "ana@vossi", "pause_duration": 86400})


def add_runs(lab: Lab, week: Week, machines: dict[str, list[str]]) -> tuple[int, set[Commit]]:
    """Report runs as the test tool would: each job queued, then running, then how it ended.

    Gives the number of jobs, and the commits that were tested.
    """
    total, tested = 0, set()
    for number, when in enumerate(week.times()):
        user, suite = week.chance.choice(USERS), week.chance.choice(SUITES)
        branch = "main" if user == "nightly" else f"wip-{user}-testing-{number % 7}"
        kind = week.chance.choice(list(MACHINES))
        run = f"{user}-{when:%Y-%m-%d_%H:%M:%S}-{suite}-{branch}-distro-default-{kind}"
        os_type, os_version = week.chance.choice(DISTROS)
        commit = week.head_of(branch, when.date())
        tested.add(commit)
        job = {
            "name": run, "user": user, "owner": f"scheduled_{user}@scheduler", "suite": suite, "branch": branch,
            "suite_branch": branch, "machine_type": kind, "queue": kind, "flavor": "default", "os_type": os_type,
            "os_version": os_version, "sha1": commit.sha1,
            "timestamp": f"{when:%Y-%m-%d_%H:%M:%S}",
            "priority": week.chance.choice((50, 100, 100, 100, 1000)), "roles": [["mon.a", "osd.0"], ["client.0"]],
            "tasks": [{"install": None}, {"ceph": None}, {"workunit": {"clients": {"all": [f"{suite}/test.sh"]}}}],
            "verbose": True, "nuke_on_error": True, "last_in_suite": False,
        }  # fmt: skip
        # What was scheduled in the last hours is still going on.
        age = week.until - when
        odds = (
            {"pass": 80, "fail": 12, "dead": 3}
            if age > timedelta(hours=12)
            else {"queued": 40, "running": 20, "pass": 40}
        )
        for count in range(week.chance.randint(5, 40)):
            report_job(lab, week, run, {**job, "job_id": str(number * 100 + count)}, machines[kind], odds)
            total += 1
    return total, tested


def report_job(lab: Lab, week: Week, run: str, job: dict[str, Any], machines: list[str], odds: dict[str, int]) -> None:
    """Report one job up to the state that chance gives it."""
    jobs = f"/runs/{quote(run, safe=':')}/jobs/"
    job["description"] = f"{job['suite']}/basic/{{clusters/fixed-2 msgr/async tasks/t{week.chance.randrange(40)}}}"
    job["archive_path"] = f"/a/{run}/{job['job_id']}"
    lab.send("POST", jobs, {**job, "status": "queued"}, may_exist=True)
    end = week.chance.choices(list(odds), list(odds.values()))[0]
    if end == "queued":
        return
    targets = {f"ubuntu@{name}": "ssh-ed25519 KEY" for name in week.chance.sample(machines, 2)}
    lab.send("PUT", f"{jobs}{job['job_id']}/", {**job, "status": "running", "targets": targets, "pid": 4242})
    if end == "running":
        return
    result = {"status": end, "duration": week.chance.randint(300, 9000)}
    if end != "dead":
        result["success"] = end == "pass"
    if end == "fail":
        result["failure_reason"] = week.chance.choice(FAILURES)
    lab.send("PUT", f"{jobs}{job['job_id']}/", result)
