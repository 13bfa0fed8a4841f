"""Signals as something to wait for: stop requests, ended children, and readable descriptors in one call."""

import os
import select
import signal
import time
from collections.abc import Collection


class Signals:
    """The signals of this process, from the making of this object on."""

    def __init__(self) -> None:
        """Catch the signals that ask for an end, and the one that says a child has ended."""
        #: The signal that asked this process to stop.
        self.stop: signal.Signals | None = None
        #: Ctrl-C was pressed again: do not wait for anything.
        self.hurry = False
        self._asked_at = 0.0
        self._read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        # nohup means it.
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._on_stop)

    def _on_stop(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.stop is None:
            self.stop = signal.Signals(number)
            self._asked_at = now
        elif number == signal.SIGINT and now - self._asked_at > 1:
            # make and the terminal may both pass on the same request, so only a later one counts.
            self.hurry = True

    def wait(self, timeout: float | None, readable: Collection[int] = ()) -> set[int]:
        """Wait for a signal, for a readable descriptor, or ``timeout`` seconds; give the readable ones."""
        ready, _, _ = select.select([self._read, *readable], [], [], timeout)
        if self._read in ready:
            os.read(self._read, 4096)
        return set(ready) - {self._read}
