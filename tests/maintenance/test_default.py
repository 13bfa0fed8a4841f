"""The default workflow, state by state, as the page of the protocol tells it; no database is needed for that."""

from datetime import datetime
from typing import Any

import pytest

from labctl.maintenance.states import ActionType, HostState, InstanceAction, MoveState
from labctl.maintenance.workflow import Drain, FailHost, Move, Next, Notify, Progress, Return, Run, View
from labctl.maintenance.workflows.default import DefaultWorkflow

from .views import NOW, at, host, machine, replies, reply, view, vm

MIGRATE, LIVE, OWN = InstanceAction.MIGRATE, InstanceAction.LIVE_MIGRATE, InstanceAction.OWN_ACTION
WORKFLOW = DefaultWorkflow()
SILENT = {"no_answer": "wait"}


def next_of(seen: View) -> Next:
    return WORKFLOW.steps[seen.state](seen)


def told(seen: View) -> list[tuple[str, str, datetime, str, int]]:
    """Whom it tells, of what, until when they can answer, about which host, for which time."""
    return [
        (want.project, want.state, want.reply_by, want.host, want.round)
        for want in next_of(seen).do
        if isinstance(want, Notify)
    ]


def acts(seen: View) -> list[Any]:
    """What it does beside that."""
    return [want for want in next_of(seen).do if not isinstance(want, Notify)]


def test_it_has_the_states_of_the_protocol() -> None:
    assert list(WORKFLOW.steps) == [
        "MAINTENANCE",
        "SCALE_IN",
        "PREPARE_MAINTENANCE",
        "START_MAINTENANCE",
        "PLANNED_MAINTENANCE",
        "MAINTENANCE_COMPLETE",
    ]


# MAINTENANCE: notify projects MAINTENANCE; all ACK within 20 s (project_maintenance_reply), else FAILED

IN_USE = (host("a", "waiting", vm("vm-1", "ada"), vm("vm-2", "bob")), host("b", "waiting", vm("vm-3", "ada")))


def test_all_projects_that_are_affected_are_told_once() -> None:
    assert told(view("MAINTENANCE", *IN_USE)) == [
        ("ada", "MAINTENANCE", at(20), "", 1),
        ("bob", "MAINTENANCE", at(20), "", 1),
    ]
    (ada, bob) = next_of(view("MAINTENANCE", *IN_USE, maintenance_at=at(100), entered=NOW)).do
    assert (ada.instances, bob.instances) == (("vm-1", "vm-3"), ("vm-2",))
    assert ada.actions_at == at(100) and ada.allowed_actions == ()

    asked = replies("MAINTENANCE", ada=reply(), bob=reply(True))
    answer = next_of(view("MAINTENANCE", *IN_USE, replies=asked))
    assert answer == Next(waits_for="the answer of ada", until=at(15))


def test_what_is_nobodys_cannot_be_told_and_a_machine_that_is_locked_is_told_its_owner() -> None:
    hosts = host("a", "waiting", vm("vm-1", "")), host("b", "waiting", machine("b", "carol"))
    assert [row[0] for row in told(view("MAINTENANCE", *hosts))] == ["carol"]


def test_who_comes_meanwhile_is_told_too() -> None:
    asked = replies("MAINTENANCE", ada=reply(True))
    assert told(view("MAINTENANCE", *IN_USE, replies=asked)) == [("bob", "MAINTENANCE", at(20), "", 1)]


def test_hosts_that_are_skipped_affect_nobody() -> None:
    assert next_of(view("MAINTENANCE", host("a", "skipped", vm("vm-1")), host("b"))).state == "START_MAINTENANCE"


ENTERED = (-10, 100)


@pytest.mark.parametrize(
    ("answer", "no_answer", "failed"),
    [
        (reply(True), "fail", None),
        (reply(False, answer="NACK_MAINTENANCE"), "fail", "ada does not agree to MAINTENANCE: NACK_MAINTENANCE"),
        (reply(False, answer="maybe"), "wait", "ada does not agree to MAINTENANCE: maybe"),
        (reply(None, by=0), "fail", "ada has not answered to MAINTENANCE in time"),
        (reply(None, by=0), "wait", None),
        (reply(True, by=0), "fail", None),
    ],
)
def test_an_answer_to_maintenance(answer: Any, no_answer: str, failed: str | None) -> None:
    hosts = (host("a", "waiting", vm("vm-1")), host("b"))
    answered = replies("MAINTENANCE", ada=answer)
    found = next_of(view("MAINTENANCE", *hosts, replies=answered, metadata={"no_answer": no_answer}))
    assert found.failed == failed
    assert found.state == (None if failed else "START_MAINTENANCE")


def test_a_reply_before_the_notice_does_not_spare_the_notice_which_counts_it() -> None:
    early = replies("MAINTENANCE", ada=reply(True, asked=None), bob=reply(True))
    assert [row[0] for row in told(view("MAINTENANCE", *IN_USE, replies=early))] == ["ada"]


def test_a_deadline_after_maintenance_at_fails_unless_all_have_agreed() -> None:
    soon = view("MAINTENANCE", *IN_USE, entered=NOW, maintenance_at=at(19))
    assert next_of(soon).failed == "ada, bob could answer until after maintenance_at; it must be later"
    assert next_of(view("MAINTENANCE", *IN_USE, entered=NOW, maintenance_at=at(20))).failed is None
    agreed = replies("MAINTENANCE", ada=reply(True), bob=reply(True))
    again = view("MAINTENANCE", *IN_USE, entered=NOW, maintenance_at=at(19), replies=agreed)
    assert next_of(again) == Next(waits_for="maintenance_at", until=at(19))


def test_a_time_in_the_past_is_now() -> None:
    assert next_of(view("MAINTENANCE", *IN_USE, entered=NOW, maintenance_at=at(-100))).failed is None


def test_it_waits_for_its_time_and_for_downloads_and_then_runs_the_pre_actions() -> None:
    a = host("a")
    assert next_of(view("MAINTENANCE", a, maintenance_at=at(5))) == Next(waits_for="maintenance_at", until=at(5))
    assert next_of(view("MAINTENANCE", a, downloads=Progress.RUNNING)) == Next(waits_for="downloads")
    assert next_of(view("MAINTENANCE", a, downloads=Progress.FAILED, reason="404")) == Next(failed="404")
    assert next_of(view("MAINTENANCE", a, pre=Progress.NONE)).do == (Run(ActionType.PRE),)
    assert next_of(view("MAINTENANCE", a, pre=Progress.RUNNING)) == Next(waits_for="the pre actions")
    assert next_of(view("MAINTENANCE", a, pre=Progress.FAILED, reason="exit 1")) == Next(failed="exit 1")
    assert next_of(view("MAINTENANCE", a, pre=Progress.FAILED)).failed == "a pre action failed"


def test_a_failed_download_fails_before_anybody_is_told() -> None:
    found = next_of(view("MAINTENANCE", *IN_USE, downloads=Progress.FAILED, reason="404"))
    assert (found.failed, found.do) == ("404", ())


def test_a_session_that_is_continued_asks_again_who_did_not_agree() -> None:
    before = replies("MAINTENANCE", ada=reply(False, asked=-30, by=-20), bob=reply(True, asked=-30, by=-20))
    assert told(view("MAINTENANCE", *IN_USE, replies=before)) == [("ada", "MAINTENANCE", at(20), "", 2)]
    both = before | replies("MAINTENANCE", round=2, ada=reply(True))
    assert next_of(view("MAINTENANCE", *IN_USE, replies=both)).state == "PREPARE_MAINTENANCE"


# An empty compute host exists: START; none, but room for the VMs of one: PREPARE; else SCALE_IN


@pytest.mark.parametrize(
    ("hosts", "state"),
    [
        ((), "START_MAINTENANCE"),
        ((host("a", "done"),), "START_MAINTENANCE"),
        ((host("a"),), "START_MAINTENANCE"),
        ((host("a", "waiting", vm("1", "")), host("b")), "START_MAINTENANCE"),
        ((host("a", "waiting", vm("1", "")), host("b", "waiting", vm("2", ""))), "PREPARE_MAINTENANCE"),
        ((host("a", "waiting", machine("a", "")),), "PREPARE_MAINTENANCE"),
        ((host("a", "waiting", vm("1", ""), replaceable=False),), "SCALE_IN"),
        ((host("a", "waiting", vm("1", ""), replaceable=False), host("b")), "START_MAINTENANCE"),
    ],
)
def test_where_it_goes_when_all_agree(hosts: Any, state: str) -> None:
    assert next_of(view("MAINTENANCE", *hosts)) == Next(state=state)


# SCALE_IN: notify SCALE_IN; ACK within 60 s (project_scale_in_reply) -> START / PREPARE / SCALE_IN again

FULL = host("a", "waiting", vm("vm-1"), replaceable=False)


def test_projects_are_asked_to_scale_in() -> None:
    assert told(view("SCALE_IN", FULL)) == [("ada", "SCALE_IN", at(60), "", 1)]
    found = next_of(view("SCALE_IN", FULL, replies=replies("SCALE_IN", ada=reply(by=55))))
    assert found == Next(waits_for="the answer of ada; a to be free of vm-1 (ada)", until=at(55))


@pytest.mark.parametrize(
    ("answer", "no_answer", "failed"),
    [
        (reply(False, answer="NACK_SCALE_IN"), "fail", "ada does not agree to SCALE_IN: NACK_SCALE_IN"),
        (reply(None, by=0), "fail", "ada has not answered to SCALE_IN in time"),
    ],
)
def test_who_does_not_scale_in_ends_the_session(answer: Any, no_answer: str, failed: str) -> None:
    assert next_of(view("SCALE_IN", FULL, replies=replies("SCALE_IN", ada=answer))).failed == failed


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        ((host("a"),), "START_MAINTENANCE"),
        ((FULL, host("b")), "START_MAINTENANCE"),
        ((host("a", "skipped"),), "START_MAINTENANCE"),
        ((host("a", "waiting", vm("vm-1")),), "PREPARE_MAINTENANCE"),
    ],
)
def test_as_soon_as_something_changes_it_goes_on(changed: Any, state: str) -> None:
    for answers in ({}, replies("SCALE_IN", ada=reply(True))):
        assert next_of(view("SCALE_IN", *changed, replies=answers)) == Next(state=state)


def rounds(number: int, by: float, answer: bool | None = True) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for round in range(1, number + 1):
        found |= replies("SCALE_IN", round=round, ada=reply(answer, asked=-5 + round, by=by))
    return found


def test_another_round_begins_when_the_time_of_the_last_one_is_over_and_the_third_is_the_last() -> None:
    early = next_of(view("SCALE_IN", FULL, replies=rounds(1, by=30)))
    assert early == Next(waits_for="a to be free of vm-1 (ada)", until=at(30))
    assert told(view("SCALE_IN", FULL, replies=rounds(1, by=0))) == [("ada", "SCALE_IN", at(60), "", 2)]
    assert told(view("SCALE_IN", FULL, replies=rounds(2, by=0))) == [("ada", "SCALE_IN", at(60), "", 3)]
    over = next_of(view("SCALE_IN", FULL, replies=rounds(3, by=0)))
    assert over.failed == "no host is free after 3 rounds of SCALE_IN, and no VM can be replaced"


def test_without_answers_the_end_of_lifetimes_is_waited_for_where_that_is_wanted() -> None:
    for asked in (rounds(3, by=0), rounds(3, by=0, answer=None)):
        found = next_of(view("SCALE_IN", FULL, replies=asked, metadata=SILENT))
        assert found == Next(waits_for="a to be free of vm-1 (ada)", until=at(3600))


def test_a_second_visit_asks_again() -> None:
    before = {("ada", "SCALE_IN", "", 1): reply(True, asked=-100, by=-40)}
    assert told(view("SCALE_IN", FULL, replies=before)) == [("ada", "SCALE_IN", at(60), "", 2)]


# PREPARE_MAINTENANCE and PLANNED_MAINTENANCE: pick a host, notify its projects, move instances -> START

EMPTYING = pytest.mark.parametrize("state", ["PREPARE_MAINTENANCE", "PLANNED_MAINTENANCE"])


@EMPTYING
def test_the_next_host_is_taken_out_of_service(state: str) -> None:
    hosts = [host(name, "waiting", vm(f"vm-{name}")) for name in "abc"]
    assert acts(view(state, *hosts)) == [Drain("a")]
    # What is ready for the VMs of the second one is known when the first is out of service.
    assert acts(view(state, *hosts, metadata={"max_unavailable": 2})) == [Drain("a")]
    hosts[0] = host("a", "draining", vm("vm-a", ""))
    assert acts(view(state, *hosts, metadata={"max_unavailable": 2})) == [Drain("b")]
    assert acts(view(state, host("a", "draining", vm("1")), *hosts[1:])) == []


@EMPTYING
def test_the_projects_of_a_host_are_asked_what_becomes_of_their_vms(state: str) -> None:
    a = host("a", "draining", vm("vm-1", "ada"), vm("vm-2", "bob"), vm("vm-3", ""), machine("a", "carol"))
    assert told(view(state, a, host("b", "waiting", vm("vm-4", "dora")))) == [
        ("ada", state, at(60), "a", 1),
        ("bob", state, at(60), "a", 1),
        ("carol", state, at(60), "a", 1),
    ]
    notice = next_of(view(state, a)).do[0]
    assert isinstance(notice, Notify)
    assert (notice.instances, notice.allowed_actions) == (("vm-1",), (MIGRATE, OWN))


@EMPTYING
@pytest.mark.parametrize(
    ("instance", "said", "moves"),
    [
        (vm("1"), {}, [Move("1", MIGRATE)]),
        (vm("1"), {"1": MIGRATE}, [Move("1", MIGRATE)]),
        (vm("1"), {"1": OWN}, []),
        (vm("1"), {"1": LIVE}, [Move("1", MIGRATE)]),
        (vm("1", allowed=frozenset(InstanceAction)), {"1": LIVE}, [Move("1", LIVE)]),
        (machine("1"), {}, []),
        (machine("1"), {"1": MIGRATE}, []),
        (vm("1", move=MoveState.WAITING), {}, []),
        (vm("1", allowed=frozenset(InstanceAction)), {}, [Move("1", LIVE)]),
        (vm("1", allowed=frozenset(InstanceAction)), {"1": OWN}, []),
        # Nobody has asked for it to be done live.
        (vm("1", allowed=frozenset(InstanceAction), move=MoveState.FAILED, move_how=LIVE), {}, [Move("1", MIGRATE)]),
    ],
)
def test_what_becomes_of_an_instance(state: str, instance: Any, said: Any, moves: list[Any]) -> None:
    agreed = replies(state, "a", ada=reply(True, instance_actions=said))
    seen = view(state, host("a", "draining", instance), replies=agreed)
    assert acts(seen) == moves
    found = next_of(seen)
    assert (found.state, found.failed) == (None, None)
    assert found.waits_for == "a to be free of 1 (ada)"
    assert found.until == instance.until


@EMPTYING
@pytest.mark.parametrize(("how", "said"), [(LIVE, {"1": LIVE}), (MIGRATE, {}), (MIGRATE, {"1": MIGRATE})])
def test_what_cannot_be_moved_as_its_project_wants_ends_the_session(state: str, how: Any, said: Any) -> None:
    one = vm("1", allowed=frozenset(InstanceAction), move=MoveState.FAILED, move_how=how, move_reason="no link")
    agreed = replies(state, "a", ada=reply(True, instance_actions=said))
    found = next_of(view(state, host("a", "draining", one), replies=agreed))
    assert found == Next(failed="1 cannot be moved from a: no link")


@pytest.mark.parametrize("begun", [False, True])
def test_nothing_begins_on_a_host_while_vms_come_or_go_there(begun: bool) -> None:
    a = host("a", "draining" if begun else "waiting", settled=False)
    found = next_of(view("START_MAINTENANCE", a))
    if begun:
        assert found == Next(waits_for="VMs that are just made, moved or destroyed on a")
    else:
        assert found.do == (Drain("a"),)


@EMPTYING
@pytest.mark.parametrize(
    ("answer", "no_answer", "failed"),
    [
        (reply(False, answer="NACK_IT"), "fail", "ada does not agree to {state}: NACK_IT"),
        (reply(None, by=0), "fail", "ada has not answered to {state} in time"),
        (reply(None, by=0), "wait", None),
        (reply(None, by=9), "fail", None),
    ],
)
def test_an_answer_about_a_host(state: str, answer: Any, no_answer: str, failed: str | None) -> None:
    answered = replies(state, "a", ada=answer)
    a = host("a", "draining", vm("vm-1"))
    found = next_of(view(state, a, replies=answered, metadata={"no_answer": no_answer}))
    assert found.failed == (failed.format(state=state) if failed else None)
    assert found.do == () and found.state is None
    assert failed or found.waits_for.endswith("a to be free of vm-1 (ada)")


@EMPTYING
def test_what_is_nobodys_is_waited_for(state: str) -> None:
    found = next_of(view(state, host("a", "draining", vm("vm-1", ""))))
    assert found == Next(waits_for="a to be free of vm-1 (nobody)", until=at(3600))


@EMPTYING
def test_a_machine_in_use_is_waited_for_and_its_owner_told(state: str) -> None:
    agreed = replies(state, "a", ada=reply(True))
    found = next_of(view(state, host("a", "draining", machine("a")), replies=agreed))
    assert found == Next(waits_for="a to be free of a (ada)")


@EMPTYING
def test_the_time_that_a_host_may_take_to_be_free_is_limited_where_that_is_wanted(state: str) -> None:
    a, b = host("a", "draining", machine("a", "ada")), host("b", "waiting", machine("b"))
    agreed = replies(state, "a", ada=reply(True))
    waiting = next_of(view(state, a, b, replies=agreed, metadata={"host_timeout": 11}))
    assert (waiting.failed, waiting.until) == (None, at(1))
    over = next_of(view(state, a, b, replies=agreed, metadata={"host_timeout": 10}))
    assert over.failed == "a is still used by a (ada) after 10 s"


@EMPTYING
@pytest.mark.parametrize(
    "hosts",
    [
        (host("a", "draining"),),
        (host("a", "waiting", vm("1")), host("b")),
        (host("a", "draining", vm("1")), host("b", "draining")),
        (host("a", "maintaining"),),
        (host("a", "checking"),),
        (host("a", "done"),),
        (host("a", "skipped"),),
        (),
    ],
)
def test_with_a_host_that_is_free_it_goes_on(state: str, hosts: Any) -> None:
    assert next_of(view(state, *hosts, metadata={"max_unavailable": 3})) == Next(state="START_MAINTENANCE")


@EMPTYING
def test_a_free_host_has_to_wait_while_too_many_are_out_of_service(state: str) -> None:
    seen = view(state, host("a", "draining", vm("1", "")), host("b"))
    assert next_of(seen) == Next(waits_for="a to be free of 1 (nobody)", until=at(3600))


@EMPTYING
def test_what_was_answered_about_a_host_counts_in_the_other_state_too_while_it_stays_out_of_service(state: str) -> None:
    a = host("a", "draining", vm("1"))
    for asked_in in ("PREPARE_MAINTENANCE", "PLANNED_MAINTENANCE"):
        agreed = replies(asked_in, "a", ada=reply(True))
        assert next_of(view(state, a, replies=agreed)).do == (Move("1", MIGRATE),)
    before = replies(state, "a", ada=reply(True, asked=-20))
    assert told(view(state, a, replies=before)) == [("ada", state, at(60), "a", 2)]


@pytest.mark.parametrize(
    ("state", "then"),
    [
        ("PREPARE_MAINTENANCE", Next(state="SCALE_IN")),
        ("PLANNED_MAINTENANCE", Next(failed="no VM is ready elsewhere to take the place of those on a")),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_without_a_place_for_its_vms_it_is_patient_and_then_cannot(state: str, then: Next, begun: bool) -> None:
    a = host("a", "draining" if begun else "waiting", vm("1"), replaceable=False)
    agreed = replies(state, "a", ada=reply(True))
    what = "VMs that are ready elsewhere to take the place of those on a"
    waits = f"a to be free of 1 (ada); {what}" if begun else what
    assert next_of(view(state, a, replies=agreed)) == Next(waits_for=waits, until=at(50))
    assert next_of(view(state, a, replies=agreed, entered=at(-60), now=at(50))) == then


@EMPTYING
def test_a_host_is_emptied_whose_own_ready_vms_will_be_made_anew_elsewhere(state: str) -> None:
    a, b = (host(name, "waiting", vm(name), replaceable=False, remade=True) for name in "ab")
    agreed = replies("MAINTENANCE", ada=reply(True))
    assert next_of(view("MAINTENANCE", a, replies=agreed)).state == "PREPARE_MAINTENANCE"
    two = {"max_unavailable": 2}
    assert acts(view(state, a, b, metadata=two)) == [Drain("a")]
    # One after the other: they would be made on the other one.
    draining = host("a", "draining", vm("a"), replaceable=False, remade=True)
    agreed = replies(state, "a", ada=reply(True))
    found = next_of(view(state, draining, b, replies=agreed, metadata=two))
    what = "a to be free of a (ada); VMs that are ready elsewhere to take the place of those on a"
    assert found == Next(waits_for=what, until=at(50))
    # As long as they are being made, it is waited for.
    assert next_of(view(state, draining, replies=agreed, entered=at(-1000), now=at(900))).waits_for == what
    # In SCALE_IN it is not tried again before they are there.
    assert next_of(view("SCALE_IN", draining)).state is None


@EMPTYING
def test_moves_that_have_begun_are_waited_for_however_long_they_take(state: str) -> None:
    a = host("a", "draining", vm("1", move=MoveState.WAITING), vm("2"), replaceable=False)
    agreed = replies(state, "a", ada=reply(True))
    found = next_of(view(state, a, replies=agreed, entered=at(-1000)))
    assert found == Next(do=(Move("2", MIGRATE),), waits_for="a to be free of 1 (ada), 2 (ada)", until=at(3600))


@EMPTYING
def test_one_host_that_is_stuck_does_not_end_what_goes_on_with_another(state: str) -> None:
    hosts = host("a", "draining", machine("a")), host("b", "draining", vm("1"), replaceable=False)
    agreed = replies(state, "a", ada=reply(True)) | replies(state, "b", ada=reply(True))
    found = next_of(view(state, *hosts, replies=agreed, entered=at(-1000), metadata={"max_unavailable": 2}))
    assert (found.state, found.failed) == (None, None) and found.waits_for


@pytest.mark.parametrize(
    "state", ["SCALE_IN", "PREPARE_MAINTENANCE", "PLANNED_MAINTENANCE", "START_MAINTENANCE", "MAINTENANCE_COMPLETE"]
)
def test_a_host_that_has_failed_ends_the_session_and_none_is_begun(state: str) -> None:
    hosts = host("a", "failed", reason="exit 1"), host("b"), host("c", "waiting", vm("1"))
    assert next_of(view(state, *hosts, metadata={"max_unavailable": 3})) == Next(failed="a: exit 1")


# START_MAINTENANCE: maintain the empty hosts; hosts left -> PLANNED_MAINTENANCE, none -> MAINTENANCE_COMPLETE


@pytest.mark.parametrize(
    ("hosts", "most", "do"),
    [
        ((host("a"), host("b")), 1, [Drain("a")]),
        ((host("a"), host("b"), host("c")), 2, [Drain("a"), Drain("b")]),
        ((host("a", "waiting", vm("1")), host("b")), 1, [Drain("b")]),
        ((host("a", "draining"), host("b")), 1, [Run(ActionType.HOST, "a")]),
        ((host("a", "draining"), host("b")), 2, [Run(ActionType.HOST, "a"), Drain("b")]),
        ((host("a", "draining", vm("1")), host("b")), 2, [Drain("b")]),
        ((host("a", "maintaining", actions=Progress.NONE), host("b")), 1, [Run(ActionType.HOST, "a")]),
        ((host("a", "maintaining", actions=Progress.RUNNING), host("b")), 1, []),
        ((host("a", "maintaining", actions=Progress.DONE), host("b")), 1, [Run(ActionType.CHECK, "a")]),
        ((host("a", "checking", check=Progress.NONE), host("b")), 1, [Run(ActionType.CHECK, "a")]),
        ((host("a", "checking", check=Progress.RUNNING), host("b")), 1, []),
        ((host("a", "checking", check=Progress.DONE), host("b")), 1, [Return("a")]),
        ((host("a", "done"), host("b")), 1, [Drain("b")]),
        ((host("a", "skipped"), host("b")), 1, [Drain("b")]),
        ((host("a", "maintaining", actions=Progress.FAILED, reason="x"), host("b")), 2, [FailHost("a", "x")]),
        ((host("a", "maintaining", actions=Progress.FAILED), host("b")), 2, [FailHost("a", "an action failed")]),
        ((host("a", "checking", check=Progress.FAILED), host("b")), 2, [FailHost("a", "its check failed")]),
    ],
)
def test_what_is_done_with_hosts(hosts: Any, most: int, do: list[Any]) -> None:
    found = next_of(view("START_MAINTENANCE", *hosts, metadata={"max_unavailable": most}))
    assert (list(found.do), found.state, found.failed) == (do, None, None)
    assert do or found.waits_for


@pytest.mark.parametrize(
    ("hosts", "then"),
    [
        ((), Next(state="MAINTENANCE_COMPLETE")),
        ((host("a", "done"), host("b", "skipped")), Next(state="MAINTENANCE_COMPLETE")),
        ((host("a", "done"), host("b", "waiting", vm("1"))), Next(state="PLANNED_MAINTENANCE")),
        ((host("a", "draining", vm("1")), host("b")), Next(state="PLANNED_MAINTENANCE")),
        ((host("a", "failed", reason="x"), host("b", "done")), Next(failed="a: x")),
        ((host("a", "failed"), host("b", "failed", reason="y")), Next(failed="a: it has failed; b: y")),
    ],
)
def test_where_it_goes_after_the_free_hosts(hosts: Any, then: Next) -> None:
    assert next_of(view("START_MAINTENANCE", *hosts)) == then


def test_a_host_beside_one_that_failed_is_seen_through_before_the_session_ends() -> None:
    hosts = (
        host("a", "failed", reason="x"),
        host("b", "checking", check=Progress.DONE),
        host("c", "maintaining", actions=Progress.DONE),
        host("d"),
    )
    found = next_of(view("START_MAINTENANCE", *hosts, metadata={"max_unavailable": 4}))
    assert list(found.do) == [Return("b"), Run(ActionType.CHECK, "c")] and found.failed is None


# MAINTENANCE_COMPLETE: notify; ACK within 60 s (projects may scale up) -> MAINTENANCE_DONE

OVER = (host("a", "done"), host("b", "skipped", vm("vm-1", "new")))


def test_post_actions_run_and_then_all_who_were_told_are_told_that_it_is_over() -> None:
    before = replies("MAINTENANCE", ada=reply(True), bob=reply(True)) | replies("PLANNED_MAINTENANCE", "a", eve=reply())
    seen = {"replies": before | replies("SCALE_IN", early=reply(True, asked=None))}
    assert next_of(view("MAINTENANCE_COMPLETE", *OVER, post=Progress.NONE, **seen)).do == (Run(ActionType.POST),)
    found = next_of(view("MAINTENANCE_COMPLETE", *OVER, post=Progress.FAILED, reason="x", **seen))
    assert found == Next(failed="x")
    assert told(view("MAINTENANCE_COMPLETE", *OVER, **seen)) == [
        (project, "MAINTENANCE_COMPLETE", at(60), "", 1) for project in ("ada", "bob", "eve")
    ]


def test_with_nobody_to_tell_it_is_over_at_once() -> None:
    assert next_of(view("MAINTENANCE_COMPLETE", *OVER)) == Next(state="MAINTENANCE_DONE")


@pytest.mark.parametrize(
    ("answer", "no_answer", "then"),
    [
        (reply(True), "fail", Next(state="MAINTENANCE_DONE")),
        (reply(None), "fail", Next(waits_for="the answer of ada", until=at(15))),
        (reply(None, by=0), "wait", Next(state="MAINTENANCE_DONE")),
        (reply(None, by=0), "fail", Next(failed="ada has not answered to MAINTENANCE_COMPLETE in time")),
        (reply(False), "wait", Next(failed="ada does not agree to MAINTENANCE_COMPLETE: it said no")),
    ],
)
def test_an_answer_to_the_end(answer: Any, no_answer: str, then: Next) -> None:
    answered = replies("MAINTENANCE_COMPLETE", ada=answer)
    assert next_of(view("MAINTENANCE_COMPLETE", *OVER, replies=answered, metadata={"no_answer": no_answer})) == then


@pytest.mark.parametrize("state", ["waiting", "draining", "maintaining", "checking"])
def test_hosts_that_were_added_at_the_end_are_maintained_too(state: str) -> None:
    assert next_of(view("MAINTENANCE_COMPLETE", *OVER, host("c", state))) == Next(state="START_MAINTENANCE")


# Hints


@pytest.mark.parametrize(
    ("metadata", "wrong"),
    [
        ({}, []),
        ({"openstack_release": "Queens"}, []),
        ({"max_unavailable": 3, "no_answer": "wait", "gate": "none", "host_timeout": 60.5}, []),
        *(({"max_unavailable": value}, ["max_unavailable"]) for value in (0, -1, "1", 1.5, True, None, [1])),
        *(({"no_answer": value}, ["no_answer"]) for value in ("", "ignore", 1, None, [], {})),
        *(({"gate": value}, ["gate"]) for value in ("pong", False)),
        *(({"host_timeout": value}, ["host_timeout"]) for value in (0, -5, "1", True, float("nan"))),
        ({"gate": "x", "max_unavailable": 0, "no_answer": 5}, ["max_unavailable", "no_answer", "gate"]),
    ],
)
def test_every_mistake_in_the_hints_is_named(metadata: Any, wrong: list[str]) -> None:
    assert [line.partition(":")[0] for line in WORKFLOW.check(metadata)] == wrong
    # What got there all the same does no harm.
    assert next_of(view("START_MAINTENANCE", host("a"), host("b"), metadata=metadata)).do[0] == Drain("a")


def test_much_that_is_waited_for_is_told_in_few_words() -> None:
    a = host("a", "draining", *(vm(f"vm-{number}", "") for number in range(8)))
    found = next_of(view("PLANNED_MAINTENANCE", a))
    assert found.waits_for == "a to be free of " + "".join(f"vm-{n} (nobody), " for n in range(5))[:-2] + " and 3 more"


def test_all_states_of_hosts_are_met_here() -> None:
    assert {state.value for state in HostState} == {
        *("waiting", "draining", "maintaining", "checking", "done", "failed", "skipped")
    }
