"""An engine of sessions that is killed at each of its commits: another one brings the session to its end."""

import json
import subprocess
import sys
from pathlib import Path

from sqlalchemy import Engine

ROOT = Path(__file__).resolve().parents[2]
STATES = {
    "MAINTENANCE",
    "START_MAINTENANCE",
    "PLANNED_MAINTENANCE",
    "MAINTENANCE_COMPLETE",
    "MAINTENANCE_DONE",
}


def test_wherever_an_engine_is_killed_the_next_ones_bring_the_session_to_its_end(
    committed: Engine, database_url: str
) -> None:
    command = [sys.executable, "-m", "tests.acceptance.maintenance_steps", database_url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    assert found["killed"]["after a commit"] > 30
    assert found["states"].keys() == STATES
