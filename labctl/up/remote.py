"""What ``labctl up`` lets operations on hosts begin with: an inventory of this machine, a play and a role."""

import shutil
from pathlib import Path

from labctl.settings import Settings

#: An example, to be copied and changed.
EXAMPLE = Path(__file__).parent / "example"


def prepare(settings: Settings, home: Path) -> None:
    """Copy the example to where Ansible works unless the settings say; only when nothing is there, whole or not at all.

    In production nobody does this: there a missing inventory is a mistake that somebody should see.
    """
    directory = home / "remote"
    if settings.executor.get("plugin") != "ansible" or settings.executor.get("workdir") or directory.exists():
        return
    half = home / "remote.new"
    shutil.rmtree(half, ignore_errors=True)
    for path in sorted(EXAMPLE.rglob("*")):
        copy = half / path.relative_to(EXAMPLE)
        # Not the modes: the example may be read-only.
        if path.is_dir():
            copy.mkdir(parents=True)
        else:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    half.rename(directory)
