"""A project that is told by webhook, with the receiver that docs/maintenance.rst shows, against a real labctl."""

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from .lab import PATIENCE, Up, free_port, until

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "maintenance.rst"
SECRET = "at least sixteen characters"
SESSION = {
    "hosts": ["lab01", "lab02", "localhost"],
    "state": "MAINTENANCE",
    "maintenance_at": "2026-01-02 03:04:05",
    "workflow": "default",
    "metadata": {},
    "actions": [{"plugin": "dummy", "type": kind} for kind in ("pre", "host", "post")],
}


def shown() -> str:
    """Give the receiver."""
    found = re.search(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", PAGE.read_text(), re.MULTILINE)
    assert found
    return textwrap.dedent(found[1])


def ask(lab: Up, method: str, path: str, token: str, **arguments: Any) -> Any:
    answer = requests.request(method, lab.url + path, headers={"X-Auth-Token": token}, timeout=PATIENCE, **arguments)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
def receiver(tmp_path: Path) -> Any:
    """Run it with a token; gives the port."""
    script = tmp_path / "receiver.py"
    script.write_text(shown())
    started: list[subprocess.Popen[bytes]] = []

    def receiver(token: str, said: Path) -> int:
        port = free_port()
        with said.open("wb") as output:
            environ = {"PORT": str(port), "SECRET": SECRET, "TOKEN": token}
            started.append(subprocess.Popen([sys.executable, str(script)], env=environ, stdout=output))
        return port

    yield receiver
    for process in started:
        process.kill()
        process.wait()


def test_the_receiver_of_the_docs_takes_a_session_to_its_end(
    home: Path, start: Callable[..., Up], receiver: Callable[..., int], tmp_path: Path
) -> None:
    lab = start(home, LABCTL_MAINTENANCE_PRIVATE_URLS="true").wait_until_ready()
    admin = (home / "admin.token").read_text().strip()
    environ = {"LABCTL_HOME": str(home)}
    for command in (["user", "add", "alice", "--no-password"], ["token", "create", "alice"]):
        labctl = [sys.executable, "-m", "labctl.cli.main", *command]
        token = subprocess.run(labctl, env=environ, check=True, capture_output=True, text=True).stdout.strip()
    until(lambda: requests.get(f"{lab.url}/target", headers={"X-Auth-Token": admin}, timeout=9).ok, "hosts are known")
    until(lambda: lab.get("/api/status?view=capacity").json()["capacity"]["percent"] == 100, "the pools are full")
    old = ask(lab, "POST", "/api/vm/", token, json={"debian": 1})["debian"]["hostname"]
    said = tmp_path / "said"
    hook = {"url": f"http://127.0.0.1:{receiver(token, said)}/", "secret": SECRET}
    ask(lab, "PUT", "/api/maintenance/subscriptions/alice", token, json=hook)

    sid = ask(lab, "POST", "/v1/maintenance", admin, json=SESSION)["session_id"]
    until(
        lambda: ask(lab, "GET", f"/v1/maintenance/{sid}", admin)["state"] in ("MAINTENANCE_DONE", "MAINTENANCE_FAILED"),
        "the session ends",
        2 * PATIENCE,
    )

    ended = ask(lab, "GET", f"/v1/maintenance/{sid}", admin)
    assert ended["state"] == "MAINTENANCE_DONE", ended
    (move,) = ended["moves"]
    assert (move["instance"], move["project"]) == (old, "alice")
    told = [line.partition(" ") for line in said.read_text().splitlines()]
    url = f"{lab.url}/v1/maintenance/{sid}/alice"
    assert [(state, about) for state, _, about in told] == [
        ("MAINTENANCE", url),
        ("PLANNED_MAINTENANCE", url),
        ("INSTANCE_ACTION_DONE", f"['{old}']"),
        ("MAINTENANCE_COMPLETE", url),
    ]
