"""``labctl check``: everything that is wrong with a configuration, at once."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import click

from labctl import db, migrations
from labctl.errors import Unavailable
from labctl.settings import Settings, SettingsError, load


@dataclass(frozen=True)
class Finding:
    """One line of the answer: what it is about, and what is wrong with it, or how it is."""

    about: str
    text: str
    wrong: bool = True


@click.command()
def check() -> None:
    """Check the whole configuration and say everything that is wrong with it, one line each.

    Looks at the settings, the database and its schema, the pools and providers of VMs, the executor of operations on
    hosts with its inventory and plays, and the LDAP servers. Changes nothing. Exits with 1 if anything is wrong.
    """
    # What is logged is found as well.
    logging.getLogger("labctl").addHandler(logging.NullHandler())
    found = list(findings())
    for finding in found:
        click.echo(f"{'wrong' if finding.wrong else 'ok':5}  {finding.about}: {finding.text}")
    if any(finding.wrong for finding in found):
        sys.exit(1)


def findings() -> Iterator[Finding]:
    """Look at one thing after the other; what cannot be looked at is wrong."""
    try:
        settings = load()
    except SettingsError as error:
        yield from (Finding("settings", line) for line in str(error).splitlines())
        yield Finding("settings", "nothing else can be checked before these are right")
        return
    for about, look in LOOKS.items():
        try:
            yield from look(settings)
        # Plugins of anybody's are asked.
        except Exception as error:
            yield Finding(about, f"cannot be checked: {type(error).__name__}: {error}")


def look_at_settings(settings: Settings) -> Iterator[Finding]:
    """Find what each setting by itself allows, and no two of them together."""
    changed = sum(getattr(settings, each.name) != getattr(Settings(), each.name) for each in Settings.all())
    where = os.environ.get("LABCTL_CONFIG") or "no file"
    yield Finding("settings", f"{where} and the environment; {changed} are not the default", wrong=False)
    if bool(settings.api_user) != bool(settings.api_key):
        missing, there = ("api_key", "api_user") if settings.api_user else ("api_user", "api_key")
        yield Finding("settings", f"{missing}: not set, so {there} is good for nothing")
    if settings.database_pool_size < settings.web_threads:
        yield Finding("settings", f"database_pool_size: less than web_threads ({settings.web_threads})")
    if not settings.ldap_urls and (settings.ldap_base or settings.ldap_user_dn):
        yield Finding("settings", "ldap_urls: not set, so no other setting of LDAP is good for anything")


def look_at_database(settings: Settings) -> Iterator[Finding]:
    """Connect, and compare the schema."""
    try:
        url = settings.require_database()
        db.configure(url, pool_size=1)
    except (SettingsError, ValueError) as error:
        yield Finding("database", str(error))
        return
    where = urlsplit(url).hostname or "this machine"
    try:
        with db.reading() as connection:
            trouble = migrations.trouble(db.ping(connection))
    except Unavailable as error:
        reason = str(getattr(error.__cause__, "orig", None) or error.__cause__).strip().partition("\n")[0]
        yield Finding("database", f"cannot be reached on {where}: {reason.replace(url, 'the URL')}")
        return
    yield Finding("database", trouble or f"answers on {where}, and its schema is current", wrong=trouble is not None)


def look_at_vms(settings: Settings) -> Iterator[Finding]:
    """Check pools and providers."""
    from labctl.vms import config

    if mistakes := config.check(settings):
        yield from (Finding("vms", line) for line in mistakes)
        return
    wanted = sum(pool.size for pool in settings.pools)
    unreal = sorted(name for name, entry in settings.providers.items() if entry.get("plugin") == "fake")
    text = f"{len(settings.pools)} pools for {wanted} VMs"
    yield Finding("vms", f"{text}; not real: those of {', '.join(unreal)}" if unreal else text, wrong=False)


def look_at_remote(settings: Settings) -> Iterator[Finding]:
    """Check the executor, what it works with, and the plugins for tasks."""
    from labctl.remote import config

    yield from (Finding("remote", line) for line in config.check(settings))
    if config.fatal(settings):
        return
    executor = config.executor(settings)
    try:
        if troubles := executor.check():
            yield from (Finding("remote", line) for line in troubles)
            return
        hosts = len(executor.hosts())
    finally:
        executor.close()
    yield Finding("remote", f"{settings.executor['plugin']} knows {hosts} hosts", wrong=False)


def look_at_ldap(settings: Settings) -> Iterator[Finding]:
    """Connect to every server, and log in as the account that searches for users."""
    from labctl.tokens.login import directory

    try:
        asked = directory(settings)
    except OSError as error:
        yield Finding("ldap", f"ldap_ca_file: {error}")
        return
    for url, trouble in asked.troubles().items() if asked else ():
        yield Finding("ldap", f"{url} {trouble or 'answers'}", wrong=trouble is not None)


LOOKS: dict[str, Callable[[Settings], Iterator[Finding]]] = {
    "settings": look_at_settings,
    "database": look_at_database,
    "vms": look_at_vms,
    "remote": look_at_remote,
    "ldap": look_at_ldap,
}
