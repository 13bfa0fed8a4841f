"""Every setting: its name, type, default and one line of help; read from the environment and a config file."""

import os
import runpy
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field as Limit
from pydantic import TypeAdapter, ValidationError

Access = Literal["write", "read", "none"]
#: What a request without a credential may do, tree by tree: the protocols' clients of runs, machines and queue
#: have no way to log in, so these are open by default; everything else is read at the most.
ANONYMOUS: dict[str, Access] = {
    "runs": "write",
    "machines": "write",
    "queue": "write",
    "repos": "read",
    "nodes": "read",
    "events": "none",
}


class SettingsError(Exception):
    """The configuration is not valid; the message has one line per mistake."""


def _setting(default: Any, help: str) -> Any:
    factory = {"default_factory": default.copy} if isinstance(default, dict) else {"default": default}
    return field(**factory, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one labctl process; :func:`load` makes one."""

    home: str = _setting("./.labctl", "Directory for what labctl up keeps: its database, logs, the first token.")
    database_url: str = _setting(
        "", "PostgreSQL to use, postgresql://user:password@host/name. Empty: labctl up runs one of its own in home."
    )
    database_pool_size: Annotated[int, Limit(ge=1)] = _setting(
        16, "Connections one web process may hold for changes, and as many for reads; no fewer than web_threads."
    )
    host: str = _setting("127.0.0.1", "Address that labctl up lets gunicorn listen on.")
    port: Annotated[int, Limit(ge=1, le=65535)] = _setting(8080, "Port that labctl up lets gunicorn listen on.")
    web_workers: Annotated[int, Limit(ge=1)] = _setting(2, "gunicorn worker processes.")
    web_threads: Annotated[int, Limit(ge=1)] = _setting(
        16, "Threads of each gunicorn worker process, beside max_waiters more for requests that wait."
    )
    worker_concurrency: Annotated[int, Limit(ge=1)] = _setting(4, "Background tasks one labctl worker runs at once.")
    worker_stalled_after: Annotated[int, Limit(ge=5)] = _setting(
        30, "Seconds without a heartbeat after which a worker counts as dead and its tasks run again."
    )
    log_format: Literal["text", "json"] = _setting("text", "Log lines for people (text) or for machines (json).")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = _setting("INFO", "The least severe level that is logged.")
    anonymous: dict[str, Access] = _setting(
        ANONYMOUS, "What a request without a credential may do in each tree: write, read or none."
    )
    api_user: str = _setting(
        "", "Name that may post repos, builds and storage nodes with api_key by HTTP Basic, beside labctl's own users."
    )
    api_key: str = _setting("", "The password of api_user; empty: there is no such pair.")
    max_body: Annotated[int, Limit(ge=1024)] = _setting(2 * 1024 * 1024, "Largest request body that is read, in bytes.")
    max_count: Annotated[int, Limit(ge=1)] = _setting(10_000, "Largest page of a list that can be asked for.")
    max_wait: Annotated[float, Limit(ge=0)] = _setting(
        30, "Longest time a request may ask to wait for news, in seconds."
    )
    max_waiters: Annotated[int, Limit(ge=0)] = _setting(
        32, "Requests that may wait for news at once in one web process; more are told to come back (503)."
    )
    events_keep_days: Annotated[float, Limit(gt=0)] = _setting(30, "Days after which events are purged.")
    job_log_url: str = _setting(
        "http://qa-proxy.ceph.com/teuthology/{run_name}/{job_id}/teuthology.log",
        "Where a job's log can be read; {run_name} and {job_id} are filled in.",
    )
    job_dead_after: Annotated[float, Limit(ge=0)] = _setting(
        0, "Hours after which a running job that was not updated is marked dead; 0: never."
    )
    job_lease: Annotated[float, Limit(gt=0)] = _setting(
        120, "Seconds for which a claimed job waits for a heartbeat of its dispatcher before it is queued again."
    )

    health_check_retries: Annotated[int, Limit(ge=1)] = _setting(
        3, "Failed checks in a row after which a storage node is no longer given out."
    )
    health_check_timeout: Annotated[float, Limit(gt=0, le=60)] = _setting(
        5, "Longest time a storage node may take to say that it is healthy, in seconds."
    )
    health_check_verify: bool = _setting(
        True, "Whether the TLS certificates of storage nodes are verified, against the CAs this machine trusts."
    )

    def require_database(self) -> str:
        """Give the URL of the database: the setting, or what a running ``labctl up`` left in ``home``."""
        if self.database_url:
            return self.database_url
        left = Path(self.home) / "database.url"
        if left.is_file():
            return left.read_text().strip()
        raise SettingsError(f"database_url: not set, and no labctl up runs in {self.home}")

    @classmethod
    def all(cls) -> tuple[Field[Any], ...]:
        """List the settings in the order they are documented."""
        return fields(cls)


def load(environ: Mapping[str, str] | None = None, config: str | None = None) -> Settings:
    """Read the settings: the environment (``LABCTL_<NAME>``) wins over the config file, that over the defaults.

    ``config`` (default: ``LABCTL_CONFIG``) is a Python file that assigns lower-case names. A value in the environment
    is plain text for a string, JSON otherwise (a number or an object such as ``{"runs": "read"}``).
    Raises :class:`SettingsError` with every mistake at once.
    """
    environ = os.environ if environ is None else environ
    known = {f.name: f for f in Settings.all()}
    mistakes: list[str] = []
    values = _read_config(config or environ.get("LABCTL_CONFIG") or None)
    for name in sorted(values.keys() - known.keys()):
        mistakes.append(f"{name}: there is no such setting")
    values = {name: value for name, value in values.items() if name in known}
    for name in known:
        text = environ.get(f"LABCTL_{name.upper()}")
        if text:
            values[name] = _from_text(text) if known[name].default_factory is not _MISSING else text
    for name, trees in {"anonymous": values.get("anonymous")}.items():
        if isinstance(trees, dict):
            for tree in sorted(trees.keys() - ANONYMOUS.keys()):
                mistakes.append(f"{name}: there is no tree {tree!r}; there are: {', '.join(sorted(ANONYMOUS))}")
            values[name] = {**ANONYMOUS, **trees}
    try:
        settings = TypeAdapter(Settings).validate_python(values)
    except ValidationError as error:
        mistakes += [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()]
    if mistakes:
        raise SettingsError("\n".join(mistakes))
    return settings


_MISSING = Settings.__dataclass_fields__["home"].default_factory


def _read_config(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    if not Path(path).is_file():
        raise SettingsError(f"LABCTL_CONFIG: there is no file {path}")
    try:
        names = runpy.run_path(path)
    except Exception as error:
        raise SettingsError(f"{path}: {type(error).__name__}: {error}") from error
    return {
        name: value
        for name, value in names.items()
        if name.islower() and not name.startswith("_") and not isinstance(value, ModuleType)
    }


def _from_text(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
