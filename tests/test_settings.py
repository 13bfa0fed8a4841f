"""Where settings come from, and what is said when they are wrong."""

import json
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from labctl import settings
from labctl.pools import Pool
from labctl.settings import (
    ALWAYS_CLOSED,
    ANONYMOUS,
    MAINTENANCE_REPLIES,
    REMOTE_TIMEOUTS,
    Access,
    Settings,
    SettingsError,
    load,
)


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """Write a config file and give its path."""

    def write(text: str) -> str:
        path = tmp_path / "config.py"
        path.write_text(text)
        return str(path)

    return write


def mistakes(environ: dict[str, str], config: str | None = None) -> list[str]:
    with pytest.raises(SettingsError) as error:
        load(environ, config)
    return str(error.value).splitlines()


def test_without_environment_and_file_every_setting_has_its_default() -> None:
    assert load({}) == Settings()


def test_the_environment_beats_the_file_and_the_file_beats_the_default(file: Any) -> None:
    config = file('port = 1000\nhost = "::"\nlog_format = "json"\n')
    loaded = load({"LABCTL_PORT": "2000", "LABCTL_CONFIG": config, "OTHER_PORT": "3"})
    assert (loaded.port, loaded.host, loaded.log_format, loaded.log_level) == (2000, "::", "json", "INFO")
    assert load({}, config).port == 1000


HINTS = get_type_hints(Settings)
LDAP = {"ldap_urls": ["ldap://ldap.example.org"], "ldap_base": "dc=example"}
#: Values of settings that cannot have just any, with other settings that they need.
VALUES: dict[str, tuple[Any, dict[str, Any]]] = {
    "ldap_urls": (LDAP["ldap_urls"], {"ldap_base": LDAP["ldap_base"]}),
    "ldap_ca_file": (__file__, {}),
    "ldap_attribute": ("cn", {}),
    "vm_prefix": ("lab-", {}),
    "ldap_filter": ("(cn=*)", {}),
    "ldap_bind_dn": ("cn=labctl", {"ldap_bind_password": "secret"}),
    "ldap_user_dn": ("uid={user}", {}),
    "ldap_rights": (["runs"], {}),
    "pools": ([{"name": "one", "alias": "a", "check": {"kind": "tcp"}}, {"name": "two"}], {}),
    "providers": ({"lab": {"plugin": "fake", "limit": 2}}, {}),
    "executor": ({"plugin": "fake"}, {}),
    "remote_timeouts": ({**REMOTE_TIMEOUTS, "ping": 5}, {}),
    "maintenance_replies": ({**MAINTENANCE_REPLIES, "MAINTENANCE": 5}, {}),
}


def other(name: str) -> tuple[Any, dict[str, Any]]:
    """Give a value of a setting that is not its default, and what else must be set with it."""
    hint, default = HINTS[name], getattr(Settings(), name)
    if name in VALUES:
        return VALUES[name]
    if get_origin(hint) is Literal:
        return next(value for value in get_args(hint) if value != default), {}
    if hint == dict[str, Access]:
        opened = {key: "read" if value != "read" else "none" for key, value in default.items()}
        return {**opened, **dict.fromkeys(ALWAYS_CLOSED, "none")}, {}
    return {
        bool: lambda: not default,
        str: lambda: f"{default} and more",
        int: lambda: default + 1,
        float: lambda: default + 0.5,
        list[str]: lambda: [*default, "more"],
        dict[str, str]: lambda: {**default, "more": "text"},
    }[hint](), {}


def as_loaded(value: Any) -> Any:
    """Give what becomes of a value: pools are the only objects."""
    return [Pool(**each) for each in value] if isinstance(value, list) and isinstance(value[0], dict) else value


def as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


@pytest.mark.parametrize("name", HINTS)
def test_every_setting_can_be_given_in_the_environment_and_in_the_file(file: Any, name: str) -> None:
    value, more = other(name)
    given = {name: value, **more}
    environ = {f"LABCTL_{each.upper()}": as_text(that) for each, that in given.items()}
    lines = "".join(f"{each} = {that!r}\n" for each, that in given.items())

    for loaded in (load(environ), load({}, file(lines))):
        assert getattr(loaded, name) == as_loaded(value) != getattr(Settings(), name)
        assert type(getattr(loaded, name)) is type(value)
        assert all(getattr(loaded, each) == getattr(Settings(), each) for each in HINTS if each not in given)


def test_an_empty_variable_is_as_good_as_none(file: Any) -> None:
    assert load({"LABCTL_PORT": "", "LABCTL_CONFIG": ""}).port == Settings().port
    assert load({"LABCTL_PORT": ""}, file("port = 5")).port == 5


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("PORT", "80", 80),
        ("MAX_WAIT", "2.5", 2.5),
        ("EVENTS_KEEP_DAYS", "0.5", 0.5),
        ("HOME", "123", "123"),
        ("HOME", '"quoted"', '"quoted"'),
        ("DATABASE_URL", "postgresql://u:p%40@h/n", "postgresql://u:p%40@h/n"),
        ("ANONYMOUS", '{"runs": "read"}', {**ANONYMOUS, "runs": "read"}),
        *(("HEALTH_CHECK_VERIFY", text, True) for text in ("true", "True", "1")),
        *(("HEALTH_CHECK_VERIFY", text, False) for text in ("false", "False", "0")),
    ],
)
def test_a_variable_is_read_as_the_type_of_its_setting(name: str, text: str, value: Any) -> None:
    assert getattr(load({f"LABCTL_{name}": text}), name.lower()) == value


def test_the_rights_of_a_tree_that_is_not_named_stay_as_they_are(file: Any) -> None:
    assert load({}, file('anonymous = {"events": "read"}')).anonymous == {**ANONYMOUS, "events": "read"}
    # From one place or the other, not from both.
    both = load({"LABCTL_ANONYMOUS": '{"runs": "none"}'}, file('anonymous = {"events": "read"}'))
    assert both.anonymous == {**ANONYMOUS, "runs": "none"}
    assert Settings().anonymous == ANONYMOUS


@pytest.mark.parametrize("access", ["read", "write"])
@pytest.mark.parametrize("tree", ALWAYS_CLOSED)
def test_a_tree_in_which_everybody_would_be_root_cannot_be_opened(tree: str, access: str) -> None:
    told = mistakes({"LABCTL_ANONYMOUS": json.dumps({"runs": "none", tree: access})})
    assert told == [f"anonymous: {tree} always needs a credential"]
    assert load({"LABCTL_ANONYMOUS": json.dumps({tree: "none"})}).anonymous == ANONYMOUS


def test_the_time_of_an_operation_that_is_not_named_stays_as_it_is(file: Any) -> None:
    assert load({}, file('remote_timeouts = {"ping": 5}')).remote_timeouts == {**REMOTE_TIMEOUTS, "ping": 5}
    (mistake,) = mistakes({"LABCTL_REMOTE_TIMEOUTS": '{"pnig": 5}'})
    assert mistake.startswith("remote_timeouts: ")
    assert "pnig" in mistake
    assert "ping" in mistake


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("port", value) for value in ("0", "65536", "http", "8080.5", "-1")),
        *(("web_threads", value) for value in ("0", "x")),
        *(("log_level", value) for value in ("info", "TRACE")),
        *(("max_wait", value) for value in ("-1", "nan", "x")),
        *(("anonymous", value) for value in ("read", "[]", "5", '{"runs": "all"}', '{"runs": 1}')),
        ("max_body", "1"),
        ("job_lease", "0"),
        *(("health_check_verify", value) for value in ("maybe", "2")),
        *(("health_check_timeout", value) for value in ("0", "60.5", "nan", "inf")),
        ("health_check_retries", "0"),
        *(("vm_lifetime", value) for value in ("0", "1.5", "x")),
        *(("vm_tags", value) for value in ("tag", "{}", "[1]")),
        *(("vm_tag_filters", value) for value in ("[]", '{"tag": 1}')),
        *(("providers", value) for value in ("fake", "[]", '{"fake": "fake"}')),
        *(("pools", value) for value in ("debian", "{}", '["debian"]', '[{"size": 1}]')),
        *(("pools", f'[{{"name": "a", {more}}}]') for more in ('"size": -1', '"sise": 1', '"check": {"kind": "ping"}')),
        ("pools", '[{"name": "a b"}]'),
        *(("executor", value) for value in ("ansible", "[]", "5")),
        *(("remote_timeouts", value) for value in ("60", "[]", '{"ping": 0}', '{"ping": "long"}', '{"ping": null}')),
        *(("remote_jobs", value) for value in ("0", "101", "x")),
        *(("remote_wait", value) for value in ("0", "-1", "nan")),
        ("remote_max_output", "1000"),
    ],
)
def test_a_bad_value_is_named(name: str, text: str) -> None:
    (mistake,) = mistakes({f"LABCTL_{name.upper()}": text})
    assert mistake.startswith((f"{name}: ", f"{name}."))


def test_every_mistake_is_told_at_once_one_line_each(file: Any) -> None:
    config = file('prot = 1\nweb_threads = 0\nanonymous = {"rusn": "read", "runs": "all"}\nlog_level = "LOUD"\n')
    told = mistakes({"LABCTL_PORT": "x", "LABCTL_MAX_WAIT": "-1"}, config)
    named = {line.partition(":")[0].partition(".")[0] for line in told}
    assert named == {"prot", "web_threads", "anonymous", "log_level", "port", "max_wait"}
    assert len(told) == 7
    assert any("rusn" in line and "runs" in line for line in told)


def test_an_unknown_name_in_the_file_is_a_mistake_and_private_and_upper_case_names_are_not(file: Any) -> None:
    assert mistakes({}, file("ports = 1")) == ["ports: there is no such setting"]
    assert load({}, file("_private = 1\nBASE = 8000\nport = BASE + 80")).port == 8080


def test_a_file_may_import_and_compute(file: Any) -> None:
    assert load({}, file("from os import path as _path\nhome = _path.join('/', 'x')")).home == "/x"


@pytest.mark.parametrize("text", ["port = ", "1 / 0", "raise ValueError('x')", "import nosuchmodule", "port = 'a\0'"])
def test_a_file_that_does_not_run_is_named_with_the_reason(file: Any, text: str) -> None:
    config = file(text)
    (mistake,) = mistakes({"LABCTL_CONFIG": config})
    assert mistake.startswith(f"{config}: ")


def test_a_file_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    for path in (tmp_path / "nosuch.py", tmp_path):
        assert mistakes({"LABCTL_CONFIG": str(path)}) == [f"LABCTL_CONFIG: there is no file {path}"]


def test_the_database_is_the_setting_or_what_a_running_labctl_up_left(tmp_path: Path) -> None:
    home = str(tmp_path)
    assert Settings(database_url="postgresql://a/b", home=home).require_database() == "postgresql://a/b"
    with pytest.raises(SettingsError, match="database_url"):
        Settings(home=home).require_database()
    (tmp_path / "database.url").write_text("postgresql://c/d\n")
    assert Settings(home=home).require_database() == "postgresql://c/d"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


def test_a_mistake_in_a_pool_says_in_which_field_of_which_pool() -> None:
    (mistake,) = mistakes({"LABCTL_POOLS": '[{"name": "one"}, {"name": "two", "check": {"port": 0}}]'})
    assert mistake.startswith("pools.1.check.port: ")


def test_the_password_for_searching_ldap_is_not_shown() -> None:
    assert "very secret" not in repr(Settings(ldap_bind_password="very secret"))


def test_every_setting_has_a_line_of_help() -> None:
    for setting in fields(Settings):
        assert setting.metadata["help"].endswith((".", ")")), setting.name
        assert "\n" not in setting.metadata["help"]


def test_anonymous_may_be_set_for_every_tree_there_is() -> None:
    from labctl.root import tree

    def trees(node: Any) -> set[str]:
        own = {node.mount.tree} if node.mount else set()
        return own.union(*(trees(child) for child in node.children.values())) if node.mount else own

    assert trees(tree(Settings())) - {None} == set(ANONYMOUS)
    assert settings.ANONYMOUS["events"] == "none"


@pytest.mark.parametrize(("jobs", "connections"), [(8, 13), (2, 13), (1, 12)])
def test_a_worker_has_connections_for_tasks_engines_and_a_few_jobs(jobs: int, connections: int) -> None:
    assert Settings(worker_concurrency=4, remote_jobs=jobs).worker_connections() == connections
