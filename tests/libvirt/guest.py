"""Talks to a guest over its serial console."""

import os
import re
import select
import time
import tty
from xml.etree import ElementTree


class Guest:
    """The console of a running domain; see image.INIT for what the guest makes of it."""

    def __init__(self, domain: object) -> None:
        xml = ElementTree.fromstring(domain.XMLDesc())  # type: ignore[attr-defined]
        source = xml.find("devices/serial/source")
        assert source is not None
        self._console = os.open(source.get("path", ""), os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self._console)
        self._heard = b""

    def close(self) -> None:
        os.close(self._console)

    def wait_until_ready(self) -> None:
        self._hear(rb"guest is ready\r?\n", 120)

    def do(self, command: str) -> str:
        """Have the guest run a command, and give its output; it must succeed."""
        self._heard = b""
        os.write(self._console, command.encode() + b"\n")
        # What it said before it heard us is no answer.
        output, status = self._hear(rb"(?s)(.*?)status (\d+)\r?\n", 30)
        assert status == b"0", f"{command}: {output!r}"
        return output.decode().replace("guest is ready", "").replace("\r", "").strip()

    def _hear(self, pattern: bytes, seconds: float) -> tuple[bytes, ...]:
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self._heard)):
            assert time.monotonic() < deadline, f"the guest said {self._heard!r}, not {pattern!r}"
            if select.select([self._console], [], [], 0.5)[0]:
                self._heard += os.read(self._console, 4096)
        self._heard = self._heard[found.end() :]
        return found.groups()
