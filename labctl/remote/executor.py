"""The contract of an executor: what carries out operations on hosts. Plain values; it never sees the database.

A worker makes one executor from the setting ``executor`` and asks it for the inventory now and then; for each job it
begins one run, in a thread of its own, and reads its results until it has ended. Runs go on at the same time.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labctl.remote.states import Operation, Status

#: What a role and a tag of it may be called, and a service: no paths, no lists, and nothing that looks like an option.
ROLE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/+-]{0,199}")
SERVICE = re.compile(r"[A-Za-z0-9_@][A-Za-z0-9_.:@\\-]{0,199}")
#: Words that stand for other tags than one of that name, or for steps that have none.
NO_TAGS = frozenset(("all", "always", "never", "tagged", "untagged"))
VARIABLE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,199}")
#: Beginnings of names of variables that decide how, where and by what something is run, instead of what.
RESERVED_PREFIXES = ("_", "ansible_")
#: Names that would be no variables, or hide what says where something is run.
RESERVED = frozenset(
    (
        *("and", "as", "async", "await", "class", "def", "elif", "else", "for", "from", "if", "import", "in", "is"),
        *("lambda", "not", "or", "true", "false", "none", "True", "False", "None"),
        *("delegated_vars", "environment", "group_names", "groups", "hostvars", "inventory_dir", "inventory_file"),
        *("inventory_hostname", "inventory_hostname_short", "omit", "play_hosts", "playbook_dir", "role_name"),
        *("role_names", "role_path", "vars", "lookup", "query", "q", "now", "undef"),
    )
)


#: The exit code of a command whose time was up, as timeout(1) has it, and seconds in which its host may tell that.
TIMED_OUT = 124
TELL_WITHIN = 5.0


class ExecutorError(Exception):
    """The executor itself could not do what it should; the message is shown to people."""


class Failed(ExecutorError):
    """It did not work this time."""


class Misconfigured(ExecutorError):
    """It cannot work before somebody changes the configuration; one line for each mistake."""


@dataclass(frozen=True)
class Order:
    """What is to be done.

    ``arguments`` by operation: ``ping`` and ``facter`` none; ``service`` ``name`` (text), ``start`` and ``restart``
    (whether it shall run, and be restarted for that), ``graceful`` (reload instead of restart); ``execute``
    ``command`` (a line for the host's shell); ``deploy`` ``role``, ``partial`` (tags, or None) and ``extra_vars``
    (an object). They come from a user: no part of them may reach a shell, a path, a template or an option parser on
    this side.
    """

    jid: str
    operation: Operation
    #: Names of the inventory, as :meth:`Executor.hosts` gave them.
    hosts: tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    #: Seconds after which the run is cancelled. That of ``execute`` only TELL_WITHIN later: its host ends the command
    #: itself when it has run for so long, and tells ``rtc`` TIMED_OUT and what was said until then.
    timeout: float = 3600
    #: Seconds after which a worker that is not heard of counts as lost, and others may use its hosts: if its process is
    #: stopped, nothing of what it began may go on for longer.
    lease: float = 30


#: The arguments of each operation, and their types.
ARGUMENTS: dict[Operation, dict[str, tuple[type, ...]]] = {
    Operation.PING: {},
    Operation.FACTER: {},
    Operation.SERVICE: {"name": (str,), "start": (bool,), "restart": (bool,), "graceful": (bool,)},
    Operation.EXECUTE: {"command": (str,)},
    Operation.DEPLOY: {"role": (str,), "partial": (list, tuple, type(None)), "extra_vars": (dict,)},
}


def mistakes(operation: Operation, arguments: Mapping[str, Any]) -> list[str]:
    """List what is wrong with the arguments of an operation, whatever carries it out; one line for each mistake."""
    known = ARGUMENTS.get(operation)
    if known is None:
        return [f"an executor cannot {operation}"]
    if strange := sorted(arguments.keys() ^ known.keys()):
        return [f"{operation}: arguments that are unknown or missing: {', '.join(strange)}"]
    if wrong := [name for name, types in known.items() if not isinstance(arguments[name], types)]:
        return [f"{operation}: of the wrong type: {', '.join(wrong)}"]
    return list(_mistakes(operation, arguments))


def _mistakes(operation: Operation, arguments: Mapping[str, Any]) -> Iterator[str]:
    if any("\0" in text for text in _texts(arguments)):
        yield f"{operation}: a NUL character cannot be passed on"
    if operation == Operation.EXECUTE and not arguments["command"].strip():
        yield "command: there is none"
    if operation == Operation.SERVICE and not SERVICE.fullmatch(arguments["name"]):
        yield f"name: {arguments['name']!r} is no name of a service"
    if operation == Operation.DEPLOY:
        if not ROLE.fullmatch(arguments["role"]):
            yield f"role: {arguments['role']!r} is no name of a role"
        for tag in arguments["partial"] or ():
            if not isinstance(tag, str) or not TAG.fullmatch(tag) or tag in NO_TAGS:
                yield f"partial: {tag!r} is no tag"
        for name in arguments["extra_vars"]:
            if not isinstance(name, str) or not VARIABLE.fullmatch(name):
                yield f"extra_vars: {name!r} is no name of a variable"
            elif name in RESERVED or name.startswith(RESERVED_PREFIXES):
                yield f"extra_vars: {name} cannot be set by a request"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield str(key)
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


@dataclass(frozen=True)
class Result:
    """How a step went on a host.

    ``values`` by operation: ``facter`` ``facts``; ``execute`` ``rtc``, ``stdout``, ``stderr``; ``deploy`` ``name`` of
    the step and ``return_data`` (text), with a result of status ANNOUNCE for each host before each step; ``message``
    says, where it helps, why something failed. All but ``deploy`` give one result for each host.
    """

    host: str
    status: Status
    values: Mapping[str, Any] = field(default_factory=dict)


class Run(ABC):
    """One operation that goes on; all its methods are called by one thread, but for :meth:`cancel`."""

    @abstractmethod
    def read(self, wait: float) -> list[Result]:
        """Give the results since the last call, after waiting up to ``wait`` seconds for the first of them.

        An empty list means that there was none in that time, or that it has ended.
        """

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Tell whether nothing more will come; only after everything that came was read."""

    @property
    @abstractmethod
    def error(self) -> str | None:
        """Say why it could not be carried out, once it has ended; that hosts failed is told by results alone."""

    @abstractmethod
    def cancel(self) -> None:
        """Make it end within a few seconds, with what it runs on the hosts; twice is once. Any thread may call this."""


class Executor(ABC):
    """One executor, made once in each worker."""

    @abstractmethod
    def __init__(self, options: Mapping[str, Any], home: Path) -> None:
        """Take the setting ``executor`` less ``plugin``, and a directory of its own that may not exist yet.

        Starts nothing and reaches no host. Raises :class:`Misconfigured` with one line for each mistake, naming the
        option.
        """

    @abstractmethod
    def check(self) -> list[str]:
        """List what would keep it from working at the moment: files that are missing, programs, an empty inventory."""

    @abstractmethod
    def hosts(self) -> Mapping[str, Set[str]]:
        """Give the names of all hosts, each with its groups; raises :class:`Failed` or :class:`Misconfigured`.

        It is asked every few seconds, and must be cheap while nothing has changed.
        """

    @abstractmethod
    def begin(self, order: Order) -> Run:
        """Begin to carry out an order, at once; raises :class:`Failed` or :class:`Misconfigured`."""

    def close(self) -> None:  # noqa: B027 - an executor may have nothing to end
        """End everything that still goes on, and every process that was started; it is not used after that."""
