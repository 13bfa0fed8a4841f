"""The table of storage nodes."""

from datetime import UTC, datetime

from sqlalchemy import DateTime, Index, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from labctl.db import Base

#: When a node was last given out that never was.
NEVER = datetime(1970, 1, 1, tzinfo=UTC)


class StorageNode(Base):
    """One storage node."""

    __tablename__ = "storage_nodes"
    __table_args__ = (
        # The rotation: who is next.
        Index("ix_storage_nodes_next", "last_used", "host", postgresql_where=text("healthy")),
    )

    #: A host name or an address, perhaps with a port, in lower case.
    host: Mapped[str] = mapped_column(Text, primary_key=True)
    last_used: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=text("'1970-01-01 00:00:00+00'")
    )
    last_check: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    healthy: Mapped[bool]
    #: How many checks have failed in a row since the last that did not.
    down_count: Mapped[int] = mapped_column(server_default="0")
    #: Until when somebody who asked for the next node checks this one; others get it meanwhile only if all are claimed.
    claimed_until: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
