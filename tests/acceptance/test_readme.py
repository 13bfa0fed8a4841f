"""The tour of the README, run word by word against a real labctl: every command works and answers what stands there."""

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from .lab import Up

README = Path(__file__).resolve().parent.parent.parent / "README.rst"
#: Where the README says that labctl listens, where it keeps its files, and what the command is.
URL = "http://127.0.0.1:8080"
HOME = ".labctl/"
COMMAND = "make demo RUNS="
LABCTL = ".venv/bin/labctl"
#: A curl whose answers are as many as things happen.
FOLLOWED = "curl -sN"
#: A curl whose answer is printed: not one that is asked only for the shell.
PRINTED = re.compile(r"(?<!\$\()(?<!until )curl (?!.*-o /dev/null)")


def blocks() -> list[tuple[str, str]]:
    """Give the code blocks of the tour: the language, and the text."""
    tour = README.read_text().partition("\nA tour\n")[2].partition("\nPointing ")[0]
    found = re.findall(r"^\.\. code-block:: (\w+)\n\n((?:    .*\n|\n)+)", tour, re.MULTILINE)
    return [(language, textwrap.dedent(text).strip()) for language, text in found]


def steps() -> Iterator[tuple[str, str, str]]:
    """Give each block of commands, and the next block: its answers if that is JSON or text, or other commands."""
    for (language, commands), (following, answers) in pairwise([*blocks(), ("sh", "")]):
        if language == "sh":
            yield commands, following, answers


def values(text: str) -> list[Any]:
    """Read JSON values that stand one behind the other."""
    decoder, found, position = json.JSONDecoder(), [], 0
    while position < len(text):
        value, position = decoder.raw_decode(text, position)
        found.append(value)
        while position < len(text) and text[position].isspace():
            position += 1
    return found


def fits(answer: Any, shown: Any) -> bool:
    """Tell whether an answer is what the README shows; ``...`` stands for anything, as a key for more keys."""
    if shown == "...":
        return True
    if isinstance(shown, dict):
        keys = {key for key in shown if key != "..."}
        complete = isinstance(answer, dict) and (keys <= answer.keys() if "..." in shown else keys == answer.keys())
        return complete and all(fits(answer[key], shown[key]) for key in keys)
    if isinstance(shown, list):
        return isinstance(answer, list) and len(answer) == len(shown) and all(map(fits, answer, shown))
    return bool(answer == shown)


class Shell:
    """One shell for all blocks, as a reader would type them."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            ["bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=directory,
            text=True,
        )

    def run(self, commands: str) -> str:
        """Run commands, and give what they print up to the mark behind them."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{commands}\necho; echo end of $?\n")
        self.process.stdin.flush()
        said = ""
        for line in self.process.stdout:
            if line.startswith("end of "):
                assert line == "end of 0\n", said
                return said
            said += line
        raise AssertionError(said)

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture
def shell(lab: Up) -> Iterator[Shell]:
    shell = Shell(lab.home)
    yield shell
    shell.close()


def test_there_are_commands_in_the_tour() -> None:
    assert sum(text.count("curl ") for language, text in blocks() if language == "sh") > 20
    assert {"json", "text"} <= {kind for _, kind, _ in steps()}


def test_every_command_of_the_tour_answers_what_the_readme_shows(lab: Up, shell: Shell) -> None:
    shell.run(f"export LABCTL_HOME={lab.home} LABCTL_PORT={lab.port}")
    for commands, kind, answers in steps():
        if COMMAND in commands:
            said = shell.run(commands.replace(COMMAND, f"{sys.executable} -m labctl.cli.main demo --runs "))
            assert re.search(r"20 runs, \d+ jobs, [1-9]\d+ builds, [1-9]\d+ repos", said), said
            assert "maintenance sessions: 1 done, 1 failed, 1 waiting;" in said, said
            continue
        assert "curl" not in commands or "$LAB" in commands
        here = commands.replace(URL, lab.url).replace(HOME, f"{lab.home}/")
        said = shell.run(here.replace(LABCTL, f"{sys.executable} -m labctl.cli.main")).strip()
        if kind == "text":
            assert said == answers
            continue
        answered = values(said)
        assert FOLLOWED in commands or len(answered) == len(PRINTED.findall(commands)), (commands, said)
        if kind == "json":
            shown = values(answers)
            assert len(answered) == len(shown), (commands, said)
            for answer, expected in zip(answered, shown, strict=True):
                assert fits(answer, expected), (commands, answer, expected)
