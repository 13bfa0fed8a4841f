"""What a pool of VMs is, as the setting ``pools`` declares it."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Check:
    """How labctl finds out that a VM of a pool can be given away.

    ``running``: its provider says that it runs. ``tcp``: its port ``port`` can be connected to. ``ssh``: ``command``,
    run there over ssh as ``user`` with the key file ``key``, exits with 0.
    """

    kind: Literal["running", "tcp", "ssh"] = "running"
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    user: str = "root"
    key: str = ""
    command: Annotated[list[str], Field(min_length=1)] = Field(default_factory=lambda: ["true"])
    #: Longest time of one try, in seconds.
    timeout: Annotated[float, Field(gt=0, le=300)] = 10


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Pool:
    """One pool; what is None is as the settings for all pools say."""

    name: Name
    #: Other names under which its VMs can be asked for; several pools may share one.
    alias: list[Name] = Field(default_factory=list)
    #: What its provider makes VMs from; empty: the name of the pool.
    template: str = ""
    #: One of the names in the setting ``providers``.
    provider: str = "fake"
    #: How many VMs are kept ready, those on their way included.
    size: Annotated[int, Field(ge=0, le=100_000)] = 0
    domain: str | None = None
    #: Minutes after which a VM that has not become ready is given up.
    timeout: Annotated[float, Field(gt=0)] | None = None
    #: Minutes after which a ready VM is replaced by a fresh one; 0: never.
    ready_ttl: Annotated[float, Field(ge=0)] = 0
    #: VMs of this pool that are made at once.
    clone_target: Annotated[int, Field(ge=1)] | None = None
    check: Check = Field(default_factory=Check)
    #: Handed to the provider with each VM that is made: what this means is the provider's business.
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("alias", mode="before")
    @classmethod
    def _one_alias(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value
