"""What the settings say of pools and providers: every mistake in it, and what the engine makes of it."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from labctl import plugins
from labctl.errors import Invalid
from labctl.settings import Settings
from labctl.vms.catalog import Catalog
from labctl.vms.provider import Misconfigured, Provider
from labctl.vms.upkeep import Rules

GROUP = "labctl.vm_providers"


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Handling:
    """What an entry of the setting ``providers`` says to the engine; the rest of it is the plugin's."""

    #: The name of the plugin.
    plugin: str
    #: VMs that are made at once in all pools, and how many calls of each kind one worker has going.
    limit: Annotated[int, Field(ge=1, le=1000)] = 10
    #: Seconds after which a call that has not ended is given up.
    deadline: Annotated[float, Field(gt=0)] = 300
    #: Seconds between comparisons of what it has with what there should be.
    list_interval: Annotated[float, Field(gt=0)] = 30


@dataclass(frozen=True)
class Served:
    """A provider, and how the engine deals with it."""

    provider: Provider
    handling: Handling


_HANDLING = TypeAdapter(Handling)
_ENGINES = frozenset(Handling.__dataclass_fields__)


def check(settings: Settings) -> list[str]:
    """List every mistake in the settings of pools, providers and tags, a line each."""
    mistakes, _ = load(settings)
    return mistakes


def load(settings: Settings) -> tuple[list[str], dict[str, Served]]:
    """List every mistake in what the settings say of VMs, and give the providers that there are in spite of them."""
    mistakes, served = _load_providers(settings)
    names = Counter(pool.name for pool in settings.pools)
    mistakes += [f"pools: there are {number} called {name}" for name, number in names.items() if number > 1]
    for pool in settings.pools:
        where = f"pools.{pool.name}"
        if pool.provider not in settings.providers:
            there = ", ".join(sorted(settings.providers)) or "none"
            mistakes.append(f"{where}.provider: there is no provider {pool.provider!r}; there are: {there}")
        elif pool.provider in served:
            try:
                served[pool.provider].provider.check_options(pool.options)
            except Misconfigured as error:
                mistakes += [f"{where}.options.{line}" for line in str(error).splitlines()]
    for tag, pattern in settings.vm_tag_filters.items():
        try:
            re.compile(pattern)
        except re.error as error:
            mistakes.append(f"vm_tag_filters.{tag}: {error}")
    return mistakes, served


def providers(settings: Settings) -> dict[str, Served]:
    """Make the providers; raises :class:`Misconfigured` with every mistake."""
    mistakes, served = load(settings)
    if mistakes:
        raise Misconfigured("\n".join(mistakes))
    return served


def capabilities(served: Mapping[str, Served]) -> dict[str, frozenset[str]]:
    """Say what each provider can do, by its name."""
    return {name: one.provider.capabilities for name, one in served.items()}


def rules(settings: Settings) -> Rules:
    """Give what the settings say to the engine."""
    return Rules(
        catalog=Catalog(settings.pools, settings.vm_domain),
        limits={name: entry.get("limit", Handling.limit) for name, entry in settings.providers.items()},
        prefix=settings.vm_prefix,
        timeout=settings.vm_timeout,
        check_interval=settings.vm_check_interval,
        warning=settings.vm_warning,
        lifetime=settings.vm_lifetime,
        lifetime_auth=settings.vm_lifetime_auth,
    )


def _load_providers(settings: Settings) -> tuple[list[str], dict[str, Served]]:
    mistakes: list[str] = []
    served = {}
    for name, entry in settings.providers.items():
        lines, one = _load_one(Path(settings.home), name, entry)
        mistakes += [f"providers.{name}.{line}" for line in lines]
        if one is not None:
            served[name] = one
    return mistakes, served


def _load_one(home: Path, name: str, entry: Mapping[str, Any]) -> tuple[list[str], Served | None]:
    lines: list[str] = []
    handling = None
    try:
        handling = _HANDLING.validate_python({key: value for key, value in entry.items() if key in _ENGINES})
    except ValidationError as error:
        lines += [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()]
    if not isinstance(entry.get("plugin"), str):
        return lines, None
    try:
        plugin: type[Provider] = plugins.load(GROUP, entry["plugin"])
    except Invalid as error:
        return [*lines, f"plugin: {error}"], None
    except ImportError as error:
        return [*lines, f"plugin: {entry['plugin']} cannot be loaded: {error}"], None
    options = {key: value for key, value in entry.items() if key not in _ENGINES}
    if plugin.keeps_files:
        options = {"directory": str(home.absolute() / f"provider-{name}"), **options}
    try:
        provider = plugin(name, options)
    except Misconfigured as error:
        return [*lines, *str(error).splitlines()], None
    return lines, Served(provider, handling) if handling else None
