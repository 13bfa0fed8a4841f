"""The table of machines."""

from datetime import datetime

from sqlalchemy import (
    DDL,
    CheckConstraint,
    Computed,
    DateTime,
    ForeignKey,
    Index,
    String,
    Text,
    event,
    false,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from labctl.db import Base

#: A machine as clients see it: the whole list is asked for all the time, and a machine changes far less often.
MACHINE_DOCUMENT = DDL(  # type: ignore[no-untyped-call]
    """
CREATE OR REPLACE FUNCTION labctl_machine_document(
    name text, description text, up bool, machine_type text, is_vm bool, vm_host text, os_type text, os_version text,
    arch text, locked bool, locked_since timestamptz, locked_by text, mac_address text, ssh_pub_key text
) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN json_build_object(
        'name', name, 'description', description, 'up', up, 'machine_type', machine_type, 'is_vm', is_vm,
        'vm_host', vm_host, 'os_type', os_type, 'os_version', os_version, 'arch', arch, 'locked', locked,
        'locked_since', replace(to_char(locked_since AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'), '.000000', ''),
        'locked_by', locked_by, 'mac_address', mac_address, 'ssh_pub_key', ssh_pub_key
    )::text;
END $$
"""
)


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
    #: The machine that a VM runs on.
    vm_host: Mapped[str | None] = mapped_column(
        String(255), ForeignKey("machines.name", ondelete="SET NULL"), index=True
    )
    os_type: Mapped[str | None] = mapped_column(String(255))
    os_version: Mapped[str | None] = mapped_column(String(255))
    arch: Mapped[str | None] = mapped_column(String(255))
    locked: Mapped[bool] = mapped_column(server_default=false())
    locked_since: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    locked_by: Mapped[str | None] = mapped_column(String(255))
    mac_address: Mapped[str | None] = mapped_column(String(255))
    ssh_pub_key: Mapped[str | None] = mapped_column(Text)
    #: Why nobody gets it any more, be it free or not: an unlocked one cannot be locked; None: anybody may.
    cordoned: Mapped[str | None] = mapped_column(Text)
    #: See :data:`MACHINE_DOCUMENT`.
    document: Mapped[str] = mapped_column(
        Text,
        Computed(
            "labctl_machine_document(name, description, up, machine_type, is_vm, vm_host, os_type, os_version, arch, "
            "locked, locked_since, locked_by, mac_address, ssh_pub_key)",
            persisted=True,
        ),
    )


event.listen(Machine.__table__, "before_create", MACHINE_DOCUMENT)
