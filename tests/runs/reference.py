"""What the contract says about jobs and runs, written down once more, as plainly as can be, to compare labctl with."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

#: What a job may be, and what a run counts.
STATUSES = ("queued", "pass", "running", "waiting", "fail", "dead", "unknown")


def run_status(jobs: Iterable[str]) -> str:
    """Derive a run's status from its jobs': the first line that fits."""
    jobs = list(jobs)
    if not jobs:
        return "empty"
    if all(status == "queued" for status in jobs):
        return "queued"
    if "running" in jobs:
        return "running"
    if "waiting" in jobs:
        return "waiting"
    if all(status == "dead" for status in jobs):
        return "finished dead"
    if "fail" in jobs or "dead" in jobs:
        return "finished fail"
    if all(status == "pass" for status in jobs):
        return "finished pass"
    if "queued" in jobs:
        return "queued"
    return "unknown"


def job_status(old: str | None, report: dict[str, Any]) -> str:
    """Derive a job's status from its old one, None for a new job, and what is reported."""
    if report.get("status") is not None:
        return old if old in ("pass", "fail") else report["status"]
    if "success" in report:
        return {True: "pass", False: "fail", None: "unknown"}[report["success"]]
    return "unknown" if old is None else old


def assert_consistent(run: dict[str, Any]) -> None:
    """Check a run as ``GET /runs/NAME/`` gives it: counts and status are those of the jobs that come with it."""
    statuses = [job["status"] for job in run["jobs"]]
    counted = Counter(statuses)
    assert {status: run["results"][status] for status in STATUSES} == {status: counted[status] for status in STATUSES}
    assert run["results"]["total"] == run["jobs_count"] == len(statuses)
    assert run["status"] == run_status(statuses)
