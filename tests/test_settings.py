"""Where settings come from, and what is said when they are wrong."""

import json
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from labctl import settings
from labctl.settings import ANONYMOUS, Settings, SettingsError, load


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


def other(name: str) -> Any:
    """Give a value of a setting that is not its default."""
    hint, default = HINTS[name], getattr(Settings(), name)
    if get_origin(hint) is Literal:
        return next(value for value in get_args(hint) if value != default)
    if get_origin(hint) is dict:
        return {key: "read" if value != "read" else "none" for key, value in default.items()}
    return {
        bool: lambda: not default,
        str: lambda: f"{default} and more",
        int: lambda: default + 1,
        float: lambda: default + 0.5,
    }[hint]()


@pytest.mark.parametrize("name", HINTS)
def test_every_setting_can_be_given_in_the_environment_and_in_the_file(file: Any, name: str) -> None:
    value = other(name)
    text = json.dumps(value) if isinstance(value, dict) else str(value)

    for loaded in (load({f"LABCTL_{name.upper()}": text}), load({}, file(f"{name} = {value!r}"))):
        assert getattr(loaded, name) == value != getattr(Settings(), name)
        assert type(getattr(loaded, name)) is type(value)
        assert all(getattr(loaded, each) == getattr(Settings(), each) for each in HINTS if each != name)


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
