"""The contract of a task plugin: a longer piece of work on hosts, made of operations.

A task is a generator over an executor. It sees its hosts, its options and ``operate``, and nothing else of labctl.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from labctl.remote.executor import Result
from labctl.remote.states import Operation


class Operate(Protocol):
    """What a task has operations carried out with."""

    def __call__(self, operation: Operation, hosts: Sequence[str], **arguments: Any) -> Iterator[Result]:
        """Carry out an operation on some of the task's hosts and give its results as they come.

        ``arguments`` as :class:`labctl.remote.executor.Order` tells. Raises :class:`labctl.remote.executor.Failed`
        when the executor cannot do it. When the job is cancelled or out of time, this ends the operation and raises an
        exception that a task lets pass (``finally`` and ``with`` work as always).
        """

    def wait(self, seconds: float) -> None:
        """Wait, instead of sleeping: when the job is cancelled or out of time, this raises at once as well."""


class Task(ABC):
    """One kind of task; an object is made for each job."""

    #: What kind of work it is, told in the list of tasks beside its name.
    type: ClassVar[str]

    @abstractmethod
    def __init__(self, options: Mapping[str, Any]) -> None:
        """Take what the request says under ``taskopts``; raises ValueError with one line for each mistake.

        It is called by the web server to check a request, and again by the worker; it does nothing else.
        """

    @abstractmethod
    def run(self, hosts: Sequence[str], operate: Operate) -> Iterator[Result]:
        """Do the work and give results: those of its operations, or others for hosts of its own.

        ``values`` are ``name`` (of the step) and ``return_data`` (text), as those of ``deploy``; each host begins with
        an ANNOUNCE for each step. A host with a FAILED or UNREACHABLE result makes the job fail. To stop before the
        end it just returns: hosts that have no result but announcements count as failed.
        """
