"""An engine that is killed at each of its steps: another one brings everything in order, whatever the step was."""

import json
import subprocess
import sys
from pathlib import Path

from sqlalchemy import Engine

ROOT = Path(__file__).resolve().parents[2]


def test_wherever_an_engine_is_killed_the_next_ones_bring_everything_in_order(
    committed: Engine, database_url: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.acceptance.vm_steps", database_url, str(tmp_path / "world")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    killed = json.loads(done.stdout)

    assert killed.keys() == {"after a commit", "after a file", "after a removal"}
    assert killed["after a commit"] > 50 and killed["after a file"] > 10
