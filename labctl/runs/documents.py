"""The document of a job: its JSON as clients see it, stored beside the columns that are searched."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import orjson

from labctl.errors import Invalid

#: The keys of a job on the wire (paddles), in its order; all are there, null when unset. ``log_href`` comes before them.
KEYS = (
    "archive_path description duration email failure_reason flavor job_id kernel last_in_suite machine_type name "
    "nuke_on_error os_type os_version overrides owner pid roles sentry_event status success branch seed sha1 subset "
    "suite suite_branch suite_path suite_relpath suite_repo suite_sha1 targets tasks timestamp teuthology_branch verbose "
    "pcp_grafana_url priority user queue package_source posted started updated"
).split()
#: Only there when they were reported: the clients of 2013 sent them, today's do not.
RARE_KEYS = ("mon_a_kernel_sha1", "mon_b_kernel_sha1")
#: A job that nothing is known of.
EMPTY: dict[str, Any] = dict.fromkeys(KEYS)


def time_to_wire(time: datetime | None) -> str | None:
    """Write a time as ``YYYY-MM-DD HH:MM:SS[.ffffff]``, UTC without zone."""
    return None if time is None else str(time.astimezone(UTC).replace(tzinfo=None))


def read(document: str) -> dict[str, Any]:
    """Read a stored document."""
    content: dict[str, Any] = orjson.loads(document)
    return content


def write(content: dict[str, Any], **times: datetime | None) -> str:
    """Write a document for the database, with the job's times as the wire has them; raises :class:`Invalid`."""
    for name, time in times.items():
        content[name] = time_to_wire(time)
    try:
        return orjson.dumps(content).decode()
    except orjson.JSONEncodeError as error:
        # What was read as JSON can be written, unless it is nested too deeply.
        raise Invalid("nested too deeply", field="body") from error


class LogURL:
    """Where the logs of a run's jobs are, by the setting ``job_log_url``."""

    def __init__(self, template: str) -> None:
        """Take the template with ``{run_name}`` and ``{job_id}``."""
        self.template = template

    def of(self, run_name: str, job_id: str) -> str:
        """Fill the template in."""
        return self.template.replace("{run_name}", run_name).replace("{job_id}", job_id)


def complete(document: str, log_href: str) -> str:
    """Put the URL of the log before the rest of a stored document."""
    return f'{{"log_href":{orjson.dumps(log_href).decode()},{document[1:]}'


def cut(documents: Iterable[str], fields: list[str]) -> list[dict[str, Any]]:
    """Reduce complete documents to some of their keys."""
    contents = map(orjson.loads, documents)
    return [{field: content.get(field) for field in fields} for content in contents]
