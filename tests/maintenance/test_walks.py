"""Sessions of the default workflow in worlds that chance has made: whatever happens, nothing of value is lost."""

from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labctl.maintenance.workflows.default import DefaultWorkflow

from .world import Manners, World

LIKELY = st.sampled_from([0.0, 0.02, 0.1, 0.5, 0.9, 1.0])
#: Whoever never gives anything back may be waited for for ever: that ends here.
LEAVES = st.sampled_from([0.1, 0.5, 1.0])
MANNERS = st.builds(
    Manners, LIKELY, LIKELY, LIKELY, LIKELY, LEAVES, st.sampled_from([0.0, 0.02, 0.1]), LIKELY, LIKELY,
    st.sampled_from([0.0, 0.02, 0.1]),
)  # fmt: skip
HINTS = st.fixed_dictionaries(
    {"max_unavailable": st.integers(1, 4), "no_answer": st.sampled_from(["fail", "wait"])},
    optional={"host_timeout": st.sampled_from([1, 100, 10000])},
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.integers(0, 2**32), MANNERS, HINTS, st.integers(0, 5))
def test_whatever_happens_a_session_ends_and_keeps_the_promises(
    seed: int, manners: Manners, hints: dict[str, Any], number: int
) -> None:
    # The world checks the promises: not too many out of service, nobody on a host, no host after a failed one ...
    world = World(DefaultWorkflow(), Random(seed), hints, manners, number)
    world.run(10_000)
    assert world.ended
