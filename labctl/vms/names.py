"""Names for VMs and snapshots."""

import secrets

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_CHARACTERS = _LETTERS + "0123456789"


def new_name(prefix: str = "") -> str:
    """Make a host name that no other VM has: 15 characters behind the prefix, the first a letter."""
    # Clients ask for hosts in any case.
    return prefix.lower() + _random(15)


def new_snapshot() -> str:
    """Make the name of a snapshot: 32 characters."""
    return _random(32)


def _random(length: int) -> str:
    return secrets.choice(_LETTERS) + "".join(secrets.choice(_CHARACTERS) for _ in range(length - 1))
