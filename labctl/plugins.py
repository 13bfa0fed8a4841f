"""Plugins are found by their entry points, ours like anyone else's; a name from a request is never imported."""

from importlib.metadata import entry_points
from typing import Any

from labctl.errors import Invalid


def installed(group: str) -> list[str]:
    """List the names that are installed in a group such as ``labctl.vm_providers``, sorted."""
    return sorted({point.name for point in entry_points(group=group)})


def load(group: str, name: str) -> Any:
    """Load what the entry point ``name`` of ``group`` names; raises :class:`Invalid` that lists what is installed."""
    for point in entry_points(group=group):
        if point.name == name:
            return point.load()
    raise Invalid(f"there is no {group} plugin {name!r}; installed: {', '.join(installed(group)) or 'none'}")
