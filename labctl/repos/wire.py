"""What clients send about repos and builds, and ask for in a search."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from labctl.errors import Invalid
from labctl.repos import distros
from labctl.repos.queries import LATEST
from labctl.repos.search import FILTERS, Search, Wanted
from labctl.repos.service import DEFAULT_FLAVOR, REPO_NEEDS, BuildReport, RepoReport

#: What a build report must have.
BUILD_NEEDS = ("url", "ref", "sha1", "status")
#: Most distributions that a search may ask for at once.
MOST_WANTED = 50
MAX_PROJECT = 128
#: A list has many of them.
MAX_EXTRA = 65_536
_URL = re.compile(r"[!-~]*")


def _as_text(value: Any) -> Any:
    # Versions are posted as numbers, too; of 24.10 as a number nobody can tell it from 24.1.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _printable(value: str) -> str:
    if not value.isprintable() or value in (".", ".."):
        raise ValueError("must be printable, and neither . nor ..")
    return value


def _no_slash(value: str) -> str:
    if "/" in value:
        raise ValueError("must not contain a slash")
    return value


def _url(value: str) -> str:
    # It goes into the Location of a redirect.
    if not _URL.fullmatch(value):
        raise ValueError("must be a URL: printable ASCII characters without spaces")
    return value


def _no_latest(value: str) -> str:
    if value == LATEST:
        raise ValueError(f"must not be {LATEST!r}, which stands for the newest commit")
    return value


Ref = Annotated[str, Field(min_length=1, max_length=256), BeforeValidator(_as_text), AfterValidator(_printable)]
Sha1 = Annotated[
    str,
    Field(min_length=1, max_length=128),
    BeforeValidator(_as_text),
    AfterValidator(_printable),
    AfterValidator(_no_latest),
]
Word = Annotated[str, Field(min_length=1, max_length=64), BeforeValidator(_as_text), AfterValidator(_printable)]
Slashless = Annotated[Word, AfterValidator(_no_slash)]
URL = Annotated[str, Field(max_length=2000), AfterValidator(_url)]
#: Of a build, which may be of no distribution.
MaybeEmpty = Annotated[
    str, Field(max_length=64), BeforeValidator(_as_text), AfterValidator(_printable), AfterValidator(_no_slash)
]


class RepoInput(BaseModel):
    """What a storage node posts; it sends other keys as well, which say nothing here, and null for what it lacks."""

    node_url: Annotated[URL, Field(min_length=1)] | None = Field(default=None, alias="chacra_url")
    ref: Ref | None = None
    sha1: Sha1 | None = None
    distro: Slashless | None = None
    distro_version: Slashless | None = None
    status: Word | None = None
    url: URL | None = None
    flavor: Word | None = None
    extra: dict[str, Any] | None = None
    archs: Annotated[list[Word], Field(max_length=64)] | None = None


class BuildInput(BaseModel):
    """What a build job posts; other keys say nothing here, null is the same as nothing."""

    url: URL | None = None
    ref: Ref | None = None
    sha1: Sha1 | None = None
    status: Word | None = None
    log_url: URL | None = None
    flavor: Word | None = None
    extra: dict[str, Any] | None = None
    distro: MaybeEmpty | None = None
    distro_version: MaybeEmpty | None = None
    distro_arch: MaybeEmpty | None = None


def repo_from_wire(given: RepoInput) -> RepoReport:
    """Take a report of a repo; raises :class:`Invalid` without ``chacra_url``, which names all that is missing."""
    if given.node_url is None:
        raise Invalid(f"required keys are missing: {', '.join(['chacra_url', *_missing(given, REPO_NEEDS)])}")
    return RepoReport(
        **given.model_dump(exclude={"extra", "archs"}),
        extra=_as_json(given.extra),
        archs=None if given.archs is None else list(dict.fromkeys(given.archs)),
    )


def build_from_wire(given: BuildInput) -> BuildReport:
    """Take a report of a build; raises :class:`Invalid` that names all that is missing."""
    if missing := _missing(given, BUILD_NEEDS):
        raise Invalid(f"required keys are missing: {', '.join(missing)}")
    values = given.model_dump(exclude={"extra", "flavor"})
    return BuildReport(**values, extra=_as_json(given.extra), flavor=given.flavor or DEFAULT_FLAVOR)


def _missing(given: BaseModel, needed: Iterable[str]) -> list[str]:
    return [name for name in needed if getattr(given, name) is None]


def _as_json(extra: dict[str, Any] | None) -> str | None:
    try:
        text = None if extra is None else orjson.dumps(extra).decode()
    except orjson.JSONEncodeError as error:
        # What was read as JSON can be written, unless it is nested too deeply.
        raise Invalid("nested too deeply", field="extra") from error
    if text is not None and len(text) > MAX_EXTRA:
        raise Invalid(f"must have at most {MAX_EXTRA} characters as JSON", field="extra")
    return text


def project_from_wire(name: str) -> str:
    """Check the name of a project; raises :class:`Invalid`."""
    if not name.isprintable() or name in (".", "..") or len(name) > MAX_PROJECT:
        raise Invalid(f"must be printable, at most {MAX_PROJECT} characters, neither . nor ..", field="project")
    return name


def search_from_wire(given: Mapping[str, str]) -> Search:
    """Take the parameters of a search; raises :class:`Invalid` for a bad ``distros``."""
    values = {name: given[name] for name in FILTERS if name in given}
    return Search(values, wanted_from_wire(given["distros"]) if "distros" in given else ())


def wanted_from_wire(text: str) -> list[Wanted]:
    """Read ``distro/version[/arch],...``, a version being a number or a codename; raises :class:`Invalid`."""
    parts = text.split(",")
    if len(parts) > MOST_WANTED:
        raise Invalid(f"at most {MOST_WANTED} can be asked for at once", field="distros")
    wanted = []
    for part in parts:
        distro, *rest = part.strip().split("/")
        if not distro or len(rest) not in (1, 2) or not all(rest):
            raise Invalid(
                f"Invalid version or codename for distro: {distro}; must be distro/version-or-codename[/arch],"
                " several of them with commas between",
                field="distros",
            )
        wanted.append(Wanted(distros.resolve(distro, rest[0]).platform, rest[1] if len(rest) == 2 else None))
    return wanted
