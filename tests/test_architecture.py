"""The walls of the house (docs/architecture.rst), held by reading the source: who may import whom, and do what."""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "labctl"

#: The kit, which every domain stands on. ``http`` is in it as well, but only for those above the core.
KIT = {
    "asking",
    "clock",
    "db",
    "errors",
    "lease",
    "lifecycle",
    "logs",
    "migrations",
    "paging",
    "plugins",
    "processes",  # what the kernel does for whoever starts some
    "pools",  # settings and domains both need to know what a pool is
    "purging",
    "queue",
    "settings",
    "times",
}
#: What puts the house together; nobody below imports it.
OUTERMOST = {"root", "app", "wsgi", "worker", "models", "gunicorn_config", "dashboard", "cli", "up"}
DOMAINS = {"events", "machines", "maintenance", "nodes", "queues", "remote", "repos", "runs", "tokens", "vms"}

#: The rooms of a domain and their floors: a room imports from its own floor and from those below it.
FLOORS = {
    "__init__": 0,
    "states": 1,
    "models": 2,
    "service": 3,
    "queries": 3,
    "wire": 4,
    "controllers": 5,
    "tasks": 5,
}
#: Rooms that one domain has beyond the usual ones.
EXTRA_ROOMS = {
    "maintenance.workflow": 2,  # the contract of a plugin: plain values
    "maintenance.action": 2,  # another one
    "maintenance.workflows": 2,
    "maintenance.workflows.default": 2,
    "maintenance.workflows.fake": 2,
    "maintenance.workflows.asking": 2,  # what projects are asked
    "maintenance.workflows.hints": 2,  # what is read of the metadata
    "maintenance.actions": 2,
    "maintenance.actions.options": 2,  # what they have in common
    "maintenance.actions.check": 2,
    "maintenance.actions.command": 2,
    "maintenance.actions.dummy": 2,
    "maintenance.actions.reboot": 2,
    "maintenance.actions.role": 2,
    "maintenance.known": 3,  # which hosts there are, and who uses them
    "maintenance.view": 3,  # what a workflow sees of a session
    "maintenance.advancing": 3,  # what is done of what a workflow wants
    "maintenance.acting": 3,  # how actions go on
    "maintenance.editing": 3,  # changing and continuing sessions, beside beginning and deleting them
    "maintenance.notices": 3,  # what projects are told
    "maintenance.downloads": 3,  # what becomes of downloads
    "maintenance.fetching": 3,  # asking other hosts over HTTP; it knows no database
    "maintenance.plan": 3,  # what would happen
    "maintenance.config": 5,  # an edge: the plugins there are
    "maintenance.engine": 5,  # an edge like tasks: the loop that advances sessions
    "nodes.health": 3,  # asking nodes over the network; it knows no database
    "remote.executor": 1,  # the contract of a plugin: plain values
    "remote.task": 1,  # another one
    "remote.executors": 2,
    "remote.executors.fake": 2,
    "remote.executors.ansible": 2,  # in a worker: it starts the next one and talks to it
    "remote.executors.ansible_server": 2,  # a process of its own, which keeps Ansible at hand
    "remote.executors.ansible_job": 2,  # in its children: the only one that imports Ansible
    "remote.executors.ansible_modules": 2,
    "remote.executors.ansible_modules.labctl_execute": 2,  # runs on the lab's hosts
    "remote.task_plugins": 2,
    "remote.task_plugins.rolling_restart": 2,
    "remote.chunks": 2,  # pieces of output as they are stored: plain values
    "remote.carrying": 5,  # an edge: one job, from its beginning to its end
    "remote.patterns": 3,  # which hosts a pattern means: plain values
    "remote.running": 3,  # what the runner writes, beside what users do
    "remote.config": 5,  # an edge: what the settings mean to the runner
    "remote.follow": 5,  # an edge: who waits for output
    "remote.runner": 5,  # an edge like tasks: the loop that has jobs carried out
    "repos.distros": 3,  # which codename is which version is a subject of its own
    "repos.search": 3,  # so is the search, the longest of all reads
    "runs.documents": 3,  # the JSON of a job is stored, so its core knows it
    "runs.names": 3,  # reading the name of a run is a subject of its own
    "vms.provider": 1,  # the contract of a plugin: plain values
    "vms.names": 1,  # random names need nothing
    "vms.catalog": 3,  # which pools a name stands for: plain values, and arithmetic
    "vms.cordon": 3,  # hypervisors that are taken out of service
    "vms.checkout": 3,  # giving VMs out, beside what is done to those that are given
    "vms.on_demand": 3,  # requests for VMs that are yet to be made have a life of their own
    "vms.overrides": 3,  # so has what is changed of pools at run time
    "vms.figures": 4,  # the shapes of what pools do and did, beside those of VMs
    "vms.reports": 5,  # and the controllers that tell it
    "vms.upkeep": 3,  # what the engine does, beside what users do
    "vms.work": 3,  # what it does to running VMs
    "vms.listing": 3,  # what it makes of a provider's list
    "vms.planning": 3,  # how many VMs it makes
    "vms.standing": 3,  # which pools and providers it leaves alone
    "vms.readiness": 3,  # asking VMs over the network; it knows no database
    "vms.calls": 3,  # threads with deadlines; they know no database either
    "vms.config": 5,  # an edge: what the settings mean to the engine
    "vms.jobs": 5,  # an edge: the calls of providers
    "vms.engine": 5,  # an edge like tasks: the loop that asks providers
    "vms.providers": 2,
    "vms.providers.fake": 2,
    "vms.providers.libvirt": 2,
    "vms.providers.libvirt_domain": 2,  # the XML of domains
    "vms.providers.libvirt_hypervisor": 2,  # one connection
    "vms.providers.libvirt_migration": 2,  # from one connection to another
    "tokens.secrets": 3,  # hashing and random secrets need no database
    "tokens.failures": 3,  # counting wrong passwords is a subject of its own
    "tokens.ldap": 3,  # asking LDAP over the network; it knows no database
    "tokens.login": 5,  # an edge like tasks: short transactions around a slow check
}

#: Who may use which domain, and what of it: downwards only.
ARROWS = {
    "runs.service": {"machines.service"},  # a job's targets are machines
    "runs.queries": {"machines.models"},  # counts of jobs by machine
    "queues.service": {"runs.service", "runs.models", "runs.states", "runs.documents"},  # what waits in them are jobs
    "queues.wire": {"runs.wire"},  # the same names of runs and jobs
    "queues.controllers": {"runs.queries", "runs.documents", "runs.service"},
    # An edge, from above: the jobs of a machine are part of the protocol of machines.
    "machines.controllers": {"runs.queries", "runs.documents", "runs.states"},
    # Sessions use all that a lab has.
    "maintenance.known": {"machines.models", "remote.models", "vms.models", "vms.states"},
    "maintenance.advancing": {"machines.service", "vms.cordon", "vms.work"},
    "maintenance.controllers": {"vms.config"},  # what providers can do
    "maintenance.view": {"vms.cordon"},
    "maintenance.acting": {"remote.running", "remote.service", "remote.models", "remote.states"},
    "vms.controllers": {"tokens.service"},  # who asks, and whether they are an admin
}
#: Every domain may record events and read them back.
FOR_EVERY_DOMAIN = {"events.service"}

#: The libraries labctl uses, and where; what is not listed is used nowhere.
LIBRARIES = {
    "alembic": {"migrations"},
    "ansible": {"remote.executors.ansible_job", "remote.executors.ansible_modules.labctl_execute"},
    "argon2": {"tokens.secrets"},
    "click": {"cli.*"},
    "gunicorn": set(),
    "httpx": {"maintenance.fetching", "nodes.health"},
    "ldap3": {"tokens.ldap"},
    "libvirt": {"vms.providers.libvirt_hypervisor"},
    "orjson": {
        "http.*",
        "db",
        "logs",
        "settings",
        "queues.controllers",
        "remote.chunks",
        "remote.executors.fake",
        "repos.controllers",
        "repos.queries",
        "repos.wire",
        "runs.controllers",
        "runs.documents",
        "runs.queries",
        "vms.providers.fake",
    },
    "pecan": {"http.*", "root", "app", "*.controllers", "dashboard.*"},
    "procrastinate": {"queue", "worker"},
    "psycopg2": {"up.*"},
    # The input models of wire, body.parse that applies them, the types of settings.
    "pydantic": {
        "*.wire",
        "http.body",
        "maintenance.actions.*",
        "pools",
        "remote.executors.ansible",
        "remote.executors.fake",
        "remote.task_plugins.rolling_restart",
        "settings",
        "vms.config",
        "vms.providers.fake",
        "vms.providers.libvirt",
        "vms.providers.libvirt_domain",
    },
    "pydantic_core": {"*.wire"},
    # lease gives columns and conditions to the tables of domains, paging the end of statements that list.
    "sqlalchemy": {
        "db",
        "queue",
        "lease",
        "paging",
        "*.models",
        "*.service",
        "*.queries",
        "maintenance.known",
        "maintenance.view",
        "maintenance.advancing",
        "maintenance.acting",
        "maintenance.editing",
        "maintenance.notices",
        "maintenance.downloads",
        "maintenance.plan",
        "remote.running",
        "repos.search",
        "tokens.failures",
        "vms.checkout",
        "vms.cordon",
        "vms.on_demand",
        "vms.overrides",
        "vms.upkeep",
        "vms.work",
        "vms.listing",
        "vms.planning",
        "vms.standing",
        "vms.jobs",  # the type of a session
    },
    "tabulate": {"cli.*"},
    "webob": {"http.*", "root", "app", "*.controllers", "dashboard.*"},
    # From the standard library: whoever starts processes looks after them.
    "subprocess": {
        "remote.executors.ansible",
        "remote.executors.ansible_modules.labctl_execute",
        "up.*",
        "vms.readiness",  # ssh, which ends with its own deadline
    },
}

#: The names of products whose protocols labctl speaks.
PRODUCTS = re.compile("paddles|teuthology|pulpito|shaman|chacra|vmpooler|vmfloaty|exed|fenix", re.IGNORECASE)
#: Where code, not only prose, may hold such a name.
NAMES_PRODUCTS = {"root", "http.dialects"}
#: Words on the wire that happen to hold one.
PRODUCT_WORDS = {
    "cli.farm": {"chacra_url"},  # a key of a repo, as storage nodes send it
    "repos.models": {'"chacra_url"'},  # a key of a repo, in its stored document
    "repos.wire": {"chacra_url"},  # the same, coming in
    "runs.documents": {"teuthology_branch"},  # a key of a job
    "runs.wire": {"teuthology_branch"},  # the same, coming in
    "settings": {"/teuthology/", "teuthology.log"},  # the default of job_log_url
}

#: Verbs of its core that a wire module may call; otherwise it turns values into JSON and back, and knows no session.
WIRE_CALLS = {"queues.wire": {"is_paused"}}  # a pause that is over is shown as none

MAX_LINES = 500
#: Files that are longer, and why.
LONG_FILES: dict[str, str] = {}
MAX_FUNCTION = 60


@dataclass(frozen=True)
class Module:
    """One source file of the package; ``name`` leaves out ``labctl.``."""

    name: str
    path: Path
    source: str
    tree: ast.Module

    @property
    def place(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def domain(self) -> str | None:
        first = self.name.partition(".")[0]
        return first if first in DOMAINS else None

    @property
    def room(self) -> str:
        return self.name.partition(".")[2] or "__init__"

    @property
    def floor(self) -> int:
        return EXTRA_ROOMS[self.name] if self.name in EXTRA_ROOMS else FLOORS[self.room]


@cache
def modules() -> tuple[Module, ...]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        source = path.read_text()
        found.append(Module(name.removesuffix(".__init__"), path, source, ast.parse(source, str(path))))
    return tuple(found)


@dataclass(frozen=True)
class Import:
    """``module`` imports ``target`` (without ``labctl.``) and from it ``what``; None: the module itself."""

    module: Module
    line: int
    target: str
    what: str | None = None

    def __str__(self) -> str:
        what = f" ({self.what})" if self.what else ""
        return f"{self.module.place}:{self.line} imports {self.target}{what}"


def all_imports(module: Module) -> Iterator[tuple[int, str, str | None]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.place}:{node.lineno} imports relatively"
            for alias in node.names:
                yield node.lineno, node.module or "", alias.name


@cache
def inner_imports() -> tuple[Import, ...]:
    """What labctl imports of itself."""
    names = {module.name for module in modules()}
    found = []
    for module in modules():
        for line, target, what in all_imports(module):
            if target.partition(".")[0] != "labctl":
                continue
            inner = target.removeprefix("labctl").removeprefix(".")
            below = f"{inner}.{what}" if inner else what
            if below in names:
                found.append(Import(module, line, str(below)))
            else:
                found.append(Import(module, line, inner or "__init__", what))
    return tuple(found)


def domain_of(name: str) -> str | None:
    first = name.partition(".")[0]
    return first if first in DOMAINS else None


def matches(name: str, patterns: set[str]) -> bool:
    for pattern in patterns:
        if pattern.startswith("*."):
            if domain_of(name) and name.endswith(pattern[1:]):
                return True
        elif pattern.endswith(".*"):
            if name == pattern[:-2] or name.startswith(pattern[:-1]):
                return True
        elif name == pattern:
            return True
    return False


def broken(lines: list[str]) -> str:
    return "\n  ".join(["walls are broken:", *lines])


def test_every_module_has_its_place_in_the_plan() -> None:
    strange = []
    for module in modules():
        first = module.name.partition(".")[0]
        known = first in KIT | OUTERMOST | {"__init__", "http"}
        if module.domain:
            known = module.room in FLOORS or module.name in EXTRA_ROOMS
        if not known:
            strange.append(module.place)
    assert not strange, f"not in the plan (KIT, OUTERMOST, DOMAINS, FLOORS, EXTRA_ROOMS): {strange}"


def test_a_domains_init_holds_a_docstring_and_no_code() -> None:
    for module in modules():
        if module.domain and module.room == "__init__":
            assert len(module.tree.body) == 1, f"{module.place} holds code"
            assert ast.get_docstring(module.tree), f"{module.place} says nothing"


def test_libraries_are_used_only_where_they_belong() -> None:
    wrong = []
    for module in modules():
        for line, target, _ in all_imports(module):
            library = target.partition(".")[0]
            if library == "labctl" or (library in sys.stdlib_module_names and library not in LIBRARIES):
                continue
            if not matches(module.name, LIBRARIES.get(library, set())):
                wrong.append(f"{module.place}:{line} imports {target}")
    assert not wrong, broken(wrong)


def test_the_kit_knows_no_domain_and_nothing_knows_what_is_outermost() -> None:
    wrong = []
    for found in inner_imports():
        outside = found.module.name.partition(".")[0] in OUTERMOST
        in_kit = found.module.domain is None and not outside
        if in_kit and domain_of(found.target):
            wrong.append(str(found))
        if found.target.partition(".")[0] in OUTERMOST and not outside:
            wrong.append(str(found))
        if in_kit and found.module.name.partition(".")[0] != "http" and found.target.partition(".")[0] == "http":
            wrong.append(str(found))
    assert not wrong, broken(wrong)


def test_inside_a_domain_imports_go_downward() -> None:
    wrong = []
    floors = {module.name: module.floor for module in modules() if module.domain}
    for found in inner_imports():
        domain = found.module.domain
        if domain and domain_of(found.target) == domain and floors[found.target] > found.module.floor:
            wrong.append(str(found))
    assert not wrong, broken(wrong)


def test_a_domain_uses_another_along_the_listed_arrows_only() -> None:
    wrong = []
    used = set()
    for found in inner_imports():
        domain, other = found.module.domain, domain_of(found.target)
        if domain is None or other is None or domain == other:
            continue
        if found.target in ARROWS.get(found.module.name, set()):
            used.add((found.module.name, found.target))
        elif found.target not in FOR_EVERY_DOMAIN:
            wrong.append(str(found))
    assert not wrong, broken(wrong)
    unused = {(name, target) for name, targets in ARROWS.items() for target in targets} - used
    assert not unused, f"listed, but nobody goes there: {unused}"


def test_the_core_knows_neither_http_nor_settings() -> None:
    wrong = [
        str(found)
        for found in inner_imports()
        if found.module.domain
        and found.module.floor <= FLOORS["wire"]
        and found.target.partition(".")[0] in {"http", "settings"}
    ]
    assert not wrong, broken(wrong)


def test_tasks_and_commands_know_no_http() -> None:
    wrong = [
        str(found)
        for found in inner_imports()
        if (found.module.room == "tasks" or found.module.name.partition(".")[0] in {"cli", "up", "worker"})
        and found.target.partition(".")[0] == "http"
    ]
    assert not wrong, broken(wrong)


def test_tables_states_and_shapes_know_no_clock() -> None:
    wrong = []
    for found in inner_imports():
        if not found.module.domain:
            continue
        if found.module.room in {"models", "states", "wire"} and found.target == "clock":
            wrong.append(str(found))
        if found.module.room == "states" and found.target != "lifecycle":
            wrong.append(str(found))
    assert not wrong, broken(wrong)


def test_wire_takes_types_and_constants_from_its_core_and_no_verbs() -> None:
    wrong = []
    verbs = {module.name for module in modules() if module.domain and module.room in {"service", "queries", "queues"}}
    for found in inner_imports():
        if found.module.room != "wire" or not found.module.domain:
            continue
        verb = (found.what or "a module").islower() and found.what not in WIRE_CALLS.get(found.module.name, ())
        if found.target in {"db", "queue"} or (found.target in verbs and verb):
            wrong.append(str(found))
    assert not wrong, broken(wrong)


def calls(module: Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
            if name:
                yield node.lineno, name


def test_only_db_begins_commits_and_rolls_back() -> None:
    # A savepoint (begin_nested) ends nobody's transaction; services and the queue may use one.
    # What executors begin are operations on hosts, what sessions begin are actions and downloads.
    others = {"maintenance.advancing", "remote.carrying", "remote.executors.ansible"}
    wrong = [
        f"{module.place}:{line} calls {name}"
        for module in modules()
        for line, name in calls(module)
        if name in {"commit", "rollback", "begin"} - ({"begin"} if module.name in others else set())
        and module.name != "db"
    ]
    assert not wrong, broken(wrong)


def test_sessions_are_opened_by_edges_and_outermost_only() -> None:
    wrong = []
    for module in modules():
        inside = module.domain and module.floor < FLOORS["controllers"]
        for line, name in calls(module):
            if inside and name in {"transaction", "reading"}:
                wrong.append(f"{module.place}:{line} calls {name}")
    assert not wrong, broken(wrong)


def test_nobody_reads_pecans_configuration_and_nobody_aborts() -> None:
    wrong = []
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and node.attr == "conf" and getattr(node.value, "id", None) == "pecan":
                wrong.append(f"{module.place}:{node.lineno} reads pecan.conf")
        for line, target, what in all_imports(module):
            if target.partition(".")[0] == "pecan" and (what == "conf" or target == "pecan.configuration"):
                wrong.append(f"{module.place}:{line} imports pecan.conf")
        wrong += [f"{module.place}:{line} calls abort" for line, name in calls(module) if name == "abort"]
    assert not wrong, broken(wrong)


def test_settings_are_loaded_by_the_outermost_only() -> None:
    wrong = []
    for found in inner_imports():
        if found.target == "settings" and found.what == "load":
            outside = found.module.name.partition(".")[0] in OUTERMOST
            wrong += [] if outside else [str(found)]
    assert not wrong, broken(wrong)


def test_only_a_lifecycle_assigns_a_state() -> None:
    wrong = []
    for module in modules():
        for node in ast.walk(module.tree):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                if isinstance(target, ast.Attribute) and target.attr == "state" and module.name != "lifecycle":
                    wrong.append(f"{module.place}:{target.lineno} assigns .state")
    assert not wrong, broken(wrong)


def docstring_places(tree: ast.Module) -> set[int]:
    """Give the lines on which docstrings begin."""
    places = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                places.add(first.lineno)
    return places


def test_products_are_named_in_prose_only() -> None:
    wrong = []
    for module in modules():
        if module.name in NAMES_PRODUCTS:
            continue
        prose = docstring_places(module.tree)
        for token in tokenize.generate_tokens(io.StringIO(module.source).readline):
            if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.start[0] in prose):
                continue
            text = token.string
            for word in PRODUCT_WORDS.get(module.name, set()):
                text = text.replace(word, "")
            if token.type in {tokenize.NAME, tokenize.STRING} and (named := PRODUCTS.search(text)):
                wrong.append(f"{module.place}:{token.start[0]} says {named[0]}")
    assert not wrong, broken(wrong)


def test_no_file_is_too_long() -> None:
    long = {m.place: len(m.source.splitlines()) for m in modules() if len(m.source.splitlines()) > MAX_LINES}
    assert long.keys() == LONG_FILES.keys(), f"files of more than {MAX_LINES} lines, or listed and short: {long}"


def test_no_function_is_too_long() -> None:
    wrong = []
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    wrong.append(f"{module.place}:{node.lineno} {node.name} has {lines} lines")
    assert not wrong, broken(wrong)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import labctl.db", [("labctl.db", None)]),
        ("from labctl import clock, db", [("labctl", "clock"), ("labctl", "db")]),
        ("def f():\n    from labctl.http import body", [("labctl.http", "body")]),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, expected: list[tuple[str, str | None]]) -> None:
    module = Module("x", ROOT / "x.py", source, ast.parse(source))

    assert [(target, what) for _, target, what in all_imports(module)] == expected
