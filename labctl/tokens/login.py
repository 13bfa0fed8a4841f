"""Logging in: short transactions, and between them the check of a password, which takes its time."""

import logging
import time
from typing import TYPE_CHECKING

from labctl.db import reading, transaction
from labctl.errors import Unauthenticated
from labctl.settings import Settings
from labctl.tokens import failures, service
from labctl.tokens.secrets import looks_like_token, password_fits

if TYPE_CHECKING:
    from labctl.tokens.ldap import Directory

log = logging.getLogger(__name__)

#: For how long the pair of the configuration is known from an address, in seconds, and from how many addresses.
KNOWN, MOST_KNOWN = 10.0, 1000


class Login:
    """What tells who somebody is, by the settings of this process."""

    def __init__(self, settings: Settings) -> None:
        """Take the settings; raises OSError if the CA's certificates for LDAP cannot be read."""
        self.pair = service.Pair(settings.api_user, settings.api_key, frozenset(("repos", "nodes")))
        self.grants = service.Grants(frozenset(settings.ldap_rights), frozenset(settings.ldap_admins))
        self.directory = directory(settings)
        #: From which addresses the pair has come, and when last in the slow way; gone with the first wrong password.
        self._known: dict[tuple[str, str], float] = {}

    def __call__(self, user: str | None, secret: str, address: str) -> service.Identity | service.Pair:
        """Find out whose credential this is: a token, whatever the user name, or a user with a password.

        Raises :class:`Unauthenticated`, with the same words whatever is wrong; and :class:`Unavailable`.
        """
        if looks_like_token(secret) and (identity := self._by_token(secret)):
            return identity
        if user is None:
            raise Unauthenticated("the token is not valid")
        if self._is_known(user, address) and self.pair.fits(user, secret):
            return self.pair
        # What looks like a token and is none is a forgotten program with an old one, and no use for guessing; the
        # user who sits at the same address should not have to wait for it.
        found = self._by_password(user, secret) if looks_like_token(secret) else self._slowly(user, secret, address)
        if found is None:
            self._known.pop((user, address), None)
            raise Unauthenticated("user or password is wrong")
        if found is self.pair:
            self._know(user, address)
        return found

    def _is_known(self, user: str, address: str) -> bool:
        """Tell whether the pair was accepted from there just now, and nothing wrong has come from there since.

        Machines post with it many times a second, and need not be looked up as often. Who guesses from there makes it
        unknown with the first guess.
        """
        return time.monotonic() - self._known.get((user, address), float("-inf")) < KNOWN

    def _know(self, user: str, address: str) -> None:
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[user, address] = time.monotonic()

    def _by_token(self, secret: str) -> service.Identity | None:
        with reading() as connection:
            identity = service.by_token(connection, secret, self.grants)
        if identity is not None and identity.token_id is not None and identity.stale:
            with transaction() as session:
                service.touch(session, identity.token_id)
        return identity

    def _slowly(self, user: str, secret: str, address: str) -> service.Identity | service.Pair | None:
        """Check a password, unless there were too many wrong ones just now."""
        with reading() as connection:
            tries = failures.tries(connection, user, address)
        if tries.count >= failures.FREE:
            wait = tries.wait()
            if not wait:
                with transaction() as session:
                    wait = 0 if failures.take_turn(session, tries) else failures.pause(tries.count + 1)
            if wait:
                self._known.pop((user, address), None)
                log.warning("login_slowed_down", extra={"address": address, "wait": wait})
                raise Unauthenticated(
                    f"too many wrong passwords for this user: try again in {wait} s", retry_after=wait
                )
        found = self._by_password(user, secret)
        if found is None:
            log.warning("login_refused", extra={"address": address, "wrong": tries.count + 1})
        if found is not None and tries.count:
            with transaction() as session:
                failures.forget(session, tries)
        elif found is None and tries.count < failures.FREE:
            with transaction() as session:
                failures.note(session, tries)
        return found

    def _by_password(self, user: str, secret: str) -> service.Identity | service.Pair | None:
        if self.pair.fits(user, secret):
            return self.pair
        with reading() as connection:
            account = service.account(connection, user, self.grants)
        if self.directory and (account is None or account.ldap):
            return self._by_ldap(self.directory, user, secret)
        fits = password_fits(account.password_hash if account else None, secret)
        return account.identity if account and fits else None

    def _by_ldap(self, directory: "Directory", user: str, secret: str) -> service.Identity | None:
        name = directory.user(user, secret)
        if name is None:
            return None
        if not service.name_is_valid(name):
            log.warning("ldap_user_refused", extra={"user": name, "reason": "labctl has no such names"})
            return None
        with reading() as connection:
            account = service.account(connection, name, self.grants)
        if account is None:
            with transaction() as session:
                service.add_ldap_user(session, name)
            with reading() as connection:
                account = service.account(connection, name, self.grants)
        if account is None or not account.ldap:
            log.warning(
                "ldap_user_refused", extra={"user": name, "reason": "labctl has a user of its own with this name"}
            )
            return None
        return account.identity


def directory(settings: Settings) -> "Directory | None":
    """Give what the settings say of LDAP, None if nothing; raises OSError if the CA's certificates cannot be read."""
    if not settings.ldap_urls:
        return None
    # It brings a library that costs every process 14 MB.
    from labctl.tokens.ldap import Directory

    return Directory(
        urls=settings.ldap_urls,
        start_tls=settings.ldap_start_tls,
        ca_file=settings.ldap_ca_file,
        timeout=settings.ldap_timeout,
        base=settings.ldap_base,
        attribute=settings.ldap_attribute,
        filter=settings.ldap_filter,
        bind_dn=settings.ldap_bind_dn,
        bind_password=settings.ldap_bind_password,
        user_dn=settings.ldap_user_dn,
    )
