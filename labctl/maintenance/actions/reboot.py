"""A host that is started anew."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar

from pydantic.dataclasses import dataclass

from labctl.maintenance.action import Action, Done, Failed, Operate, Outcome, View, Wait
from labctl.maintenance.actions.options import OnHosts, Positive, Text, numbered, read, trouble
from labctl.maintenance.states import ActionType

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
#: It returns before the host goes down, and goes on when who has sent it is gone: by a timer of systemd, or else as a
#: process of its own.
REBOOT = (
    "systemd-run --on-active=2 --timer-property=AccuracySec=100ms systemctl reboot"
    " || { setsid sh -c 'sleep 2; exec shutdown -r now' </dev/null >/dev/null 2>&1 & }"
)
BEFORE, DOWN, BACK = "boot-id", "reboot", "back"


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Options(OnHosts):
    """The metadata of the action."""

    command: Text = REBOOT
    #: What tells one boot of the host from another.
    boot_id_command: Text = BOOT_ID
    #: Seconds between looks at whether it is back, and what one look may take.
    interval: Positive = 5
    patience: Positive = 30


class Reboot(Action):
    """Reboot a host, and wait until it is back: until it answers with another boot id than before."""

    #: Never all hosts at once.
    types: ClassVar[frozenset[ActionType]] = frozenset((ActionType.HOST,))
    timeout = 600

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """Take the metadata."""
        self.options = read(Options, metadata)

    def next(self, view: View) -> Operate | Wait | Done | Failed:
        """Remember the boot, end it, and look for the next one."""
        if not self.options.targets(view):
            return Done()
        if all(outcome.unfinished and outcome.step.startswith(BEFORE) for outcome in view.outcomes):
            return self._look(numbered(BEFORE, view), view)
        first = next(number for number, outcome in enumerate(view.outcomes) if not outcome.unfinished)
        view = replace(view, outcomes=view.outcomes[first:])
        before = _boot_id(view.outcomes[0])
        if before is None:
            return Failed(f"its boot id is not known: {trouble(view.outcomes[0]) or 'it gave none'}")
        if len(view.outcomes) == 1:
            return Operate(
                DOWN, "execute", (view.host,), {"command": self.options.command}, timeout=self.options.patience
            )
        last = view.outcomes[-1]
        if last.step == DOWN and _refused(last):
            return Failed(trouble(last))
        if last.step != DOWN and _boot_id(last) not in (None, before):
            return Done()
        left = last.ended + timedelta(seconds=self.options.interval) - view.now
        if left > timedelta():
            return Wait(left.total_seconds(), "to be back")
        return self._look(f"{BACK}-{len(view.outcomes) - 1}", view)

    def _look(self, step: str, view: View) -> Operate:
        command = self.options.boot_id_command
        return Operate(step, "execute", (view.host,), {"command": command}, timeout=self.options.patience)


def _boot_id(outcome: Outcome) -> str | None:
    for output in outcome.outputs.values():
        if outcome.ok:
            return str(output.get("stdout", "")).strip() or None
    return None


def _refused(outcome: Outcome) -> bool:
    """Tell whether the command itself has failed; that the host went away under it is what is wanted."""
    codes = (output.get("rtc") for output in outcome.outputs.values())
    return any(isinstance(code, int) and 0 < code < 128 for code in codes)
