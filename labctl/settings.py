"""Every setting: its name, type, default and one line of help; read from the environment and a config file."""

import os
import re
import runpy
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field as Limit
from pydantic import TypeAdapter, ValidationError

from labctl.pools import Pool

Access = Literal["write", "read", "none"]
#: What a request without a credential may do, tree by tree: the protocols' clients of runs, machines and queue
#: have no way to log in, so these are open by default; everything else is read at the most.
ANONYMOUS: dict[str, Access] = {
    "runs": "write",
    "machines": "write",
    "queue": "write",
    "repos": "read",
    "nodes": "read",
    "vms": "write",
    "remote": "none",
    "maintenance": "none",
    "events": "none",
}
#: What no configuration opens: whoever may do this is root on the lab's hosts.
ALWAYS_CLOSED = ("remote", "maintenance")
#: What labctl up makes VMs of before somebody says otherwise: nothing real. They are said to be on two of the hosts in
#: the inventory that labctl up begins with.
POOLS = [Pool(name="debian-12-x86_64", alias=["debian"], size=3), Pool(name="centos-9-x86_64", size=2)]
PROVIDERS: dict[str, dict[str, Any]] = {"fake": {"plugin": "fake", "hosts": ["lab01", "lab02"]}}
EXECUTOR: dict[str, Any] = {"plugin": "ansible"}
#: Seconds an operation on hosts may take.
REMOTE_TIMEOUTS: dict[str, float] = {
    "ping": 60,
    "facter": 120,
    "service": 300,
    "execute": 3600,
    "deploy": 7200,
    "task": 14400,
}
#: Seconds that projects have to answer, by the state of the session.
MAINTENANCE_REPLIES: dict[str, float] = {
    "MAINTENANCE": 20,
    "SCALE_IN": 60,
    "PREPARE_MAINTENANCE": 60,
    "PLANNED_MAINTENANCE": 60,
    "MAINTENANCE_COMPLETE": 60,
}


#: How many operations on hosts that one worker carries out may write to the database at the same time.
MOST_WRITERS = 4
#: How many pings and facters one worker carries out beside ``remote_jobs`` operations of any kind.
SHORT_JOBS = 2


class SettingsError(Exception):
    """The configuration is not valid; the message has one line per mistake."""


def _setting(default: Any, help: str, *, secret: bool = False) -> Any:
    factory = {"default_factory": default.copy} if isinstance(default, dict | list) else {"default": default}
    return field(**factory, repr=not secret, metadata={"help": help})


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
        16, "Threads of each gunicorn worker process; max_waiters and remote_max_followers come on top."
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

    ldap_urls: list[str] = _setting(
        [], "LDAP servers that know the passwords of users, ldap:// or ldaps://, asked in this order; empty: none."
    )
    ldap_start_tls: bool = _setting(
        True, "Whether ldap:// turns to TLS before anything is sent; without, passwords are sent as they are."
    )
    ldap_ca_file: str = _setting(
        "", "CA certificates that the LDAP servers' are verified against; empty: those this machine trusts."
    )
    ldap_timeout: Annotated[int, Limit(ge=1, le=60)] = _setting(
        5, "Longest time an LDAP server may take for a login, in seconds."
    )
    ldap_base: str = _setting("", "DN below which users are searched for; needed unless ldap_user_dn is set.")
    ldap_attribute: str = _setting(
        "uid", "The attribute that holds a user's name (sAMAccountName in Active Directory)."
    )
    ldap_filter: str = _setting(
        "", "What else must hold of a user: an LDAP filter such as (memberOf=cn=lab,ou=groups,dc=example,dc=org)."
    )
    ldap_bind_dn: str = _setting("", "DN of the account that searches for users; empty: the search is anonymous.")
    ldap_bind_password: str = _setting("", "The password of ldap_bind_dn.", secret=True)
    ldap_user_dn: str = _setting(
        "", "DN of every user, with {user} for the name; then nothing is searched for, and only the user logs in."
    )
    ldap_rights: list[str] = _setting([], "Trees that every user whose password is in LDAP has the right to.")
    ldap_admins: list[str] = _setting([], "Names of the users whose passwords are in LDAP and who are admins.")
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

    pools: list[Pool] = _setting(POOLS, "The pools of VMs, each with the fields of labctl.pools.Pool.")
    providers: dict[str, dict[str, Any]] = _setting(
        PROVIDERS, "What makes VMs, by name: plugin says which, limit how many calls at once; the rest is the plugin's."
    )
    vm_domain: str = _setting("", "Domain of the VMs of pools that name none.")
    vm_prefix: Annotated[str, Limit(pattern=r"^([a-z0-9][a-z0-9-]*)?$", max_length=40)] = _setting(
        "", "What the names of VMs begin with: small letters, digits and hyphens."
    )
    vm_lifetime: Annotated[int, Limit(ge=1)] = _setting(12, "Hours for which a VM is given out without a credential.")
    vm_lifetime_auth: Annotated[int, Limit(ge=0)] = _setting(
        0, "Hours for which a VM is given out to a user; 0: as to anybody."
    )
    vm_lifetime_limit: Annotated[int, Limit(ge=0)] = _setting(
        0, "Hours that no lifetime may be set to or beyond; 0: there is no limit."
    )
    vm_warning: Annotated[float, Limit(ge=0)] = _setting(
        1, "Hours before the end of a VM's lifetime at which an event warns of it; 0: no warning."
    )
    vm_timeout: Annotated[float, Limit(gt=0)] = _setting(
        15, "Minutes a VM may take to become ready, unless its pool says."
    )
    vm_check_interval: Annotated[float, Limit(gt=0)] = _setting(
        15, "Minutes between looks at a ready VM, whether it still is."
    )
    vm_data_days: Annotated[float, Limit(gt=0)] = _setting(7, "Days for which a destroyed VM is still known.")
    vm_tags: list[str] = _setting([], "Tags that a VM may have; empty: any.")
    vm_tag_filters: dict[str, str] = _setting(
        {}, "Regular expressions by tag; what their groups capture of a value is joined and kept instead of it."
    )
    vm_most_on_demand: Annotated[int, Limit(ge=1)] = _setting(10, "VMs one on-demand request may ask for.")
    vm_on_demand_minutes: Annotated[float, Limit(gt=0)] = _setting(
        15, "Minutes after which an on-demand request whose VMs are not all there has failed."
    )
    vm_config_api: bool = _setting(False, "Whether sizes and templates of pools may be changed by the API.")

    executor: dict[str, Any] = _setting(
        EXECUTOR, "What carries out operations on hosts: plugin says which; the rest is the plugin's."
    )
    remote_plugins: str = _setting(
        "", "Directory of files with task and executor plugins of the lab's own; empty: there are none."
    )
    remote_jobs: Annotated[int, Limit(ge=1, le=100)] = _setting(
        8,
        "Operations on hosts one labctl worker carries out at once, beside two pings or facters; more wait their turn.",
    )
    remote_timeouts: dict[str, Annotated[float, Limit(gt=0)]] = _setting(
        REMOTE_TIMEOUTS, "Seconds each kind of operation may take, unless a request asks for less."
    )
    remote_begin_within: Annotated[float, Limit(gt=0)] = _setting(
        600, "Seconds an operation waits for a worker to begin it before it is given up."
    )
    remote_wait: Annotated[float, Limit(gt=0)] = _setting(
        60, "Longest time a GET waits for the end of its operation, in seconds; past it, it answers where to ask."
    )
    remote_max_output: Annotated[int, Limit(ge=1024)] = _setting(
        1024 * 1024, "Bytes that are kept of one piece of output; what is longer is cut in the middle."
    )
    remote_max_followers: Annotated[int, Limit(ge=0)] = _setting(
        64, "Requests that may follow operations or wait for their end at once in one web process; more get a 503."
    )
    remote_keep_days: Annotated[float, Limit(gt=0)] = _setting(
        30, "Days after its end for which an operation and its output are kept."
    )

    maintenance_sessions: Annotated[int, Limit(ge=1)] = _setting(
        3, "Maintenance sessions that may go on at once; more are refused."
    )
    maintenance_replies: dict[str, Annotated[float, Limit(gt=0)]] = _setting(
        MAINTENANCE_REPLIES, "Seconds that projects have to answer what a session asks them, by its state."
    )
    maintenance_download_limit: Annotated[int, Limit(ge=1)] = _setting(
        1024**3, "Largest file that a session downloads, in bytes."
    )
    maintenance_private_urls: bool = _setting(
        False, "Whether sessions may download from, and projects be told at, addresses that are not public."
    )
    maintenance_keep_days: Annotated[float, Limit(gt=0)] = _setting(
        90, "Days after its end for which a maintenance session is kept that nobody deletes."
    )

    def require_database(self) -> str:
        """Give the URL of the database: the setting, or what a running ``labctl up`` left in ``home``."""
        if self.database_url:
            return self.database_url
        left = Path(self.home) / "database.url"
        if left.is_file():
            return left.read_text().strip()
        raise SettingsError(f"database_url: not set, and no labctl up runs in {self.home}")

    def worker_connections(self) -> int:
        """Say how many connections one worker may hold for changes, and as many for reads.

        Beside those of tasks: one for what comes round in the queue's own, one for each engine, two for the runner, and
        some for its jobs, which write for some milliseconds now and then.
        """
        return self.worker_concurrency + 5 + min(self.remote_jobs + SHORT_JOBS, MOST_WRITERS)

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
            mistakes += [
                f"{name}: {tree} always needs a credential"
                for tree in ALWAYS_CLOSED
                if trees.get(tree, "none") != "none"
            ]
            values[name] = {**ANONYMOUS, **trees}
    for name, defaults in {
        "remote_timeouts": REMOTE_TIMEOUTS,
        "maintenance_replies": MAINTENANCE_REPLIES,
    }.items():
        given = values.get(name)
        if isinstance(given, dict):
            for key in sorted(given.keys() - defaults.keys()):
                mistakes.append(f"{name}: there is no {key!r}; there are: {', '.join(sorted(defaults))}")
            values[name] = {**defaults, **given}
    try:
        settings = TypeAdapter(Settings).validate_python(values)
    except ValidationError as error:
        mistakes += [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()]
    else:
        mistakes += _ldap_mistakes(settings)
    if mistakes:
        raise SettingsError("\n".join(mistakes))
    return settings


def _ldap_mistakes(settings: Settings) -> list[str]:
    """Say what would keep every user whose password is in LDAP from logging in."""
    wrong = [
        f"ldap_urls: number {number} must be ldap://host or ldaps://host, with or without a port"
        for number, url in enumerate(settings.ldap_urls, 1)
        if not (found := _LDAP.fullmatch(url)) or not 0 < int(found["port"] or 389) < 65536
    ]
    wrong += [
        f"ldap_rights: there is no tree {tree!r}; there are: {', '.join(sorted(ANONYMOUS))}"
        for tree in settings.ldap_rights
        if tree not in ANONYMOUS
    ]
    if settings.ldap_urls and bool(settings.ldap_base) == bool(settings.ldap_user_dn):
        wrong.append("ldap_base: set either this or ldap_user_dn")
    if settings.ldap_user_dn and "{user}" not in settings.ldap_user_dn:
        wrong.append("ldap_user_dn: {user} must stand where the name belongs")
    if settings.ldap_user_dn and (settings.ldap_filter or settings.ldap_bind_dn):
        wrong.append("ldap_user_dn: nothing is searched for, so ldap_filter and ldap_bind_dn must be empty")
    if settings.ldap_filter and not re.fullmatch(r"\(.+\)", settings.ldap_filter):
        wrong.append("ldap_filter: must stand in parentheses")
    if not re.fullmatch("[A-Za-z][A-Za-z0-9-]*", settings.ldap_attribute):
        wrong.append("ldap_attribute: must be the name of an attribute")
    if settings.ldap_bind_dn and not settings.ldap_bind_password:
        wrong.append("ldap_bind_password: an account without a password is nobody's")
    if settings.ldap_ca_file and not Path(settings.ldap_ca_file).is_file():
        wrong.append(f"ldap_ca_file: there is no file {settings.ldap_ca_file}")
    return wrong


_LDAP = re.compile(r"ldaps?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?/?")
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
