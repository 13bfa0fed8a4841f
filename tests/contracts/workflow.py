"""What every workflow must do: a subclass says how to make one, and runs all of these."""

from collections.abc import Mapping
from random import Random
from typing import Any, ClassVar

import pytest

from labctl.maintenance.states import DONE, FAILED, FIRST, HostState
from labctl.maintenance.workflow import Workflow
from tests.maintenance.views import host, view
from tests.maintenance.world import KIND, Manners, World


class WorkflowContract:
    """Subclass as ``Test...`` and give ``workflow``, and what must be in ``metadata`` besides the common hints."""

    metadata: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture
    def workflow(self) -> Workflow:
        raise NotImplementedError

    def world(self, workflow: Workflow, seed: int, manners: Manners, **metadata: Any) -> World:
        chance = Random(seed)
        return World(workflow, chance, {**self.metadata, **metadata}, manners, number=chance.randrange(5))

    def test_it_begins_in_the_first_state_and_needs_no_step_for_the_last_ones(self, workflow: Workflow) -> None:
        assert FIRST in workflow.steps
        assert not {DONE, FAILED} & workflow.steps.keys()

    def test_it_finds_nothing_wrong_with_hints_that_it_need_not_know(self, workflow: Workflow) -> None:
        assert workflow.check({**self.metadata, "openstack_release": "Queens"}) == []

    @pytest.mark.parametrize("metadata", [{"max_unavailable": 0}, {"max_unavailable": "all"}])
    def test_it_names_the_hints_that_are_wrong(self, workflow: Workflow, metadata: Mapping[str, Any]) -> None:
        mistakes = workflow.check({**self.metadata, **metadata})
        assert [line.partition(":")[0] for line in mistakes] == ["max_unavailable"]

    def test_with_no_hosts_it_comes_to_its_end(self, workflow: Workflow) -> None:
        world = World(workflow, Random(1), dict(self.metadata), KIND, number=0).run()
        assert (world.state, world.failed) == (DONE, None)

    @pytest.mark.parametrize("most", [1, 2, 3])
    @pytest.mark.parametrize("seed", range(20))
    def test_where_everybody_agrees_and_nothing_fails_all_hosts_are_maintained_once(
        self, workflow: Workflow, seed: int, most: int
    ) -> None:
        world = self.world(workflow, seed, KIND, max_unavailable=most)
        # The time of the answers is not over before it begins.
        world.maintenance_at = world.now
        world.run()
        assert (world.state, world.failed) == (DONE, None)
        assert {one.state for one in world.hosts.values()} <= {HostState.DONE}
        assert len(world.ran) == len(set(world.ran)) == 2 * len(world.hosts) + 2

    @pytest.mark.parametrize("seed", range(100))
    def test_whatever_the_world_answers_it_ends_and_what_it_waits_for_is_named(
        self, workflow: Workflow, seed: int
    ) -> None:
        rude = Manners(agree=0.7, answer=0.7, early=0.3, fail=0.1, ready=0.5, move_fails=0.3, add_host=0.1)
        hints = {"max_unavailable": 1 + seed % 3, "no_answer": ("fail", "wait")[seed % 2]}
        world = self.world(workflow, seed, (Manners(), rude)[seed % 2], **hints).run()
        assert world.state == DONE or world.failed

    def test_it_asks_for_nothing_twice_however_often_it_is_asked(self, workflow: Workflow) -> None:
        world = self.world(workflow, 5, KIND)
        world.settle()
        before = (dict(world.hosts), dict(world.replies), list(world.ran))
        for _ in range(5):
            world.settle()
        assert (dict(world.hosts), dict(world.replies), list(world.ran)) == before

    def test_it_takes_hosts_that_others_have_skipped_or_done_as_they_are(self, workflow: Workflow) -> None:
        for state, step in workflow.steps.items():
            what = step(view(state, host("a", "skipped"), host("b", "done"), metadata=self.metadata))
            assert what.failed is None
            assert not any(hasattr(want, "host") and want.host for want in what.do)
