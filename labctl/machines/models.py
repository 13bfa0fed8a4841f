"""The table of machines."""

from datetime import datetime

from sqlalchemy import CheckConstraint, DateTime, ForeignKey, Index, String, Text, false, text
from sqlalchemy.orm import Mapped, mapped_column

from labctl.db import Base


class Machine(Base):
    """One lab machine, or a VM on one."""

    __tablename__ = "machines"
    __table_args__ = (
        # What lock_many looks for.
        Index("ix_machines_free", "machine_type", "id", postgresql_where=text("up AND NOT locked")),
        # The list of types jumps through it from one to the next.
        Index(None, "machine_type"),
        CheckConstraint("locked = (locked_by IS NOT NULL)", name="locked_by_somebody"),
        {"postgresql_with": {"fillfactor": "70"}},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    description: Mapped[str | None] = mapped_column(Text)
    up: Mapped[bool] = mapped_column(server_default=false())
    machine_type: Mapped[str | None] = mapped_column(String(255))
    is_vm: Mapped[bool] = mapped_column(server_default=false())
    vm_host_id: Mapped[int | None] = mapped_column(ForeignKey("machines.id", ondelete="SET NULL"), index=True)
    os_type: Mapped[str | None] = mapped_column(String(255))
    os_version: Mapped[str | None] = mapped_column(String(255))
    arch: Mapped[str | None] = mapped_column(String(255))
    locked: Mapped[bool] = mapped_column(server_default=false())
    locked_since: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    locked_by: Mapped[str | None] = mapped_column(String(255))
    mac_address: Mapped[str | None] = mapped_column(String(255))
    ssh_pub_key: Mapped[str | None] = mapped_column(Text)
