"""One process that is kept running: started, found dead, started again after a pause that doubles."""

import logging
import signal
import subprocess
import time
from collections.abc import Callable

from labctl.up.process import describe_end

log = logging.getLogger(__name__)

#: The first pause before a child is started again, and the longest, in seconds.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
#: Seconds after which a child counts as having run well, so that the next pause is the first again.
STABLE = 60.0


class Child:
    """A process, under a name, with the way to start and to stop it."""

    def __init__(
        self,
        name: str,
        spawn: Callable[[], "subprocess.Popen[bytes]"],
        *,
        stop_signal: int = signal.SIGTERM,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``stop_signal`` asks the process to end in good order."""
        self.name = name
        self.stop_signal = stop_signal
        self.process: subprocess.Popen[bytes] | None = None
        #: How often in a row it ended before it had run for long.
        self.failures = 0
        self.last_end = ""
        self._spawn = spawn
        self._clock = clock
        self._started = 0.0
        self._start_at = 0.0

    @property
    def pid(self) -> int | None:
        """Give the process id, None between two lives."""
        return self.process.pid if self.process else None

    def start(self) -> None:
        """Start the process."""
        self.process = self._spawn()
        self._started = self._clock()
        log.info("child_started", extra={"child": self.name, "pid": self.process.pid})

    def tend(self) -> float | None:
        """Note the process's end, or start it again when its time has come; give the seconds until then."""
        now = self._clock()
        if self.process is not None:
            if self.process.poll() is None:
                return None
            self._note_end(describe_end(self.process.returncode), now)
        if now >= self._start_at:
            try:
                self.start()
                return None
            except (OSError, subprocess.SubprocessError) as error:
                # Out of processes or memory, for now.
                self._note_end(str(error), now)
        return self._start_at - now

    def _note_end(self, end: str, now: float) -> None:
        self.failures = 1 if self.process and now - self._started >= STABLE else self.failures + 1
        pause = min(FIRST_PAUSE * 2 ** (self.failures - 1), LONGEST_PAUSE)
        self._start_at = now + pause
        self.last_end = end
        log.warning("child_ended", extra={"child": self.name, "pid": self.pid, "ended_with": end, "again_in": pause})
        self.process = None

    def ask_to_stop(self) -> None:
        """Send the stop signal, if there is a process."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
