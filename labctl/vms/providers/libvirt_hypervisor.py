"""One hypervisor: the connection to its libvirt, and the domains and volumes that are ours there.

A domain is defined first and undefined last: whatever else there is of a VM belongs to a domain, whose metadata say
whose it is. So nothing is lost when a process ends halfway.
"""

import errno
import re
import threading
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from posixpath import basename
from string import ascii_lowercase
from time import monotonic
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

from labctl.vms.provider import Failed, Misconfigured, NoCapacity, Wanted
from labctl.vms.providers.libvirt_domain import Shape, element, render, sources

#: Of the element in a domain's metadata that makes it ours.
NAMESPACE = "urn:labctl:vm"
#: Seconds a connection may take to open, and until a hypervisor that could not be reached is tried again.
PATIENCE = 20.0
PAUSE = 5.0
#: A connection is dead when so many seconds, so many times, have brought no sign of life.
KEEPALIVE = (5, 3)

# For people who read the XML.
ET.register_namespace("labctl", NAMESPACE)

#: libvirt has codes for few of the ways to have no room.
_FULL = re.compile("no space left|not enough (free )?(space|memory)|cannot allocate memory|quota exceeded", re.I)


def load() -> ModuleType:
    """Load libvirt's bindings, which are an extra; raises :class:`Misconfigured`."""
    try:
        import libvirt
    except ImportError as error:
        raise Misconfigured(f"libvirt's bindings are not installed ({error}): install labctl[libvirt]") from error
    return libvirt  # type: ignore[no-any-return]


def sought(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call libvirt, and give None for what is not there, or not there any more."""
    libvirt = load()
    try:
        return call(*arguments)
    except libvirt.libvirtError as error:
        if error.get_error_code() in {
            libvirt.VIR_ERR_NO_DOMAIN,
            libvirt.VIR_ERR_NO_DOMAIN_METADATA,
            libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT,
            libvirt.VIR_ERR_NO_STORAGE_VOL,
        }:
            return None
        raise


def bring_about(is_so: Callable[[], Any], call: Callable[[], Any]) -> None:
    """Call libvirt unless it is so already; an error counts for nothing if it is so afterwards."""
    libvirt = load()
    try:
        if not is_so():
            call()
    except libvirt.libvirtError:
        # Somebody else may have been faster, such as a call that was given up and went on.
        if not is_so():
            raise


_events = threading.Lock()
_events_run = False


def run_events() -> None:
    """Run libvirt's event loop in this process, once: without it connections notice nothing by themselves."""
    global _events_run
    libvirt = load()

    def run() -> None:
        while True:
            with suppress(libvirt.libvirtError):
                libvirt.virEventRunDefaultImpl()

    with _events:
        if not _events_run:
            # It would print each error, beside raising it.
            libvirt.registerErrorHandler(lambda context, error: None, None)
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=run, name="libvirt", daemon=True).start()
            _events_run = True


class Hypervisor:
    """One connection URI: the connection, which is opened again when it is dead, and what is ours there."""

    def __init__(self, uri: str, mark: str, storage_pool: str) -> None:
        """Connect to nothing yet."""
        self.uri = uri
        #: Its host name when it was asked last; empty: it has not been yet.
        self.last_host = ""
        #: Names of VMs that are about to be defined there.
        self.expected: set[str] = set()
        self._mark = mark
        self._storage_pool = storage_pool
        self._lock = threading.Lock()
        self._connection: Any = None
        self._opening: threading.Thread | None = None
        self._since = self._again = 0.0
        self._trouble = ""
        self._is_ours: dict[str, bool] = {}

    # The connection

    @contextmanager
    def asked(self, *, making: bool = False) -> Iterator[Any]:
        """Give the connection; what libvirt raises meanwhile is raised as the contract has it.

        Only who is ``making`` a VM hears of other things than :class:`Failed`.
        """
        libvirt = load()
        connection = self._connect()
        try:
            yield connection
        except libvirt.libvirtError as error:
            text = f"{self.uri}: {error.get_error_message() or error}"
            code = error.get_error_code()
            out_of = code == libvirt.VIR_ERR_SYSTEM_ERROR and error.get_int1() in {errno.ENOSPC, errno.ENOMEM}
            if making and (out_of or code == libvirt.VIR_ERR_NO_MEMORY or _FULL.search(text)):
                raise NoCapacity(text) from error
            if making and code in {
                libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
                libvirt.VIR_ERR_NO_NETWORK,
                libvirt.VIR_ERR_NO_STORAGE_POOL,
                libvirt.VIR_ERR_XML_DETAIL,
                libvirt.VIR_ERR_XML_ERROR,
            }:
                raise Misconfigured(text) from error
            raise Failed(text) from error

    def _connect(self) -> Any:
        """Give a connection that lives; nobody waits for one longer than :data:`PATIENCE`."""
        libvirt = load()
        with self._lock:
            with suppress(libvirt.libvirtError):
                if self._connection is not None and self._connection.isAlive():
                    return self._connection
            if self._opening is None or not self._opening.is_alive():
                if monotonic() < self._again:
                    raise Failed(f"{self.uri}: {self._trouble}")
                self._connection, self._trouble, self._since = None, "does not answer", monotonic()
                self._opening = threading.Thread(target=self._open, name=f"open {self.uri}", daemon=True)
                self._opening.start()
            opening, left = self._opening, self._since + PATIENCE - monotonic()
        opening.join(max(left, 0))
        with self._lock:
            if self._connection is None:
                raise Failed(f"{self.uri}: {self._trouble}")
            return self._connection

    def _open(self) -> None:
        libvirt = load()
        run_events()
        try:
            connection = libvirt.open(self.uri)
            with suppress(libvirt.libvirtError):
                # Not every driver can.
                connection.setKeepAlive(*KEEPALIVE)
            with self._lock:
                self._connection = connection
        except libvirt.libvirtError as error:
            with self._lock:
                self._trouble = error.get_error_message() or str(error)
                self._again = monotonic() + PAUSE

    # What is ours

    def find(self, name: str) -> Any:
        """Find our domain of that name, None if there is none; whatever others have counts as not there."""
        with self.asked() as connection:
            domain = sought(connection.lookupByName, name)
            return domain if domain is not None and self._owns(domain) else None

    def host(self) -> str:
        """Give its host name."""
        with self.asked() as connection:
            self.last_host = str(connection.getHostname())
            return self.last_host

    def domains(self) -> dict[str, Any]:
        """Find all domains of ours, by name."""
        with self.asked() as connection:
            listed = {domain.UUIDString(): domain for domain in connection.listAllDomains()}
            # Whose a domain is never changes, and asking costs a round trip each.
            known = self._is_ours
            self._is_ours = ours = {u: known[u] if u in known else self._owns(listed[u]) for u in listed}
            return {domain.name(): domain for uuid, domain in listed.items() if ours[uuid]}

    def _owns(self, domain: Any) -> bool:
        return self.note(domain) is not None

    def note(self, domain: Any) -> ET.Element | None:
        """Read what labctl has noted in the metadata of a domain of ours."""
        text = sought(domain.metadata, load().VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE)
        note = None if text is None else ET.fromstring(text)  # noqa: S314
        return note if note is not None and note.get("mark") == self._mark else None

    def volumes(self) -> list[tuple[str, Any]]:
        """Find all volumes of ours, each with the name of the VM that it belongs to."""
        with self.asked() as connection:
            listed = self.pool(connection).listAllVolumes()
            return [(owner, volume) for volume in listed if (owner := self.owner(volume.name()))]

    def volume_name(self, name: str, part: str, copy: str = "") -> str:
        """Name the volume of a VM that is its ``root`` or its ``disk1``; ``copy`` tells those from each other."""
        return f"{self._mark}+{name}+{part}{copy and '-'}{copy}.qcow2"

    def parts(self, volume: str) -> tuple[str, str, str] | None:
        """Take the name of a volume of ours apart: whose it is, which part of it, which copy of that."""
        found = re.fullmatch(r"(.+?)\+(.+)\+(root|disk\d+)(?:-([0-9a-f]{8}))?\.qcow2", volume)
        return (found[2], found[3], found[4] or "") if found and found[1] == self._mark else None

    def owner(self, volume: str) -> str | None:
        """Tell whose a volume is; None: no VM's of ours."""
        parts = self.parts(volume)
        return parts[0] if parts else None

    def volume_of(self, domain: ET.Element, name: str, part: str) -> str:
        """Find which volume is a part of a VM by its domain, or which one would be."""
        for volume in map(basename, sources(domain)):
            if (parts := self.parts(volume)) is not None and parts[:2] == (name, part):
                return volume
        return self.volume_name(name, part)

    def pool(self, connection: Any) -> Any:
        """Find the storage pool, and start it if it is off."""
        pool = connection.storagePoolLookupByName(self._storage_pool)
        bring_about(pool.isActive, pool.create)
        return pool

    def path(self, pool: Any, volume: str) -> str:
        """Tell where a volume lies."""
        directory = ET.fromstring(pool.XMLDesc()).findtext("target/path")  # noqa: S314
        if not directory:
            raise Misconfigured(f"{self.uri}: the storage pool {self._storage_pool} is not a directory")
        return f"{directory.rstrip('/')}/{volume}"

    # Making

    def define(self, wanted: Wanted, shape: Shape) -> Any:
        """Define the domain of a VM, whose volume is yet to be made."""
        with self.asked(making=True) as connection:
            pool = self.pool(connection)
            self.base(pool, wanted.template)
            kind = shape.domain_type or self._kind(connection)
            path = self.path(pool, self.volume_name(wanted.name, "root"))
            domain = render(shape, name=wanted.name, dns=wanted.domain, disk=path, kind=kind)
            ours = element(f"{{{NAMESPACE}}}vm", mark=self._mark, template=wanted.template)
            metadata = domain.find("metadata")
            if metadata is None:
                domain.append(element("metadata", "", ours))
            else:
                metadata.append(ours)
            return connection.defineXML(ET.tostring(domain, encoding="unicode"))

    def _kind(self, connection: Any) -> str:
        kinds = {kind.get("type", "") for kind in ET.fromstring(connection.getCapabilities()).iter("domain")}  # noqa: S314
        return "kvm" if "kvm" in kinds else min(kinds, default="kvm")

    def complete(self, domain: Any, wanted: Wanted) -> None:
        """See to it that a domain has its volume and runs."""
        with self.asked(making=True) as connection:
            pool = self.pool(connection)
            root = self.volume_of(ET.fromstring(domain.XMLDesc()), wanted.name, "root")  # noqa: S314
            if sought(pool.storageVolLookupByName, root) is None:
                base = self.base(pool, wanted.template)
                self.add_volume(pool, root, int(base.findtext("capacity", "0")), base)
            bring_about(domain.isActive, domain.create)

    def base(self, pool: Any, template: str) -> ET.Element:
        """Describe the base volume that a template names, by its name with or without the ending."""
        if self.owner(template) or self.owner(f"{template}.qcow2"):
            raise Misconfigured(f"template {template}: is the disk of a VM")
        for again in (False, True):
            if again:
                # It may have been put there by other means than libvirt.
                pool.refresh()
            for name in (template, f"{template}.qcow2", f"{template}.img", f"{template}.raw"):
                volume = sought(pool.storageVolLookupByName, name)
                if volume is not None:
                    base = ET.fromstring(volume.XMLDesc())  # noqa: S314
                    kind = volume_format(base)
                    if kind not in {"qcow2", "raw"}:
                        raise Misconfigured(f"template {template}: {volume.path()} is {kind}, neither qcow2 nor raw")
                    return base
        raise Misconfigured(f"template {template}: {self.uri} has no such volume in the storage pool {pool.name()}")

    def add_volume(self, pool: Any, name: str, capacity: int, base: ET.Element | None = None) -> None:
        """See to it that there is a volume of so many bytes, which may be an overlay of another."""
        volume = element("volume", "", element("name", name), element("target", "", element("format", type="qcow2")))
        volume.append(element("capacity", str(capacity), unit="bytes"))
        if base is not None:
            path = element("path", base.findtext("target/path", ""))
            volume.append(element("backingStore", "", path, element("format", type=volume_format(base))))
        text = ET.tostring(volume, encoding="unicode")
        bring_about(lambda: sought(pool.storageVolLookupByName, name), lambda: pool.createXML(text))

    # Removing

    def stop(self, domain: Any) -> None:
        """Take a domain's power away."""
        with self.asked():
            bring_about(lambda: not sought(domain.isActive), lambda: sought(domain.destroy))

    def remove_volumes(self, name: str, keep: Set[str] = frozenset()) -> None:
        """Delete all volumes of a VM but those with names to ``keep``."""
        libvirt = load()
        for volume in [volume for owner, volume in self.volumes() if owner == name and volume.name() not in keep]:
            with self.asked() as connection:
                try:
                    sought(volume.delete)
                except libvirt.libvirtError:
                    # The file may be gone without libvirt, as where hypervisors share a directory.
                    pool = self.pool(connection)
                    pool.refresh()
                    if sought(pool.storageVolLookupByName, volume.name()) is not None:
                        raise

    def undefine(self, domain: Any) -> None:
        """Forget a domain that is off, and what libvirt keeps beside it."""
        libvirt = load()
        with self.asked():
            flags = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            if "<nvram" in (sought(domain.XMLDesc) or ""):
                flags |= libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
            sought(domain.undefineFlags, flags)

    # What users do

    def add_disk(self, domain: Any, number: int, gigabytes: int) -> None:
        """Make a volume, and attach it wherever it is not: to what runs, and to what is started next time."""
        libvirt = load()
        with self.asked() as connection:
            pool = self.pool(connection)
            name = self.volume_of(ET.fromstring(domain.XMLDesc()), domain.name(), f"disk{number}")  # noqa: S314
            path = self.path(pool, name)
            lacking, taken, _ = self._disks(domain, path)
            if not lacking:
                return
            device = next((each for each in map("vd{}".format, ascii_lowercase[number:]) if each not in taken), None)
            if device is None:
                raise Failed(f"{domain.name()} has no room for disk {number}")
            if sought(pool.storageVolLookupByName, name) is None:
                self.add_volume(pool, name, gigabytes * 1024**3)
            disk = element(
                "disk",
                "",
                element("driver", name="qemu", type="qcow2", discard="unmap"),
                element("source", file=path),
                element("target", dev=device, bus="virtio"),
                type="file",
                device="disk",
            )
            try:
                domain.attachDeviceFlags(ET.tostring(disk, encoding="unicode"), lacking)
            except libvirt.libvirtError:
                lacking, _, nowhere = self._disks(domain, path)
                if nowhere:
                    sought(pool.storageVolLookupByName(name).delete)
                if lacking:
                    raise

    def _disks(self, domain: Any, path: str) -> tuple[int, set[str], bool]:
        """Tell where a domain lacks the disk of that file, which devices it has, and whether it lacks it everywhere."""
        libvirt = load()
        places = {libvirt.VIR_DOMAIN_AFFECT_CONFIG: domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)}
        if domain.isActive():
            places[libvirt.VIR_DOMAIN_AFFECT_LIVE] = domain.XMLDesc()
        read = {flag: ET.fromstring(xml) for flag, xml in places.items()}  # noqa: S314
        lacking = [flag for flag, xml in read.items() if path not in sources(xml)]
        taken = {target.get("dev", "") for xml in read.values() for target in xml.findall("devices/disk/target")}
        return sum(lacking), taken, len(lacking) == len(read)

    def snapshot(self, domain: Any, name: str) -> None:
        """Make a snapshot, of disks and memory, inside the VM's volumes."""
        with self.asked():
            if sought(domain.snapshotLookupByName, name) is None:
                domain.snapshotCreateXML(
                    ET.tostring(element("domainsnapshot", "", element("name", name)), encoding="unicode")
                )

    def revert(self, domain: Any, name: str) -> None:
        """Go back to a snapshot; disks that were added since are not attached any more."""
        libvirt = load()
        with self.asked():
            # FORCE: with a disk more or less it takes another process, which libvirt wants to be told.
            domain.revertToSnapshot(
                domain.snapshotLookupByName(name),
                libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING | libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_FORCE,
            )


def volume_format(volume: ET.Element) -> str:
    """Tell of which format a volume is."""
    kind = volume.find("target/format")
    return "raw" if kind is None else kind.get("type", "raw")


def runs(domain: Any) -> bool:
    """Tell whether a domain runs; a pause counts as running unless the VM cannot go on."""
    libvirt = load()
    state, reason = domain.state()
    stuck = {
        libvirt.VIR_DOMAIN_PAUSED_CRASHED,
        libvirt.VIR_DOMAIN_PAUSED_IOERROR,
        libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN,
        libvirt.VIR_DOMAIN_PAUSED_WATCHDOG,
    }
    return state in {libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED} or (
        state == libvirt.VIR_DOMAIN_PAUSED and reason not in stuck
    )


def addresses(domain: Any) -> tuple[str, ...]:
    """Find under which addresses a domain can be reached, from the first of libvirt's sources that knows any."""
    libvirt = load()
    interfaces = ET.fromstring(domain.XMLDesc()).findall("devices/interface")  # noqa: S314
    macs = {mac.get("address") for each in interfaces if each.get("type") != "user" for mac in each.findall("mac")}
    if not macs:
        return ()
    for source in (
        libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
        libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT,
        libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP,
    ):
        with suppress(libvirt.libvirtError):
            # The agent also tells of interfaces that exist only inside, such as those of containers.
            seen = [each for each in domain.interfaceAddresses(source).values() if str(each["hwaddr"]).lower() in macs]
            found = [address["addr"] for each in seen for address in each["addrs"] or ()]
            if reachable := tuple(each for each in found if not ip_address(each).is_link_local):
                return reachable
    return ()
