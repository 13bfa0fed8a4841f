"""The document of a job: its JSON as clients see it, stored beside the columns that are searched."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import orjson

from labctl import times
from labctl.errors import Invalid

#: The keys of a job on the wire (paddles), in its order; all are there, null when unset, after ``log_href``.
KEYS = [
    "archive_path",
    "description",
    "duration",
    "email",
    "failure_reason",
    "flavor",
    "job_id",
    "kernel",
    "last_in_suite",
    "machine_type",
    "name",
    "nuke_on_error",
    "os_type",
    "os_version",
    "overrides",
    "owner",
    "pid",
    "roles",
    "sentry_event",
    "status",
    "success",
    "branch",
    "seed",
    "sha1",
    "subset",
    "suite",
    "suite_branch",
    "suite_path",
    "suite_relpath",
    "suite_repo",
    "suite_sha1",
    "targets",
    "tasks",
    "timestamp",
    "teuthology_branch",
    "verbose",
    "pcp_grafana_url",
    "priority",
    "user",
    "queue",
    "package_source",
    "posted",
    "started",
    "updated",
]
#: Only there when they were reported: the clients of 2013 sent them, today's do not.
RARE_KEYS = ("mon_a_kernel_sha1", "mon_b_kernel_sha1")
#: A job that nothing is known of.
EMPTY: dict[str, Any] = dict.fromkeys(KEYS)


def read(document: str) -> dict[str, Any]:
    """Read a stored document."""
    content: dict[str, Any] = orjson.loads(document)
    return content


def write(content: dict[str, Any], **moments: datetime | None) -> str:
    """Write a document for the database, with the job's times as the wire has them; raises :class:`Invalid`."""
    for name, time in moments.items():
        content[name] = times.to_wire(time)
    try:
        return orjson.dumps(content).decode()
    except orjson.JSONEncodeError as error:
        # What was read as JSON can be written, unless it is nested too deeply.
        raise Invalid("nested too deeply", field="body") from error


class LogURL:
    """Where the logs of jobs are, by the setting ``job_log_url``; documents are completed with it on their way out."""

    def __init__(self, template: str) -> None:
        """Take the template with ``{run_name}`` and ``{job_id}``."""
        self.parts = template.split("{job_id}")

    def complete(self, run_name: str, job_id: str, document: str) -> str:
        """Put the URL of a job's log before the rest of its stored document."""
        return self.completed(run_name, [(job_id, document)])[0]

    def completed(self, run_name: str, rows: Iterable[Any]) -> list[str]:
        """Complete the documents of one run's jobs; a row is a job's id and its document."""
        # Quoted once for the run; a job's id is quoted by itself.
        parts = [_quoted(part.replace("{run_name}", run_name)) for part in self.parts]
        return [f'{{"log_href":"{_quoted(job_id).join(parts)}",{document[1:]}' for job_id, document in rows]


def _quoted(text: str) -> str:
    """Write a text as it stands between the quotes of JSON."""
    return orjson.dumps(text).decode()[1:-1]


def cut(documents: Iterable[str], fields: list[str]) -> list[dict[str, Any]]:
    """Reduce complete documents to some of their keys."""
    contents = map(orjson.loads, documents)
    return [{field: content.get(field) for field in fields} for content in contents]
