"""What each of labctl's actions does, beyond what all must do."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from labctl.maintenance.action import Action, Done, Failed, Operate, Outcome, View, Wait
from labctl.maintenance.actions import reboot
from labctl.maintenance.actions.check import Check
from labctl.maintenance.actions.command import Command
from labctl.maintenance.actions.dummy import Dummy
from labctl.maintenance.actions.reboot import Reboot
from labctl.maintenance.actions.role import Role
from labctl.maintenance.states import ActionType

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ONCE = View(host="", hosts=("a", "b"), downloads={}, started=NOW, now=NOW)
HOST = replace(ONCE, host="a")
URL = "https://files.example.com/SW1.tar.gz"


def after(
    view: View, *, ok: bool = True, error: str = "", seconds: float = 1, unfinished: bool = False, **output: Any
) -> View:
    """What is seen when the operation that is wanted has ended."""
    step = f"step-{len(view.outcomes)}"
    if view.outcomes and view.outcomes[-1].step == reboot.BEFORE:
        step = reboot.DOWN
    elif not view.outcomes:
        step = reboot.BEFORE
    now = view.now + timedelta(seconds=seconds)
    outputs = {view.host or "a": output} if output else {}
    return replace(view, now=now, outcomes=(*view.outcomes, Outcome(step, ok, error, outputs, now, unfinished)))


def later(view: View, seconds: float) -> View:
    return replace(view, now=view.now + timedelta(seconds=seconds))


def operation(action: Action, view: View) -> Operate:
    step = action.next(view)
    assert isinstance(step, Operate)
    return step


@pytest.mark.parametrize("kind", [Command, Role, Check, Dummy])
def test_a_host_action_with_hosts_is_for_those_only(kind: type[Action]) -> None:
    metadata = {Command: {"command": "x"}, Role: {"role": "x"}, Dummy: {"fail": True}}.get(kind, {})
    action = kind({**metadata, "hosts": ["b", "elsewhere"]})
    assert action.next(HOST) == Done()
    assert action.next(replace(HOST, host="b")) != Done()


@pytest.mark.parametrize("kind", [Command, Role, Check])
def test_an_action_that_runs_once_is_carried_out_where_its_hosts_say(kind: type[Action]) -> None:
    metadata = {Command: {"command": "x"}, Role: {"role": "x"}}.get(kind, {})
    assert operation(kind({**metadata, "hosts": ["elsewhere"]}), ONCE).hosts == ("elsewhere",)
    assert operation(kind(metadata), ONCE).hosts == ("a", "b")


def test_a_command_reaches_the_hosts_as_it_was_written() -> None:
    line = "echo {host} %s {{ x }} $(id) ; # '"
    wanted = operation(Command({"command": line}), replace(HOST, downloads={URL: "/x"}))
    assert (wanted.operation, dict(wanted.arguments)) == ("execute", {"command": line})


def test_a_role_finds_downloads_among_its_variables() -> None:
    wanted = operation(
        Role({"role": "r", "partial": ["t"], "extra_vars": {"x": 1}}), replace(HOST, downloads={URL: "/x"})
    )
    assert wanted.operation == "deploy"
    assert wanted.arguments == {"role": "r", "partial": ["t"], "extra_vars": {"x": 1, "downloads": {URL: "/x"}}}
    assert operation(Role({"role": "r"}), HOST).arguments == {"role": "r", "partial": None, "extra_vars": {}}


def test_variables_of_the_request_are_not_replaced_by_downloads() -> None:
    action = Role({"role": "r", "extra_vars": {"downloads": "mine"}})
    assert operation(action, replace(HOST, downloads={URL: "/x"})).arguments["extra_vars"] == {"downloads": "mine"}


def test_a_command_whose_worker_was_lost_is_not_begun_again_unless_it_says_so() -> None:
    lost = after(HOST, ok=False, error="the worker that carried this out was lost", unfinished=True)
    assert Command({"command": "x"}).next(lost) == Failed("the worker that carried this out was lost")

    again = operation(Command({"command": "x", "repeat": True}), lost)
    assert again.step not in {outcome.step for outcome in lost.outcomes}
    assert Command({"command": "x", "repeat": True}).next(after(lost)) == Done()


def test_a_role_whose_worker_was_lost_is_applied_again_unless_it_says_otherwise() -> None:
    lost = after(HOST, ok=False, error="the worker was stopped", unfinished=True)
    assert operation(Role({"role": "r"}), lost).operation == "deploy"
    assert Role({"role": "r", "repeat": False}).next(lost) == Failed("the worker was stopped")
    failed = after(HOST, ok=False, error="1 of 1 remote host(s) got deploy errors")
    assert Role({"role": "r"}).next(failed) == Failed("1 of 1 remote host(s) got deploy errors")


def test_a_host_is_rebooted_once_whatever_becomes_of_the_worker() -> None:
    lost = after(HOST, ok=False, unfinished=True)
    assert operation(Reboot({}), lost).arguments == {"command": reboot.BOOT_ID}

    known = after(lost, stdout="one")
    assert operation(Reboot({"command": "now"}), known).arguments == {"command": "now"}
    gone = later(after(known, ok=False, unfinished=True), 60)
    assert operation(Reboot({"command": "now"}), gone).arguments == {"command": reboot.BOOT_ID}


def test_a_check_asks_again_after_a_while_until_the_host_is_well() -> None:
    action = Check({"retries": 2, "interval": 10})
    assert operation(action, HOST).operation == "ping"
    view = after(HOST, ok=False, error="total 1 of 1 remote host(s) no response")
    assert action.next(view) == Wait(10, "to be asked again: total 1 of 1 remote host(s) no response")
    assert action.next(later(view, 4)).seconds == 6  # type: ignore[union-attr]
    assert operation(action, later(view, 10)).step == "check-2"
    assert action.next(after(later(view, 10), status=1)) == Done()


def test_a_check_that_is_never_well_fails_after_its_retries() -> None:
    action = Check({"retries": 1, "interval": 0, "command": "systemctl is-system-running"})
    view = after(HOST, ok=False, error="1 of 1 remote host(s) got execute errors", status=3, stdout="degraded", rtc=1)
    assert operation(action, view).arguments == {"command": "systemctl is-system-running"}
    failed = action.next(after(view, ok=False, error="1 of 1", status=3, stdout="degraded", stderr="", rtc=1))
    assert failed == Failed("1 of 1: a: degraded")


def test_a_host_is_back_when_it_has_another_boot_id() -> None:
    action = Reboot({"interval": 5})
    assert operation(action, HOST).arguments == {"command": "cat /proc/sys/kernel/random/boot_id"}
    view = after(HOST, stdout="11-22\n", rtc=0)
    down = operation(action, view)
    assert "reboot" in down.arguments["command"]
    # The connection broke under it.
    view = after(view, ok=False, error="no response", status=4, rtc=None, stderr="gone")
    assert action.next(view) == Wait(5, "to be back")
    view = later(view, 5)
    assert operation(action, view).step == "back-1"
    # It has not gone down yet, then it is away, then it is back.
    view = later(after(view, stdout="11-22\n", rtc=0), 5)
    assert operation(action, view).step == "back-2"
    view = after(view, ok=False, error="no response", status=4, rtc=None)
    assert action.next(view) == Wait(5, "to be back")
    view = later(view, 5)
    assert operation(action, view).step == "back-3"
    assert action.next(after(view, stdout="33-44\n", rtc=0)) == Done()


def test_a_reboot_that_a_host_refuses_has_failed() -> None:
    view = after(HOST, stdout="11-22\n", rtc=0)
    view = after(view, ok=False, error="1 of 1 got execute errors", status=3, rtc=1, stderr="not permitted")
    assert Reboot({}).next(view) == Failed("1 of 1 got execute errors: a: not permitted")


@pytest.mark.parametrize("output", [{"stdout": " \n", "rtc": 0}, {}])
def test_a_host_whose_boot_id_nobody_knows_is_not_rebooted(output: dict[str, Any]) -> None:
    step = Reboot({}).next(after(HOST, **output))
    assert isinstance(step, Failed)
    assert "boot id" in step.reason


def test_a_lab_may_have_its_own_way_to_reboot() -> None:
    action = Reboot({"command": "ipmi-reset", "boot_id_command": "uptime -s"})
    assert operation(action, HOST).arguments == {"command": "uptime -s"}
    assert operation(action, after(HOST, stdout="x", rtc=0)).arguments == {"command": "ipmi-reset"}


def test_nobody_reboots_all_hosts_at_once() -> None:
    assert Reboot.types == {ActionType.HOST}


def test_a_dummy_takes_its_time() -> None:
    action = Dummy({"seconds": 3})
    assert action.next(HOST) == Wait(3, "for nothing")
    assert action.next(later(HOST, 3)) == Done()


@pytest.mark.parametrize(("fail", "attempts"), [(True, [1, 2, 3]), (False, []), (0, []), (1, [1]), (2, [1, 2])])
def test_a_dummy_fails_as_often_as_it_is_told(fail: Any, attempts: list[int]) -> None:
    action = Dummy({"fail": fail, "reason": "so"})
    assert [n for n in (1, 2, 3) if action.next(replace(HOST, attempt=n)) == Failed("so")] == attempts
