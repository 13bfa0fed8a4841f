from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, update
from webtest import TestApp

from labctl import app as application
from labctl.db import reading, transaction
from labctl.errors import Exhausted, LabError, NotFound
from labctl.events.models import Event
from labctl.pools import Pool
from labctl.settings import Settings
from labctl.tokens import service as tokens
from labctl.vms import checkout as giving
from labctl.vms import on_demand, service
from labctl.vms.catalog import Catalog, deal
from labctl.vms.checkout import Contended
from labctl.vms.models import VM, TagDay, VMRequest
from labctl.vms.service import Caller, Change, Host, Terms
from labctl.vms.states import RequestState, VMState
from tests.vms.factories import make_settings, make_vm

THREADS = 64
AtOnce = Callable[[list[Callable[[], Any]]], list[Any]]
pytestmark = pytest.mark.usefixtures("committed")

POOLS = [
    Pool(name="a", alias=["any", "ab"]),
    Pool(name="b", alias=["any", "ab", "bc"]),
    Pool(name="c", alias=["any", "bc"]),
]
CATALOG = Catalog(POOLS)
#: What clients ask for, in turns.
BUNDLES: list[dict[str, int]] = [
    {"a": 1},
    {"a": 2, "b": 1},
    {"b": 1, "a": 1, "c": 1},
    {"c": 3},
    {"c": 1, "b": 2},
    {"b": 1},
]


def fill(**numbers: int) -> None:
    with transaction() as session:
        for pool, number in numbers.items():
            for _ in range(number):
                make_vm(session, pool=pool)


def take(wanted: dict[str, int], by: str | None = None) -> dict[str, list[str]] | LabError:
    """Give the names of the VMs that were given out, or the error."""

    def attempt(alone: bool) -> giving.Given:
        with transaction() as session:
            return giving.checkout(session, CATALOG.asked(wanted), Caller(by), Terms(1), alone=alone)

    try:
        given = giving.patiently(attempt)
    except LabError as error:
        return error
    return {name: [vm.name for vm in vms] for name, vms in given.items()}


def names(results: list[Any]) -> list[str]:
    """List all VMs that were given out."""
    return [name for given in results if isinstance(given, dict) for vms in given.values() for name in vms]


def states() -> Counter[str]:
    with reading() as session:
        return Counter(session.scalars(select(VM.state)))


def check(bundles: list[dict[str, int]], results: list[Any], total: int) -> None:
    """Nothing was given twice, nobody got a part, and the database says the same."""
    given = names(results)
    assert len(given) == len(set(given))
    for wanted, result in zip(bundles, results, strict=True):
        if isinstance(result, dict):
            assert {name: len(vms) for name, vms in result.items()} == wanted
    assert states() == Counter({"running": len(given), "ready": total - len(given)}) - Counter()
    with reading() as session:
        assert set(session.scalars(select(VM.name).where(VM.state == VMState.RUNNING))) == set(given)
        assert session.scalar(select(func.count()).where(Event.kind == "vm.checked_out")) == len(given)


def check_refusals(bundles: list[dict[str, int]], results: list[Any]) -> None:
    """Whoever got nothing could not have got it, even with what is left."""
    with reading() as session:
        left = Counter(session.scalars(select(VM.pool).where(VM.state == VMState.READY)))
    for wanted, result in zip(bundles, results, strict=True):
        if not isinstance(result, dict):
            assert isinstance(result, Exhausted)
            assert deal(CATALOG.asked(wanted), left) is None


@pytest.mark.parametrize("attempt", range(4))
def test_many_who_want_mixed_bundles_at_once_all_get_them_while_there_is_enough(at_once: AtOnce, attempt: int) -> None:
    bundles = [BUNDLES[(number + attempt) % len(BUNDLES)] for number in range(THREADS)]
    need: Counter[str] = Counter()
    for wanted in bundles:
        need.update(wanted)
    fill(**need)
    results = at_once([lambda wanted=wanted: take(wanted) for wanted in bundles])
    assert [result for result in results if isinstance(result, LabError)] == []
    check(bundles, results, need.total())
    assert states() == {"running": need.total()}


@pytest.mark.parametrize("attempt", range(4))
def test_many_who_want_more_than_there_is_get_all_or_nothing(at_once: AtOnce, attempt: int) -> None:
    bundles = [BUNDLES[(number + attempt) % len(BUNDLES)] for number in range(THREADS)]
    fill(a=20, b=20, c=20)
    results = at_once([lambda wanted=wanted: take(wanted) for wanted in bundles])
    check(bundles, results, 60)
    check_refusals(bundles, results)


@pytest.mark.parametrize("attempt", range(3))
def test_of_many_who_want_everything_one_gets_it(at_once: AtOnce, attempt: int) -> None:
    fill(a=100, b=100)
    bundles = [{"a": 100, "b": 100}] * 16
    results = at_once([lambda wanted=wanted: take(wanted) for wanted in bundles])
    assert [isinstance(result, dict) for result in results].count(True) == 1
    assert [type(result) for result in results].count(Exhausted) == 15
    check(bundles, results, 200)


@pytest.mark.parametrize("attempt", range(4))
def test_aliases_that_overlap_do_not_refuse_anybody_while_there_is_enough(at_once: AtOnce, attempt: int) -> None:
    # Whatever the first ones take of b, there is enough for everybody in a or in c, and all of it is needed.
    bundles = [({"ab": 1, "bc": 1}, {"bc": 2, "ab": 1}, {"any": 1})[number % 3] for number in range(48)]
    fill(a=16 + 8, b=128, c=16 + 8)
    results = at_once([lambda wanted=wanted: take(wanted) for wanted in bundles])
    assert [result for result in results if isinstance(result, LabError)] == []
    check(bundles, results, 176)


@pytest.mark.parametrize("attempt", range(4))
def test_aliases_that_overlap_give_all_or_nothing(at_once: AtOnce, attempt: int) -> None:
    bundles = [({"ab": 2, "bc": 1}, {"bc": 2, "b": 1}, {"any": 3, "a": 1})[number % 3] for number in range(48)]
    fill(a=20, b=20, c=20)
    results = at_once([lambda wanted=wanted: take(wanted) for wanted in bundles])
    check(bundles, results, 60)
    check_refusals(bundles, results)


def test_what_is_given_back_while_others_take_is_never_given_again(at_once: AtOnce) -> None:
    fill(a=200)
    taken: list[str] = []

    def borrow(by: str) -> None:
        for _ in range(6):
            given = take({"a": 1}, by)
            assert isinstance(given, dict)
            taken.extend(given["a"])
            with transaction() as session:
                service.release(session, Host(given["a"][0]), Caller(by))

    at_once([lambda n=n: borrow(f"user{n}") for n in range(32)])
    assert len(taken) == len(set(taken)) == 192
    assert states() == {"completed": 192, "ready": 8}


def test_of_many_who_give_a_vm_back_one_does(at_once: AtOnce) -> None:
    fill(a=1)
    given = take({"a": 1})
    assert isinstance(given, dict)

    def release() -> LabError | None:
        try:
            with transaction() as session:
                service.release(session, Host(given["a"][0]), Caller())
        except NotFound as error:
            return error
        return None

    results = at_once([release] * 16)
    assert results.count(None) == 1
    with reading() as session:
        assert session.scalar(select(func.count()).where(Event.kind == "vm.completed")) == 1


def test_an_engine_that_writes_to_ready_vms_keeps_nobody_from_taking_them(at_once: AtOnce) -> None:
    fill(a=64)

    def look() -> None:
        for _ in range(50):
            with transaction() as session:
                pick = select(VM.id).where(VM.state == VMState.READY).order_by(VM.id).limit(8)
                ids = session.scalars(pick.with_for_update(skip_locked=True)).all()
                session.execute(update(VM).where(VM.id.in_(ids), VM.state == VMState.READY).values(due=func.now()))

    def take_some() -> list[Any]:
        return [take({"a": 1}) for _ in range(4)]

    results = at_once([look, *[take_some] * 16])[1:]
    given = names([each for some in results for each in some])
    assert len(given) == len(set(given)) == 64


def test_a_checkout_waits_for_nobody_and_holds_nothing_when_it_fails(
    committed: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(giving, "PATIENCE", 0.0)
    fill(a=3)
    with committed.connect() as holder:
        holder.execute(select(VM.id).order_by(VM.id).limit(1).with_for_update())
        assert isinstance(take({"a": 3}), Contended)
        given = take({"a": 2})
        assert isinstance(given, dict)
        holder.rollback()
    assert isinstance(take({"a": 1}), dict)


def test_what_somebody_lets_go_a_moment_later_is_given(committed: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(a=2)
    with committed.connect() as holder:
        holder.execute(select(VM.id).order_by(VM.id).limit(1).with_for_update())
        monkeypatch.setattr("labctl.vms.checkout.time.sleep", lambda seconds: holder.rollback())
        assert isinstance(take({"a": 2}), dict)


def test_tags_that_many_set_in_opposite_orders_are_all_counted(at_once: AtOnce) -> None:
    fill(a=16)
    given = take({"a": 16})
    assert isinstance(given, dict)
    tags = {f"tag{number}": "x" for number in range(20)}

    def tag(name: str, backwards: bool) -> None:
        wanted = dict(reversed(tags.items())) if backwards else tags
        with transaction() as session:
            service.change(session, Host(name), Caller(), Change(tags=wanted), 1)

    at_once([lambda n=n, v=v: tag(v, n % 2 == 0) for n, v in enumerate(given["a"])])
    with reading() as session:
        assert set(session.execute(select(TagDay.count)).scalars()) == {16}


def test_of_many_who_use_one_request_id_one_gets_it(at_once: AtOnce) -> None:
    def ask() -> str | None:
        try:
            with transaction() as session:
                limits = on_demand.Limits(10, 15)
                return on_demand.ask(session, CATALOG, CATALOG.asked({"a": 2}), Caller("u"), limits, "mine")
        except LabError:
            return None

    results = at_once([ask] * 16)
    assert Counter(results) == {"mine": 1, None: 15}
    assert states() == {"requested": 2}


def test_a_request_is_ended_once_whoever_takes_it_back_meanwhile(at_once: AtOnce) -> None:
    with transaction() as session:
        on_demand.ask(session, CATALOG, CATALOG.asked({"a": 5}), Caller("u"), on_demand.Limits(10, 15), "mine")
    with transaction() as session:
        session.execute(update(VM).values(state=VMState.RUNNING, checkout=func.now()))

    def finish() -> int:
        with transaction() as session:
            return on_demand.finish(session)

    def take_back() -> int:
        with transaction() as session:
            on_demand.take_back(session, "mine", Caller("u"))
        return 0

    results = at_once([finish] * 6 + [take_back] * 2)
    assert sum(results) <= 1
    assert states() == {"completed": 5}
    with reading() as session:
        assert session.scalar(select(VMRequest.state)) == RequestState.DELETED
        assert session.scalar(select(func.count()).where(Event.kind == "vm_request.deleted")) == 1


def test_a_token_that_is_revoked_while_vms_are_taken_with_it_breaks_nothing(
    at_once: AtOnce, settings: Settings
) -> None:
    app = TestApp(application.make_app(make_settings(settings, pools=POOLS)))
    fill(a=32)
    with transaction() as session:
        tokens.add_user(session, "jdoe")
        secret = tokens.create_token(session, "jdoe")

    def post() -> int:
        return int(app.post("/api/vm/a", headers={"X-AUTH-TOKEN": secret}, status="*").status_int)

    def revoke() -> int:
        with transaction() as session:
            tokens.revoke_token(session, secret)
        return 0

    statuses = Counter(at_once([*[post] * 16, revoke]))
    assert set(statuses) <= {0, 200, 401}
    assert states()["running"] == statuses[200]


def test_the_whole_application_gives_bundles_to_many_at_once(at_once: AtOnce, settings: Settings) -> None:
    app = TestApp(application.make_app(make_settings(settings, pools=POOLS)))
    # Those who want any take from a before they take from others.
    fill(a=96, b=128, c=128)

    def post(wanted: dict[str, int]) -> Any:
        answer = app.post_json("/api/v1/vm", wanted, status="*")
        return answer.status_int, [host for name in wanted for host in _listed(answer.json[name]["hostname"])]

    results = at_once([lambda n=n: post({"any": 2, "b": 1} if n % 2 else {"a": 1, "c": 1}) for n in range(THREADS)])
    assert {status for status, _ in results} == {200}
    given = [host for _, hosts in results for host in hosts]
    assert len(given) == len(set(given)) == 160
    assert states()["running"] == 160


def _listed(hosts: Any) -> list[str]:
    return hosts if isinstance(hosts, list) else [hosts]
