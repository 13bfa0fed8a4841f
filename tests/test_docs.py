"""The documentation is complete and true: settings, routes, rights and plugin groups, parsed out of it and compared."""

import ast
import json
import re
from importlib.metadata import distribution
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from pydantic import TypeAdapter
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl import app as application
from labctl import clock
from labctl import settings as configuration
from labctl.pools import Check, Pool
from labctl.remote.executors import ansible
from labctl.remote.executors import fake as fake_executor
from labctl.remote.models import RemoteHost, RemoteInventory
from labctl.remote.task_plugins import rolling_restart
from labctl.runs import queries
from labctl.settings import ANONYMOUS, Access, Settings
from labctl.tokens import service as tokens
from labctl.vms.config import Handling
from labctl.vms.providers import fake
from labctl.vms.states import VMState

from .routes import routes
from .vms.factories import make_vm

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
CONFIG = ROOT / "config.py.in"

NAMES = [setting.name for setting in Settings.all()]


def words(text: str) -> str:
    return " ".join(text.split())


def table(page: str, *heading: str) -> list[list[str]]:
    """Parse the simple table of a page that has this heading: its rows, cell by cell, without marks of literals.

    A row whose first cell is empty goes on with the one above.
    """
    lines = (DOCS / page).read_text().splitlines()
    for number, line in enumerate(lines):
        borders = [match.span() for match in re.finditer("=+", line)] if set(line.strip()) == {"=", " "} else []
        if not borders or _cells(lines[number + 1], borders) != list(heading):
            continue
        assert lines[number + 2] == line, f"{page}: the heading {heading} is not underlined"
        end = lines.index(line, number + 3)
        rows: list[list[str]] = []
        for cells in (_cells(row, borders) for row in lines[number + 3 : end]):
            if cells[0] or not rows:
                rows.append(cells)
            else:
                rows[-1] = [" ".join(filter(None, both)) for both in zip(rows[-1], cells, strict=True)]
        return rows
    raise AssertionError(f"{page} has no table with the heading {heading}")


def _cells(row: str, borders: list[tuple[int, int]]) -> list[str]:
    starts = [start for start, _ in borders] + [None]
    return [row[start:end].strip().replace("``", "") for start, end in pairwise(starts)]


# Settings


def documented() -> dict[str, dict[str, str]]:
    """Read docs/settings.rst: for each setting its help and its fields."""
    blocks = re.split(r"^``(\w+)``$", (DOCS / "settings.rst").read_text(), flags=re.MULTILINE)[1:]
    found: dict[str, dict[str, str]] = {}
    for name, text in zip(blocks[::2], blocks[1::2], strict=True):
        help, _, rest = text.partition("    :type:")
        fields = dict(re.findall(r"^    :(\w+): (.+(?:\n     .+)*)$", f"    :type:{rest}", re.MULTILINE))
        found[name] = {"help": words(help), **{key: words(value) for key, value in fields.items()}}
    return found


#: Types that have words of their own.
WORDS: dict[Any, str] = {
    dict[str, Access]: "from a tree to ``write``, ``read`` or ``none``",
    list[Pool]: "list of objects, see `Pools of VMs`_",
    dict[str, dict[str, Any]]: "from a name to an object, see `Providers of VMs`_",
    dict[str, str]: "from text to text",
    dict[str, Any]: "object",
    dict[str, list[str]]: "from a name to a list of text",
    list[str]: "list of text",
    Check: "object",
}


def described(hint: Any) -> str:
    """Say in words what values a setting, or a field of one, may have."""
    if None is not (known := WORDS.get(without_limits(hint))):
        return known
    if get_origin(hint) is dict:
        return f"from a name to a {described(get_args(hint)[1])}"
    if get_origin(hint) is Union and NoneType not in get_args(hint):
        return " or ".join(described(each) for each in get_args(hint))
    if get_origin(hint) is tuple:
        return ", ".join(described(each) for each in get_args(hint))
    if NoneType in get_args(hint):
        (hint,) = set(get_args(hint)) - {NoneType}
        return described(hint)
    least = most = above = None
    if get_origin(hint) is Annotated:
        hint, *limits = get_args(hint)
        for limit in (each for limits_ in limits for each in getattr(limits_, "metadata", ())):
            least = getattr(limit, "ge", least)
            most = getattr(limit, "le", most)
            above = getattr(limit, "gt", above)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(f'``{value}``' for value in get_args(hint))}"
    name = {str: "text", bool: "``True`` or ``False``", int: "whole number", float: "number"}[hint]
    if above is not None:
        return f"{name}, more than {above}" + (f", {most} at most" if most is not None else "")
    if most is not None:
        return f"{name}, {least} to {most}"
    return name if least is None else f"{name}, {least} or more"


def without_limits(hint: Any) -> Any:
    """Give the type of which a list or an object is, whatever the limits of its parts."""
    if get_origin(hint) is Annotated and get_origin(get_args(hint)[0]) is list:
        return without_limits(get_args(hint)[0])
    if get_origin(hint) is list and get_origin(get_args(hint)[0]) is Annotated:
        return list[get_args(get_args(hint)[0])[0]]  # type: ignore[misc]
    if get_origin(hint) is dict and get_origin(get_args(hint)[1]) is Annotated:
        return None
    return hint if get_origin(hint) in (None, list, dict) else None


def as_set(name: str, value: Any) -> Any:
    """Give what a setting is that has been given so; what is no object stays as it is."""
    return [Pool(**pool) for pool in value] if name == "pools" else value


def test_docs_settings_lists_every_setting_in_order() -> None:
    assert list(documented()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_docs_settings_tells_help_type_default_and_environment(name: str) -> None:
    setting = next(each for each in Settings.all() if each.name == name)
    found = documented()[name]

    assert found["help"] == setting.metadata["help"]
    assert found["type"] == described(get_type_hints(Settings, include_extras=True)[name])
    assert as_set(name, ast.literal_eval(found["default"].strip("`"))) == getattr(Settings(), name)
    assert found["environment"] == f"``LABCTL_{name.upper()}``"


#: A setting that is commented out: its help, its name, and its value, which may take several lines.
COMMENTED_OUT = re.compile(r"((?:^# .+\n)+)^#(\w+) = (.+(?:\n#.+)*)", re.MULTILINE)


def uncommented(text: str) -> str:
    return re.sub("^#", "", text, flags=re.MULTILINE)


def in_config() -> dict[str, tuple[str, Any]]:
    """Read config.py.in: for each commented-out setting its help and its value."""
    return {
        name: (words(uncommented(help)), as_set(name, ast.literal_eval(uncommented(value))))
        for help, name, value in COMMENTED_OUT.findall(CONFIG.read_text())
    }


def test_config_py_in_has_every_setting_with_its_help_at_its_default() -> None:
    expected = {each.name: (each.metadata["help"], getattr(Settings(), each.name)) for each in Settings.all()}

    assert in_config() == expected
    assert list(in_config()) == NAMES


def test_config_py_in_as_it_is_and_uncommented_loads_to_the_defaults(tmp_path: Path) -> None:
    copy = tmp_path / "config.py"
    copy.write_text(COMMENTED_OUT.sub(lambda found: f"{found[2]} = {uncommented(found[3])}", CONFIG.read_text()))

    assert re.findall(r"^(\w+) = ", copy.read_text(), re.MULTILINE) == NAMES
    assert configuration.load({}, str(CONFIG)) == Settings()
    assert configuration.load({}, str(copy)) == Settings()


#: The objects that settings are made of: the page and the heading of their table, and the dataclass.
OBJECTS: dict[str, tuple[str, str, Any]] = {
    "pool": ("settings.rst", "field of a pool", Pool),
    "check": ("settings.rst", "field of a check", Check),
    "provider": ("settings.rst", "field of a provider", Handling),
    "fake": ("plugins.rst", "option", fake.Options),
    "fake executor": ("plugins.rst", "option of fake", fake_executor.Options),
    "ansible": ("remote.rst", "option of ansible", ansible.Options),
    "rolling_restart": ("plugins.rst", "option of rolling_restart", rolling_restart.Options),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_the_docs_list_every_field_of_an_object_with_its_type_and_default(kind: str) -> None:
    page, heading, cls = OBJECTS[kind]
    hints = get_type_hints(cls, include_extras=True)

    rows = table(page, heading, "type", "default", "what it is")
    assert [row[0] for row in rows] == list(hints)
    for name, type_, default, what in rows:
        field = cls.__pydantic_fields__[name]
        assert type_ == described(hints[name]).replace("``", ""), name
        assert what, name
        if field.is_required():
            assert default == "\u2013", name
        else:
            given = TypeAdapter(hints[name]).validate_python(ast.literal_eval(default))
            assert given == field.get_default(call_default_factory=True), name


# Routes

#: Where the same routes are as directly below /api, for each version of a protocol.
VERSIONS = ("/api/v1", "/api/v2", "/api/v3")


def test_the_versions_of_a_protocol_have_the_same_routes(settings: Settings) -> None:
    found = {(route.path, route.methods, route.tree, route.dialect) for route in routes(settings)}
    below = [{(path[7:], *rest) for path, *rest in found if path.startswith(f"{each}/")} for each in VERSIONS]

    assert below[0]
    assert all(each == below[0] for each in below)
    assert {(f"/api{path}", *rest) for path, *rest in below[0]} <= found


def test_docs_protocols_lists_every_route_with_its_methods_tree_and_dialect(settings: Settings) -> None:
    expected = [
        [route.path, ", ".join(route.methods), route.tree or "\u2013", route.dialect]
        for route in routes(settings)
        if not route.path.startswith(tuple(f"{version}/" for version in VERSIONS))
    ]
    rows = table("protocols.rst", "path", "methods", "tree", "dialect")

    assert sorted(rows) == sorted(expected)


def test_docs_protocols_lists_the_columns_that_runs_are_chosen_by() -> None:
    line = re.search(
        r"^``\{column\}`` is one of (.+?)\.", (DOCS / "protocols.rst").read_text(), re.MULTILINE | re.DOTALL
    )

    assert line is not None
    assert re.findall("``(.+?)``", line[1]) == list(queries.FILTERS)


# Rights


def test_docs_access_tells_what_each_tree_is_open_to() -> None:
    assert dict(table("access.rst", "tree", "open to everybody for")) == ANONYMOUS


WHO = ("anonymous", "another right", "the right", "admin", "scoped admin")
TREES = list(ANONYMOUS)

READS = {
    "runs": "/runs/",
    "machines": "/nodes/",
    "queue": "/queue/",
    "repos": "/api/repos/",
    "nodes": "/api/nodes/",
    "vms": "/api/vm/",
    "remote": "/jobs",
    "maintenance": "/v1/maintenance",
    "events": "/api/events",
}
REPO = {
    "chacra_url": "https://chacra.example.com/repos/access/",
    "ref": "main",
    "sha1": "a" * 40,
    "distro": "ubuntu",
    "distro_version": "jammy",
    "status": "ready",
}
MAINTENANCE = {
    "hosts": ["localhost"],
    "state": "MAINTENANCE",
    "maintenance_at": "2018-02-28 06:06:03",
    "workflow": "default",
    "metadata": {},
}
WRITES = {
    "runs": ("/runs/", {"name": "access"}),
    "machines": ("/nodes/", {"name": "access"}),
    "queue": ("/queue/", {"queue": "access"}),
    "repos": ("/api/repos/access/", REPO),
    # The node is asked at once how it is: nothing listens there.
    "nodes": ("/api/nodes/127.0.0.1:1/", {}),
    # None at all can be had while there are none.
    "vms": ("/api/vm/", {"debian": 0}),
    "remote": ("/ping", {"targets": ["localhost"]}),
    "maintenance": ("/v1/maintenance", MAINTENANCE),
    "events": ("/api/events", {}),
}


def test_there_is_a_request_for_each_tree() -> None:
    assert list(READS) == list(WRITES) == TREES


@pytest.fixture
def inventory(session: Session) -> None:
    """One host to work on, as a worker has found it."""
    session.add_all([RemoteHost(name="localhost"), RemoteInventory(id=1, read=clock.now())])
    session.flush()


def headers(session: Session, who: str, tree: str) -> dict[str, str]:
    """Make a user or a token, and give what proves it."""
    other = next(each for each in ANONYMOUS if each != tree)
    if who == "anonymous":
        return {}
    rights = {"another right": [other], "the right": [tree]}.get(who, [])
    tokens.add_user(session, who, admin=who.endswith("admin"), rights=rights)
    secret = tokens.create_token(session, who, scopes=[other] if who == "scoped admin" else None)
    return {"Authorization": f"Bearer {secret}"}


def outcome(app: TestApp, tree: str, asks: str, credential: dict[str, str]) -> str:
    if asks == "read":
        answer = app.get(READS[tree], headers=credential, expect_errors=True)
    else:
        path, data = WRITES[tree]
        answer = app.post_json(path, data, headers=credential, expect_errors=True)
    if answer.status_int == 401:
        assert answer.headers["WWW-Authenticate"].startswith("Basic")
    assert answer.status_int in {200, 201, 401, 403, 405}, answer.text
    return "yes" if answer.status_int in {200, 201} else str(answer.status_int)


def test_docs_access_has_a_row_for_every_tree_reading_and_writing() -> None:
    rows = table("access.rst", "tree", "asks to", *WHO)

    assert [(tree, asks) for tree, asks, *_ in rows] == [(tree, asks) for tree in TREES for asks in ("read", "write")]


def said(tree: str, asks: str) -> dict[str, str]:
    rows = table("access.rst", "tree", "asks to", *WHO)
    return next(dict(zip(WHO, row[2:], strict=True)) for row in rows if row[:2] == [tree, asks])


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("asks", ["read", "write"])
@pytest.mark.parametrize("who", WHO)
@pytest.mark.usefixtures("inventory")
def test_the_access_table_is_true(app: TestApp, session: Session, tree: str, asks: str, who: str) -> None:
    assert outcome(app, tree, asks, headers(session, who, tree)) == said(tree, asks)[who]


@pytest.mark.parametrize("who", WHO)
def test_asking_for_the_next_storage_node_needs_the_right_to_write(app: TestApp, session: Session, who: str) -> None:
    answer = app.get("/api/nodes/next", headers=headers(session, who, "nodes"), expect_errors=True)

    expected = said("nodes", "write")[who]
    # There is none.
    assert str(answer.status_int) == {"yes": "404"}.get(expected, expected)


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("access", ["write", "read"])
def test_operations_on_hosts_cannot_be_opened(session: Session, who: str, access: Any) -> None:
    with pytest.raises(configuration.SettingsError, match="remote always needs a credential"):
        configuration.load({"LABCTL_ANONYMOUS": json.dumps({"remote": access})})
    app = TestApp(application.make_app(Settings()))

    answer = app.get("/ping", headers=headers(session, who, "remote"), expect_errors=True)
    # Nothing was named to be pinged.
    assert str(answer.status_int) == {"yes": "400"}.get(said("remote", "write")[who], said("remote", "write")[who])


PAIR = Settings(api_user="chacra", api_key="secret")


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("asks", ["read", "write"])
def test_the_pair_of_the_settings_has_the_rights_to_repos_and_nodes(session: Session, tree: str, asks: str) -> None:
    app = TestApp(application.make_app(PAIR))
    app.authorization = ("Basic", (PAIR.api_user, PAIR.api_key))

    who = "the right" if tree in {"repos", "nodes"} else "another right"
    assert outcome(app, tree, asks, {}) == said(tree, asks)[who]


@pytest.mark.parametrize("access", ["write", "read", "none"])
@pytest.mark.parametrize("asks", ["read", "write"])
@pytest.mark.parametrize("who", WHO)
def test_the_table_of_the_setting_is_true(session: Session, access: Any, asks: str, who: str) -> None:
    rows = table("access.rst", "anonymous is", "asks to", *WHO)
    expected = {(row[0], row[1]): dict(zip(WHO, row[2:], strict=True)) for row in rows}
    app = TestApp(application.make_app(Settings(anonymous={**ANONYMOUS, "runs": access})))

    assert outcome(app, "runs", asks, headers(session, who, "runs")) == expected[access, asks][who]


def test_a_wrong_credential_is_refused_even_where_everybody_may(app: TestApp) -> None:
    assert "refused" in (DOCS / "access.rst").read_text()
    assert app.get("/runs/", headers={"X-AUTH-TOKEN": "a" * 32}, expect_errors=True).status_int == 401


#: What is done, by its words in the table: the method, the path below /api, the body, and whose VM it is.
TO_VMS: dict[str, tuple[str, str, Any, str]] = {
    "take a ready VM": ("POST", "vm/debian", {}, "nobody's"),
    "tag one that is nobody's": ("PUT", "vm/VM", {"tags": {"a": "b"}}, "nobody's"),
    "give back one that is nobody's": ("DELETE", "vm/VM", None, "nobody's"),
    "extend one that is nobody's": ("PUT", "vm/VM", {"lifetime": 13}, "nobody's"),
    "add a disk to one that is nobody's": ("POST", "vm/VM/disk/8", {}, "nobody's"),
    "tag one that is somebody's": ("PUT", "vm/VM", {"tags": {"a": "b"}}, "somebody's"),
    "give back one that is somebody's": ("DELETE", "vm/VM", None, "somebody's"),
    "extend one that is somebody's": ("PUT", "vm/VM", {"lifetime": 13}, "somebody's"),
    "add a disk to one of somebody": ("POST", "vm/VM/disk/8", {}, "somebody's"),
    "ask for VMs to be made": ("POST", "ondemandvm/debian", {}, "nobody's"),
    "take such a request back": ("DELETE", "ondemandvm/theirs", None, "somebody's"),
    "change pools": ("POST", "config/poolsize", {"centos-9-x86_64": 5}, "nobody's"),
}
TO_VMS_WHO = ("anonymous", "its user", "another user", "admin")


def test_docs_access_tells_who_may_do_what_to_whose_vm() -> None:
    assert [row[0] for row in table("access.rst", "what", *TO_VMS_WHO)] == list(TO_VMS)


@pytest.mark.parametrize("what", TO_VMS)
@pytest.mark.parametrize("who", TO_VMS_WHO)
def test_the_table_of_vms_is_true(session: Session, settings: Settings, what: str, who: str) -> None:
    app = TestApp(application.make_app(Settings(database_url=settings.database_url, vm_config_api=True)))
    secrets = {}
    for user in TO_VMS_WHO[1:]:
        tokens.add_user(session, user, admin=user == "admin", rights=[])
        secrets[user] = {"X-AUTH-TOKEN": tokens.create_token(session, user)}
    method, path, body, whose = TO_VMS[what]
    make_vm(session, pool="debian-12-x86_64")
    vm = make_vm(session, state=VMState.RUNNING, owner="its user" if whose == "somebody's" else None)
    app.post_json("/api/ondemandvm", {"debian": 1, "request_id": "theirs"}, headers=secrets["its user"])

    answer = app.request(
        f"/api/{path.replace('VM', vm.name)}",
        method=method,
        body=b"" if body is None else json.dumps(body).encode(),
        headers=secrets.get(who, {}),
        expect_errors=True,
    )
    rows = {row[0]: dict(zip(TO_VMS_WHO, row[1:], strict=True)) for row in table("access.rst", "what", *TO_VMS_WHO)}
    if (said := rows[what][who]) == "\u2013":
        assert (whose, who) == ("nobody's", "its user")
    else:
        assert ("yes" if answer.status_int < 300 else str(answer.status_int)) == said, answer.text


# Plugins


def groups_in_use() -> set[str]:
    """Find the groups that labctl loads plugins from, and those that it registers plugins in."""
    found = {point.group for point in distribution("labctl").entry_points if point.group.startswith("labctl.")}
    for path in (ROOT / "labctl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                first = node.args[0]
                of_plugins = getattr(node.func.value, "id", None) == "plugins" and node.func.attr in {
                    "load",
                    "installed",
                }
                if of_plugins and isinstance(first, ast.Constant):
                    found.add(first.value)
    return found


def test_docs_plugins_has_a_section_for_every_group_in_use() -> None:
    sections = set(re.findall(r"^``(labctl\.\w+)``\n-+$", (DOCS / "plugins.rst").read_text(), re.MULTILINE))

    assert sections == groups_in_use()


# The pages themselves


PAGES = sorted([*DOCS.glob("*.rst"), ROOT / "README.rst", ROOT / "CHANGELOG.rst"])


@pytest.mark.parametrize("page", [*PAGES, CONFIG], ids=lambda page: page.name)
def test_lines_of_the_pages_are_not_too_long(page: Path) -> None:
    assert [line for line in page.read_text().splitlines() if len(line) > 120] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"(?<![\w/.<-])((?:docs|tests|deploy|labctl|benchmarks|alembic)/[\w./-]*\w/?)", text))
    missing = {name for name in named if not (ROOT / name).exists()}

    assert not missing
