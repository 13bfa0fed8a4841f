"""Maintenance sessions with real processes: the worker is killed in every state, and the session comes to its end."""

from collections import Counter
from collections.abc import Iterator

import pytest

from .lab import until
from .maintenance_lab import HOSTS, HYPERVISORS, LONG, MaintenanceLab, running

#: Seconds of a round of SCALE_IN.
ROUND = 3


@pytest.fixture
def lab() -> Iterator[MaintenanceLab]:
    """Each test has its own: the pause before a worker is started again doubles with every kill."""
    with running() as lab:
        yield lab


@pytest.fixture
def full_lab() -> Iterator[MaintenanceLab]:
    """One in which all the VMs that there is room for are somebody's, two on each hypervisor."""
    with running(vms=4, provider={"capacity": 4}, replies={"SCALE_IN": ROUND}) as lab:
        for owner, host in (("ada", "hv1"), ("carol", "hv1"), ("bob", "hv2"), ("bob", "hv2")):
            lab.give(owner, host)
        no_room = "SELECT 1 FROM vms WHERE state = 'requested' AND reason IS NOT NULL"
        until(lambda: len(lab.sql(no_room)) == 4, "there is no room for more")
        yield lab


def test_a_session_whose_worker_is_killed_in_every_state_does_everything_once(lab: MaintenanceLab) -> None:
    sid = lab.begin(workflow="fake", metadata={"seconds": 2})
    found = lab.see_through(sid)

    assert found["state"] == "MAINTENANCE_DONE", found
    assert lab.killed == [
        "MAINTENANCE",
        "SCALE_IN",
        "PREPARE_MAINTENANCE",
        "START_MAINTENANCE",
        "PLANNED_MAINTENANCE",
        "MAINTENANCE_COMPLETE",
    ]
    lab.check_actions(sid, HOSTS)
    lab.check_service()


def test_so_does_one_that_has_to_move_somebodys_vm(lab: MaintenanceLab) -> None:
    vm, host = lab.give("ada")
    hosts = [host, "localhost", "alias"]
    sid = lab.begin(workflow="default", hosts=hosts)
    found = lab.see_through(sid, agree=True)

    assert found["state"] == "MAINTENANCE_DONE", found
    assert lab.killed == ["MAINTENANCE", "START_MAINTENANCE", "PLANNED_MAINTENANCE", "MAINTENANCE_COMPLETE"]
    lab.check_actions(sid, hosts)
    lab.check_service()
    (other,) = {*HYPERVISORS} - {host}
    assert lab.owned() == [("ada", other, {"of": "ada"})]
    assert [(move["instance"], move["state"]) for move in found["moves"]] == [(vm, "done")]


def test_so_does_one_that_finds_no_host_free_and_no_place_for_the_vms_there(full_lab: MaintenanceLab) -> None:
    lab = full_lab
    vms = {name for (name,) in lab.sql("SELECT name FROM vms WHERE owner IN ('ada', 'carol')")}
    sid = lab.begin(workflow="default", hosts=["hv1"], metadata={"no_answer": "wait"}, actions=[])

    def wait_until_asked(state: str, round: int = 1) -> None:
        asked = "SELECT 1 FROM maintenance_replies WHERE session_id = %s AND state = %s AND round = %s"
        until(lambda: len(lab.sql(asked, sid, state, round)) == 2, f"ada and carol are asked in {state} {round}", LONG)

    def looked_at() -> object:
        return lab.sql("SELECT due FROM maintenance_sessions WHERE id = %s", sid)

    def bob_needs_less() -> None:
        for (name,) in lab.sql("SELECT name FROM vms WHERE owner = 'bob'"):
            assert lab.ask("DELETE", f"/api/vm/{name}").status_code == 200
        lab.agree(sid)

    wait_until_asked("MAINTENANCE")
    lab.agree(sid)
    wait_until_asked("SCALE_IN")
    lab.kill(lab.up.worker, lambda: lab.agree(sid))
    # They have agreed, and it did not help.
    wait_until_asked("SCALE_IN", 2)
    lab.kill(lab.up.worker, bob_needs_less)
    wait_until_asked("PREPARE_MAINTENANCE")
    lab.kill(lab.up.worker)
    before = looked_at()
    until(lambda: looked_at() != before, "the next worker has gone on")
    assert lab.state(sid) == "PREPARE_MAINTENANCE"
    lab.kill(lab.up.worker, lambda: lab.agree(sid))
    found = lab.agree_until_ended(sid)

    assert found["state"] == "MAINTENANCE_DONE", found
    states = "SELECT data->>'state' FROM events WHERE kind = 'maintenance.state' ORDER BY seq"
    way = ["SCALE_IN", "PREPARE_MAINTENANCE", "START_MAINTENANCE", "MAINTENANCE_COMPLETE"]
    assert [state for (state,) in lab.sql(states)] == way
    assert [(host["state"], host["attempt"]) for host in found["hosts"]] == [("done", 1)]
    lab.check_service()
    assert lab.owned() == [("ada", "hv2", {"of": "ada"}), ("carol", "hv2", {"of": "carol"})]
    assert {move["instance"] for move in found["moves"]} == vms
    check_questions(lab, sid)


def check_questions(lab: MaintenanceLab, sid: str) -> None:
    """Look whether both projects were asked everything once, and SCALE_IN once in each round."""
    asked = "SELECT data->>'project', data->>'state', data->>'round' FROM events WHERE kind = 'maintenance.asked'"
    rounds = [*((state, "1") for state in ("MAINTENANCE", "PREPARE_MAINTENANCE", "MAINTENANCE_COMPLETE"))]
    rounds += [("SCALE_IN", "1"), ("SCALE_IN", "2")]
    once = Counter((project, *question) for project in ("ada", "carol") for question in rounds)
    # The third is the last, and comes if it takes long until there is room.
    third = Counter((project, "SCALE_IN", "3") for project in ("ada", "carol"))
    questions = Counter(lab.sql(asked))
    assert questions in (once, once + third)
    told = "SELECT project, body->>'state' FROM maintenance_notices WHERE session_id = %s AND body->>'reply_at' <> ''"
    assert Counter(lab.sql(told, sid)) == Counter((project, state) for project, state, _ in questions)


def test_a_command_that_its_worker_did_not_live_to_see_end_fails_the_session_which_can_be_continued(
    lab: MaintenanceLab,
) -> None:
    command = [{"plugin": "command", "type": "host", "metadata": {"command": "sleep 4", "hosts": ["alias"]}}]
    sid = lab.begin(workflow="default", hosts=["alias", "localhost"], actions=command)
    at_work = "SELECT 1 FROM remote_jobs WHERE state = 'running' AND key LIKE %s"
    until(lambda: lab.sql(at_work, f"maintenance/{sid}/0/alias/%"), "the command runs")
    lab.kill(lab.up.worker)
    until(lambda: lab.state(sid) == "MAINTENANCE_FAILED", "the session has failed", LONG)
    found = lab.ask("GET", f"/v1/maintenance/{sid}").json()
    # Nobody knows what was done there; so nothing is done again by itself.
    assert "the worker that carried this out was lost" in found["reason"]
    assert lab.sql("SELECT 1 FROM maintenance_hosts WHERE host = 'alias' AND state = 'failed' AND cordoned")

    assert lab.ask("PUT", f"/v1/maintenance/{sid}", json={}).status_code == 200
    until(lambda: lab.state(sid) == "MAINTENANCE_DONE", "the session is done", LONG)
    lab.check_service()
