"""The table of events."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from labctl.db import Base


class Event(Base):
    """One change."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "subject", "seq"), Index(None, "kind", "seq"))

    #: The id of the transaction times 65,536, plus a counter.
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    kind: Mapped[str]
    subject: Mapped[str]
    actor: Mapped[str]
    request_id: Mapped[str | None]
    data: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
