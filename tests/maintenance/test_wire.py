from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from labctl.errors import Invalid
from labctl.maintenance import wire
from labctl.maintenance.action import Action, Done, View
from labctl.maintenance.service import Download
from labctl.maintenance.states import ActionType
from labctl.maintenance.workflow import Workflow

from .asking import SESSION

SHA256 = "AB" * 32


class Plain(Workflow):
    @property
    def steps(self) -> Any:
        return {}

    def check(self, metadata: Mapping[str, Any]) -> list[str]:
        return ["most: must be less"] if metadata.get("most") else []


class Unasked(Plain):
    checks_hosts = False


class Once(Action):
    types = frozenset((ActionType.PRE, ActionType.POST))

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        if metadata:
            raise ValueError("one thing\nanother thing")

    def next(self, view: View) -> Done:
        return Done()


class Ever(Once):
    types = frozenset(ActionType)


def workflow(name: str) -> Workflow:
    if name == "vnf":
        raise Invalid("there is no such workflow; installed: default")
    return {"default": Plain, "unasked": Unasked}[name]()


def action(name: str, metadata: Mapping[str, Any]) -> Action:
    if name not in ("once", "ever"):
        raise Invalid("there is no such action; installed: once")
    try:
        return (Once if name == "once" else Ever)(metadata)
    except ValueError as error:
        raise Invalid(str(error)) from error


PLUGINS = wire.Plugins(workflow, action)


def read(**changes: Any) -> Any:
    return wire.wanted_from_wire({**SESSION, **changes}, PLUGINS)


def mistakes(**changes: Any) -> list[str]:
    return list(read(**changes).mistakes)


def test_the_example_of_the_documentation_is_read() -> None:
    wanted = read(
        download=["https://my.sw.upgrades.com/SW1.tar.gz", f"https://my.sw.upgrades.com/ESW1.tar.gz#sha256={SHA256}"],
        actions=[{"plugin": "once", "type": "pre"}, {"plugin": "ever", "type": "host", "metadata": {}}],
    )

    assert not wanted.mistakes
    assert wanted.hosts == ("host1", "host2")
    assert wanted.maintenance_at == datetime(2018, 2, 28, 6, 6, 3, tzinfo=UTC)
    assert wanted.metadata == {"openstack_release": "Queens"}
    assert wanted.downloads == (
        Download("https://my.sw.upgrades.com/SW1.tar.gz"),
        Download("https://my.sw.upgrades.com/ESW1.tar.gz", SHA256.lower()),
    )
    assert [(each["plugin"], each["type"], each["metadata"]) for each in wanted.actions] == [
        ("once", "pre", {}),
        ("ever", "host", {}),
    ]


@pytest.mark.parametrize("field", SESSION)
def test_a_field_that_is_missing_is_named(field: str) -> None:
    data = {key: value for key, value in SESSION.items() if key != field}

    assert list(wire.wanted_from_wire(data, PLUGINS).mistakes) == [f"{field}: is required"]


def test_everything_that_is_wrong_is_told_at_once() -> None:
    told = mistakes(
        hosts="host1",
        state=5,
        maintenance_at="soon",
        metadata=[],
        workflow="vnf",
        download={},
        actions=5,
        sesion=1,
    )

    assert [line.partition(":")[0] for line in told] == [
        "sesion",
        "state",
        "metadata",
        "hosts",
        "maintenance_at",
        "actions",
        "workflow",
        "download",
    ]
    assert "workflow: there is no such workflow; installed: default" in told


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        *(("hosts", value, "list of names") for value in (None, "host1", [5], [""], ["a" * 256])),
        ("hosts", ["b", "a", "b", "a"], "named more than once: a, b"),
        ("hosts", [str(number) for number in range(10_001)], "10000"),
        *(
            ("maintenance_at", value, "YYYY-MM-DD HH:MM:SS")
            for value in (None, 5, "", "2026-02-30 00:00:00", "2026-2-3 00:00:00", "2026-02-03T00:00:00", "now")
        ),
        ("workflow", None, "name of a workflow"),
        ("metadata", {"most": 1}, "most: must be less"),
        *(("download", value, "list of URLs") for value in ("https://h/a", ["https://h/a"] * 101)),
    ],
)
def test_a_wrong_field_is_named(field: str, value: Any, told: str) -> None:
    (mistake,) = mistakes(**{field: value})

    assert mistake.startswith(field)
    assert told in mistake


@pytest.mark.parametrize("state", ["", "MAINTENANCE", "SCALE_IN", "whatever"])
def test_any_state_is_accepted(state: str) -> None:
    assert not mistakes(state=state)


@pytest.mark.parametrize(
    "url",
    [
        None,
        5,
        "",
        "host",
        "ftp://host/a",
        "file:///etc/passwd",
        "https:///a",
        "https://user:password@host/a",
        "https://host/a b",
        "https://host/\n",
        "https://h\u00f6st/",
        "https://host:port/a",
        "https://host/a#md5=0",
        "https://host/a#sha256=" + "0" * 63,
        "https://host/a#sha256=" + "g" * 64,
        "https://host/" + "a" * 2000,
    ],
)
def test_a_download_that_cannot_be_is_named_by_its_place(url: Any) -> None:
    (mistake,) = mistakes(download=["https://host/well", url])

    assert mistake.startswith("download.1: ")
    assert "password@" not in mistake


def test_a_file_is_downloaded_once() -> None:
    assert mistakes(download=["https://h/a", f"https://h/a#sha256={SHA256}"]) == ["download.1: is there twice"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (5, "actions.1: must be an object"),
        ({"type": "pre"}, "actions.1.plugin: "),
        ({"plugin": 5, "type": "pre"}, "actions.1.plugin: "),
        ({"plugin": "twice", "type": "pre"}, "actions.1.plugin: there is no such action; installed: once"),
        ({"plugin": "once"}, "actions.1.type: must be one of pre, host, check, post"),
        ({"plugin": "once", "type": "during"}, "actions.1.type: must be one of pre, host, check, post"),
        ({"plugin": "once", "type": []}, "actions.1.type: "),
        ({"plugin": "once", "type": "host"}, "actions.1.type: once may only be post, pre"),
        ({"plugin": "once", "type": "pre", "metadata": 5}, "actions.1.metadata: must be an object"),
        ({"plugin": "once", "type": "pre", "hosts": []}, "actions.1.hosts: there is no such field"),
    ],
)
def test_an_action_that_cannot_be_is_named_by_its_place(given: Any, told: str) -> None:
    (mistake,) = mistakes(actions=[{"plugin": "once", "type": "pre"}, given])

    assert mistake.startswith(told)


def test_all_that_an_action_finds_wrong_is_told() -> None:
    assert mistakes(actions=[{"plugin": "once", "type": "pre", "metadata": {"a": 1}}]) == [
        "actions.0.metadata: one thing",
        "actions.0.metadata: another thing",
    ]


def test_the_same_action_may_be_there_twice() -> None:
    assert len(read(actions=[{"plugin": "once", "type": "pre"}] * 2).actions) == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"metadata": {"gate": "none"}}, False),
        ({"workflow": "unasked"}, False),
        ({"actions": [{"plugin": "ever", "type": "check"}]}, False),
        ({"actions": [{"plugin": "ever", "type": "host"}]}, True),
    ],
)
def test_hosts_are_asked_how_they_are_unless_something_else_tells(changes: Any, expected: bool) -> None:
    assert read(**changes).asks_hosts is expected


# Changes


def test_a_body_that_says_nothing_changes_nothing_and_so_does_that_of_the_session() -> None:
    nothing = {key: value for key, value in SESSION.items() if key != "maintenance_at"}

    assert wire.edit_from_wire({}) == wire.edit_from_wire(nothing) == wire.Edit()


def test_a_change_is_read() -> None:
    wanted = wire.edit_from_wire(
        {"retry": "a", "skip": ["b"], "add_hosts": ["c"], "drop_hosts": ["d"], "paused": False}
    )

    assert wanted == wire.Edit(("a",), ("b",), ("c",), ("d",), None, False)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"pasued": True}, "pasued: there is no such field"),
        ({"paused": 1}, "paused: "),
        ({"paused": None}, "paused: "),
        ({"retry": 5}, "retry: "),
        ({"skip": [5]}, "skip: "),
        ({"add_hosts": "a"}, "add_hosts: "),
        ({"drop_hosts": {}}, "drop_hosts: "),
        ({"maintenance_at": ""}, "maintenance_at: "),
        ({"retry": "a", "skip": "a"}, "retry, skip, add_hosts, drop_hosts: "),
    ],
)
def test_a_wrong_change_names_the_field(data: Any, told: str) -> None:
    with pytest.raises(Invalid) as raised:
        wire.edit_from_wire(data)
    assert raised.value.message.startswith(told)


# Projects


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("ACK_SCALE_IN", "SCALE_IN"),
        ("NACK_MAINTENANCE", "MAINTENANCE"),
        ("MAYBE_MAINTENANCE", ""),
        ("ACK", ""),
    ],
)
def test_an_answer_says_what_it_is_about(text: str, state: str) -> None:
    answer = wire.answer_from_wire({"state": text, "instance_ids": "http://here", "anything": 1})

    assert (answer.text, answer.state) == (text, state)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({}, "state"),
        ({"state": None}, "state"),
        ({"state": ""}, "state"),
        ({"state": "A" * 256}, "state"),
        ({"state": "ACK_X", "instance_actions": ["vm1"]}, "instance_actions"),
        ({"state": "ACK_X", "instance_actions": {"vm0": "MIGRATE", "vm1": "EVICT"}}, "instance_actions.vm1"),
        ({"state": "ACK_X", "instance_actions": {"vm1": ["MIGRATE"]}}, "instance_actions.vm1"),
    ],
)
def test_a_wrong_answer_names_the_field(data: Any, field: str) -> None:
    with pytest.raises(Invalid) as raised:
        wire.answer_from_wire(data)
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"url": None}, "url: "),
        ({"url": "ftp://host/"}, "url: "),
        ({"url": "https://host/#here"}, "url: "),
        ({"url": "https://user:password@host/"}, "url: "),
        ({"secret": None}, "secret: "),
        ({"secret": "too short"}, "secret: "),
        ({"secret": "s" * 256}, "secret: "),
        ({"scret": "s" * 16}, "scret: "),
    ],
)
def test_a_wrong_subscription_names_the_field_and_not_the_secret(changes: Any, told: str) -> None:
    with pytest.raises(Invalid) as raised:
        wire.subscription_from_wire({"url": "https://host/", "secret": "sixteen letters!", **changes})
    assert raised.value.message.startswith(told)
    assert "sixteen" not in raised.value.message
    assert "too short" not in raised.value.message.removeprefix("secret: must be text")
