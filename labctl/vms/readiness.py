"""Finding out whether a VM can be given away, from this machine, in the way its pool says.

A VM lives for hours and has a host key that nobody has seen before, so that there is none to compare with: over ssh,
host keys are not checked. Whoever can answer in a VM's place can so make it count as ready; the key that is used for
the check should open nothing else, and nothing secret should stand in the command.
"""

import shlex
import socket
import subprocess

from labctl.pools import Check
from labctl.vms.provider import Found

#: How much of what ssh says is kept as a reason.
LONGEST = 200


def trouble(check: Check, found: Found, name: str) -> str | None:
    """Say why a VM cannot be used yet, None if it can; ``name`` is used where it has no address."""
    if not found.running:
        return "it does not run"
    host = found.addresses[0] if found.addresses else name
    if check.kind == "tcp":
        return _connect(check, host)
    if check.kind == "ssh":
        return _log_in(check, host)
    return None


def _connect(check: Check, host: str) -> str | None:
    try:
        socket.create_connection((host, check.port), timeout=check.timeout).close()
    except OSError as error:
        return f"port {check.port} of {host}: {error.strerror or error}"
    return None


def _log_in(check: Check, host: str) -> str | None:
    command = [
        "ssh",
        *("-p", str(check.port), "-l", check.user),
        *(("-i", check.key, "-o", "IdentitiesOnly=yes") if check.key else ()),
        *("-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, int(check.timeout))}"),
        *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
        *("--", host),
        # A shell over there reads it; each word reaches the command as it stands in the configuration.
        shlex.join(check.command),
    ]
    try:
        done = subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=check.timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return f"ssh {host}: no answer within {check.timeout:g} s"
    except OSError as error:
        return f"ssh: {error.strerror}"
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return f"ssh {host}: exit {done.returncode} {said[-1] if said else ''}".rstrip()[:LONGEST]
    return None
