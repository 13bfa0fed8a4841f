"""What clients may say about queues, and the shapes they get."""

from typing import Any

import pytest
from pydantic import ValidationError

from labctl.queues import wire
from labctl.queues.models import Queue


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 1e12, "long", None, []])
def test_a_bad_length_of_a_pause_is_refused_by_name(seconds: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        wire.PauseInput.model_validate({"queue": "q", "paused_by": "ada", "pause_duration": seconds})
    assert [error["loc"] for error in refused.value.errors()] == [("pause_duration",)]


def test_a_queue_whose_pause_is_over_is_shown_as_not_paused(stopped_clock: Any) -> None:
    queue = Queue(name="q", paused_by="ada", paused_since=stopped_clock(), paused_until=stopped_clock())
    assert wire.queue_to_wire(queue) == {
        "queue": "q",
        "paused": False,
        "paused_by": None,
        "paused_since": None,
        "paused_until": None,
    }
