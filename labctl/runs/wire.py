"""Runs, jobs and queues as JSON: what clients may send, and the shapes they get."""

import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from labctl.runs.documents import KEYS, RARE_KEYS
from labctl.runs.queries import FILTERS
from labctl.runs.service import Claim, Report
from labctl.runs.states import JobState

MAX_NAME = 512
#: A URL with more in it does not reach labctl.
MAX_ENCODED_NAME = 4096
#: Words that mean something else behind ``/runs/``.
RESERVED = frozenset((*FILTERS, "flavors", "date", "queued", ".", "..")) - {"flavor"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[ _]\d\d:\d\d:\d\d(\.\d{1,6})?", re.ASCII)


def _printable(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError("must not contain control characters")
    return value


def _id(value: Any) -> Any:
    if isinstance(value, float):
        # Numbers stand for strings elsewhere; 1.0 and 1 must not be two jobs.
        raise ValueError("must be a string or a whole number")
    if value in (".", ".."):
        raise ValueError("must not be . or .., which no URL can name")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _time(value: Any) -> Any:
    """Read ``YYYY-MM-DD HH:MM:SS[.ffffff]`` or with an underscore, as teuthology writes it, in the server's zone."""
    if value is None:
        return None
    if isinstance(value, str) and _TIME.fullmatch(value):
        with suppress(ValueError, OverflowError):
            return datetime.fromisoformat(value.replace("_", " ")).astimezone(UTC)
    raise ValueError("must be a time such as 2026-01-02 03:04:05")


def _timestamp(value: datetime | None) -> str | None:
    # When the run was scheduled, by the clock of whoever scheduled it: it is shown as it was sent.
    return None if value is None else str(value.astimezone().replace(tzinfo=None))


def _hosts(value: dict[str, Any] | None) -> dict[str, Any] | None:
    for target in value or ():
        host = target.rpartition("@")[2]
        if not 0 < len(host) <= 255 or not host.isprintable():
            raise ValueError("the keys must be user@host, with a host of 1 to 255 printable characters")
    return value


Word = Annotated[str, Field(max_length=255), AfterValidator(_printable)]
RunNameText = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_printable)]
JobID = Annotated[str, BeforeValidator(_id), Field(min_length=1, max_length=128), AfterValidator(_printable)]
WireTime = Annotated[datetime | None, BeforeValidator(_time)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class RunInput(BaseModel):
    """The body of a new run."""

    name: RunNameText


class ClaimInput(BaseModel):
    """A claim, as the dispatcher got it."""

    worker: Word
    attempt: Whole


class JobInput(BaseModel):
    """A report of a job; every key may be missing, unknown ones are ignored (paddles)."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    job_id: JobID | None = None
    status: JobState | None = None
    success: bool | None = None
    name: Annotated[str, Field(max_length=MAX_NAME), AfterValidator(_printable)] | None = None
    archive_path: str | None = None
    description: str | None = None
    failure_reason: str | None = None
    duration: Annotated[float, Field(allow_inf_nan=False)] | Whole | None = None
    email: Word | None = None
    flavor: Word | None = None
    kernel: Any = None
    last_in_suite: bool | None = None
    machine_type: Word | None = None
    nuke_on_error: bool | None = None
    os_type: Word | None = None
    os_version: Word | None = None
    overrides: Any = None
    owner: Word | None = None
    pid: Whole | None = None
    roles: Any = None
    sentry_event: str | None = None
    branch: Word | None = None
    seed: Whole | None = None
    sha1: Word | None = None
    subset: Word | None = None
    suite: Word | None = None
    suite_branch: Word | None = None
    suite_path: str | None = None
    suite_relpath: str | None = None
    suite_repo: str | None = None
    suite_sha1: Word | None = None
    targets: Annotated[dict[str, Any], AfterValidator(_hosts)] | None = None
    tasks: Any = None
    timestamp: Annotated[WireTime, AfterValidator(_timestamp)] = None
    teuthology_branch: Word | None = None
    verbose: bool | Whole | None = None
    pcp_grafana_url: str | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    user: Word | None = None
    queue: Word | None = None
    package_source: Word | None = None
    mon_a_kernel_sha1: Word | None = None
    mon_b_kernel_sha1: Word | None = None
    updated: WireTime = None
    claim: ClaimInput | None = None


#: Of a report, these are not simply kept as they are.
_HANDLED = frozenset(("job_id", "updated", "claim", "posted", "started"))
_KEPT = frozenset((*KEYS, *RARE_KEYS)) - _HANDLED


def normalized(data: dict[str, Any]) -> dict[str, Any]:
    """Spell the keys of a report as labctl does: ``mon.a_kernel_sha1`` and ``os-type`` with underscores."""
    return {key.replace("-", "_").replace(".", "_"): value for key, value in data.items()}


def report_from_wire(given: JobInput) -> Report:
    """Turn a validated report into what the service understands."""
    sent = given.model_fields_set
    changes = {key: getattr(given, key) for key in sent & _KEPT}
    return Report(
        changes=changes,
        job_id=given.job_id,
        updated=given.updated,
        claim=None if given.claim is None else Claim(given.claim.worker, given.claim.attempt),
    )


#: The keys of a run; ``jobs`` comes with a single run only.
RUN_KEYS = frozenset(
    [
        "name",
        "href",
        "user",
        "status",
        "results",
        "jobs_count",
        "posted",
        "scheduled",
        "started",
        "updated",
        "branch",
        "suite",
        "machine_type",
        "sha1",
        "priority",
        "flavor",
    ]
)
JOB_KEYS = frozenset((*KEYS, "log_href", "href"))


def run_to_entry(run: dict[str, Any]) -> dict[str, Any]:
    """Shape a run as paddles' README lists it, behind its name."""
    return {"href": run["href"], "status": run["status"], "results": run["results"]}


def with_hrefs(jobs: list[dict[str, Any]], fields: list[str], run_href: str) -> list[dict[str, Any]]:
    """Add the URLs to cut jobs that came with their ids, and leave only ``fields``."""
    for job in jobs:
        job["href"] = f"{run_href}/jobs/{quote(job['job_id'], safe=':')}/"
    return [{field: job[field] for field in fields} for job in jobs]


def job_to_entry(job_id: str, status: str, run_href: str) -> dict[str, Any]:
    """Shape a job as paddles' README lists it, behind its id: counts of one job."""
    results: dict[str, int] = {state.value: int(state == status) for state in JobState}
    return {"href": f"{run_href}/jobs/{quote(job_id, safe=':')}/", "status": status, "results": results | {"total": 1}}
