"""How a VM gets from one hypervisor to another: it is copied first, and removed last.

Two processes may do this at once, since a call that was given up goes on. So the volumes of each copy have names of
their own, and what starts on the target is a domain with just these volumes: libvirt starts one of that name only. What
stays behind says in its metadata that the VM has ``left``, and a copy that it ``arrives`` until nothing of it is
missing: a domain that says neither is the VM.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from posixpath import basename
from string import Template
from threading import Event
from typing import Any
from xml.etree import ElementTree as ET

from labctl import clock
from labctl.vms.provider import Failed, Misconfigured, NoCapacity, ProviderError
from labctl.vms.providers.libvirt_domain import element, sources
from labctl.vms.providers.libvirt_hypervisor import (
    NAMESPACE,
    Hypervisor,
    bring_about,
    load,
    sought,
    volume_format,
)

#: A domain, and where it is.
Place = tuple[Hypervisor, Any]

#: Attributes of what labctl notes in the metadata of a domain that is, or was, on its way.
LEFT, ARRIVES = "left", "arrives"
#: Seconds between looks at a guest that shuts down.
TICK = 0.2


class Uncertain(Failed):
    """Something of the VM may be left on a hypervisor, so it must not be made on another."""


@contextmanager
def or_uncertain(why: Exception) -> Iterator[None]:
    """Undo what has failed; who cannot be sure of that says so."""
    try:
        yield
    except ProviderError as error:
        raise Uncertain(f"{why}; and then {error}") from error


# What there is


def moves(place: Place) -> bool:
    """Tell whether a domain is on its way, so that it may be elsewhere, too."""
    return bool({LEFT, ARRIVES} & _noted(place).keys())


def has_left(place: Place) -> bool:
    """Tell whether a domain was shut down to go elsewhere, which somebody may just be about."""
    return LEFT in _noted(place) and not _goes_on(place)


def has_arrived(place: Place) -> bool:
    """Tell whether a domain is a copy of what was left, maybe not yet with all that belongs to it."""
    return ARRIVES in _noted(place)


def whole(places: Sequence[Place]) -> Place | None:
    """Choose, among all domains of a VM that are on their way, the one that is the VM."""
    # A copy does not run before it has everything. The others are left one after the other.
    return max(places, key=lambda place: (_goes_on(place), float(_noted(place).get(LEFT, 0))), default=None)


def _noted(place: Place) -> dict[str, str]:
    hypervisor, domain = place
    with hypervisor.asked():
        note = hypervisor.note(domain)
        return {} if note is None else dict(note.attrib)


def _goes_on(place: Place) -> bool:
    """Tell whether a guest runs; before and after a live migration it stands still."""
    hypervisor, domain = place
    with hypervisor.asked():
        return bool(sought(domain.isActive)) and domain.state()[0] != load().VIR_DOMAIN_PAUSED


def _note(place: Place, **attributes: str) -> None:
    """Note in the metadata of a domain how it is on its way, or with no attributes that it is not."""
    libvirt = load()
    hypervisor, domain = place
    noted = _noted(place)
    if not noted:
        raise Failed(f"{domain.name()} is gone from {hypervisor.uri}")
    text = ET.tostring(_with(ET.Element("vm", noted), attributes), encoding="unicode")
    with hypervisor.asked():
        for flag, applies in (
            (libvirt.VIR_DOMAIN_AFFECT_CONFIG, domain.isPersistent()),
            (libvirt.VIR_DOMAIN_AFFECT_LIVE, domain.isActive()),
        ):
            if applies:
                domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, "labctl", NAMESPACE, flag)


def _with(note: ET.Element, attributes: dict[str, str]) -> ET.Element:
    for each in (LEFT, ARRIVES):
        note.attrib.pop(each, None)
    note.attrib.update(attributes)
    return note


def _rename(xml: str, rename: Callable[[str], str], **attributes: str) -> str:
    """Change the files of the disks in the XML of a domain or of a snapshot, and what labctl has noted there."""
    root = ET.fromstring(xml)  # noqa: S314
    for disk in root.iter("disk"):
        for source in disk.findall("source"):
            if file := source.get("file"):
                source.set("file", rename(file))
        # The volume itself knows of what it is an overlay.
        for backing in disk.findall("backingStore"):
            disk.remove(backing)
    for note in root.iter(f"{{{NAMESPACE}}}vm"):
        _with(note, attributes)
    return ET.tostring(root, encoding="unicode")


def _xml_of_all(domain: Any) -> list[str]:
    """Describe a domain and its snapshots: as it runs, as it will start, and as it was."""
    libvirt = load()
    return [
        domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE),
        domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE),
        *(each.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE) for each in _snapshots(domain)),
    ]


def _snapshots(domain: Any) -> list[Any]:
    return list(domain.listAllSnapshots(load().VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL))


def _files(xmls: Sequence[str]) -> set[str]:
    found = set()
    for xml in xmls:
        root = ET.fromstring(xml)  # noqa: S314
        found |= {str(source.get("file")) for source in root.iter("source") if source.get("file")} | sources(root)
    return found - {""}


# Going there


@dataclass(frozen=True)
class Journey:
    """One try to get a VM to another hypervisor."""

    name: str
    source: Place
    target: Hypervisor
    #: Of the volumes that are made on the way.
    copy: str = field(default_factory=lambda: secrets.token_hex(4))

    def go(self, shutdown_seconds: float, live_uri: str | None) -> Place:
        """Have the VM run on the target, whole or yet to :func:`settle`; gives it.

        Without the URI for a live migration the guest is shut down, which is given some seconds. What can be seen to
        stand against it is said before.
        """
        hypervisor, domain = self.source
        with hypervisor.asked():
            if domain.state()[:2] == [load().VIR_DOMAIN_PAUSED, load().VIR_DOMAIN_PAUSED_MIGRATION]:
                # A live migration ended just before its end, and did not start the guest on the other side.
                domain.resume()
            is_active = domain.isActive()
            has_snapshots = domain.snapshotNum() > 0
            xmls = _xml_of_all(domain)
        live = live_uri is not None and is_active
        if live and has_snapshots:
            raise Misconfigured(f"{self.name}: libvirt cannot migrate a VM live that has snapshots")
        if not live:
            _check_that_disks_are_all(self.name, xmls)
        volumes = self._volumes(xmls)
        self._check_room(volumes)
        xml = self.renamed(xmls[1], arrives="yes")
        try:
            with self.target.asked(making=True) as there:
                there.defineXML(xml)
            _note(self.source, left=str(clock.now().timestamp()))
            if live:
                self._live(volumes, str(live_uri))
            else:
                self._shut_down(shutdown_seconds)
                self._cold(volumes, xml)
        except ProviderError as error:
            if (found := self._undo(error)) is None:
                raise
            return found
        found = self.target.find(self.name)
        if found is None:
            raise Uncertain(f"{self.name} has vanished from {self.target.uri}")
        return self.target, found

    def _path(self, file: str) -> str:
        """Tell where a file of the source will be; what is not the VM's own has the same path everywhere."""
        parts = self.source[0].parts(basename(file))
        if parts is None or parts[0] != self.name:
            return file
        with self.target.asked(making=True) as there:
            return self.target.path(self.target.pool(there), self.target.volume_name(self.name, parts[1], self.copy))

    def renamed(self, xml: str, **attributes: str) -> str:
        """Describe a domain or a snapshot as it will be on the target."""
        return _rename(xml, self._path, **attributes)

    def _volumes(self, xmls: Sequence[str]) -> dict[str, ET.Element | None]:
        """Find the volumes of the VM, and of what each is an overlay on the target."""
        hypervisor = self.source[0]
        template = _noted(self.source).get("template", "")
        found: dict[str, ET.Element | None] = {}
        with hypervisor.asked() as here, self.target.asked(making=True) as there:
            pool = hypervisor.pool(here)
            old, new = hypervisor.base(pool, template), self.target.base(self.target.pool(there), template)
            if _size_and_format(old) != _size_and_format(new):
                raise Misconfigured(f"template {template}: is another one on {self.target.uri}")
            for file in sorted(_files(xmls)):
                if self._path(file) != file:
                    volume = ET.fromstring(pool.storageVolLookupByName(basename(file)).XMLDesc())  # noqa: S314
                    found[basename(file)] = new if volume.findtext("backingStore/path") else None
        return found

    def _check_room(self, volumes: Iterable[str]) -> None:
        hypervisor, _ = self.source
        libvirt = load()
        with hypervisor.asked() as here, self.target.asked(making=True) as there:
            needed = sum(hypervisor.pool(here).storageVolLookupByName(each).info()[2] for each in volumes)
            pool = self.target.pool(there)
            with suppress(libvirt.libvirtError):
                # It is not done while a volume is made.
                pool.refresh()
            left = pool.info()[3]
        if left < needed:
            raise NoCapacity(f"{self.target.uri}: not enough free space: {needed} bytes wanted, {left} left")

    def _live(self, volumes: dict[str, ET.Element | None], uri: str) -> None:
        libvirt = load()
        hypervisor, domain = self.source
        with hypervisor.asked() as here, self.target.asked(making=True) as there:
            for each, base in volumes.items():
                capacity = hypervisor.pool(here).storageVolLookupByName(each).info()[1]
                self.target.add_volume(self.target.pool(there), basename(self._path(each)), capacity, base)
            xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE)
            stays = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)
            domain.migrate3(
                there,
                {
                    libvirt.VIR_MIGRATE_PARAM_URI: Template(uri).safe_substitute(host=self.target.host()),
                    libvirt.VIR_MIGRATE_PARAM_DEST_XML: self.renamed(xml, arrives="yes"),
                    libvirt.VIR_MIGRATE_PARAM_PERSIST_XML: self.renamed(stays, arrives="yes"),
                },
                libvirt.VIR_MIGRATE_LIVE
                | libvirt.VIR_MIGRATE_NON_SHARED_INC
                | libvirt.VIR_MIGRATE_PERSIST_DEST
                | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
                | libvirt.VIR_MIGRATE_AUTO_CONVERGE,
            )

    def _shut_down(self, seconds: float) -> None:
        """Have the guest end by itself, or else without it."""
        libvirt = load()
        hypervisor, domain = self.source
        end = time.monotonic() + seconds
        with hypervisor.asked():
            with suppress(libvirt.libvirtError):
                domain.shutdown()
            while domain.isActive() and time.monotonic() < end:
                Event().wait(TICK)
        hypervisor.stop(domain)

    def _cold(self, volumes: dict[str, ET.Element | None], xml: str) -> None:
        hypervisor, domain = self.source
        with hypervisor.asked() as here, self.target.asked(making=True) as there:
            for each, base in volumes.items():
                self._bring(here, there, each, base)
            if domain.isActive():
                raise Failed(f"{self.name} was started again on {hypervisor.uri} meanwhile")
            there.createXML(xml)

    def _bring(self, here: Any, there: Any, volume: str, base: ET.Element | None) -> None:
        """Copy a volume with all its snapshots: the file as it is, into one that becomes what is written to it."""
        old = self.source[0].pool(here).storageVolLookupByName(volume)
        length = old.infoFlags(load().VIR_STORAGE_VOL_GET_PHYSICAL)[2]
        new = element("volume", "", element("target", "", element("format", type="raw")))
        new.append(element("name", basename(self._path(volume))))
        new.append(element("capacity", str(length), unit="bytes"))
        new.append(element("allocation", "0", unit="bytes"))
        made = self.target.pool(there).createXML(ET.tostring(new, encoding="unicode"))
        copy(here, old, there, made)
        if base is not None:
            set_backing(there, made, base.findtext("target/path", ""))

    def _undo(self, why: ProviderError) -> Place | None:
        """Remove what a failed try has made; gives the VM if it runs on the target all the same."""
        with or_uncertain(why):
            copied = self.target.find(self.name)
            if copied is not None and _goes_on((self.target, copied)):
                self.target.remove_volumes(self.name, keep=_names_in_use(self.target, copied))
                return self.target, copied
            with self.target.asked():
                if copied is not None and copied.isActive():
                    raise Failed(f"{self.name} is still being migrated to {self.target.uri}")
            theirs = {volume.name() for _, volume in self.target.volumes()}
            self.target.remove_volumes(self.name, keep={each for each in theirs if not self._is_mine(each)})
            if copied is not None:
                self.target.undefine(copied)
            if _goes_on(self.source):
                _note(self.source)
        return None

    def _is_mine(self, volume: str) -> bool:
        parts = self.target.parts(volume)
        return parts is not None and parts[2] == self.copy


def _size_and_format(volume: ET.Element) -> tuple[str | None, str]:
    return volume.findtext("capacity"), volume_format(volume)


def _check_that_disks_are_all(name: str, xmls: Sequence[str]) -> None:
    """See that the VM is no more than disks once it is off."""
    root = ET.fromstring(xmls[1])  # noqa: S314
    if root.find("os/nvram") is not None or root.find("devices/tpm/backend[@type='emulator']") is not None:
        raise Misconfigured(f"{name}: the variables of its firmware or its TPM cannot be taken along")


def _names_in_use(hypervisor: Hypervisor, domain: Any) -> set[str]:
    with hypervisor.asked():
        return {basename(file) for file in _files(_xml_of_all(domain))}


# Having arrived


def settle(name: str, place: Place, others: Sequence[Place]) -> None:
    """Make a VM that runs where it should be whole, and remove what is left of it elsewhere."""
    hypervisor, domain = place
    if has_arrived(place):
        if not _goes_on(place):
            raise Failed(f"{name} is only half copied to {hypervisor.uri}, and nowhere else")
        _complete(name, place, whole([each for each in others if LEFT in _noted(each)]))
    with hypervisor.asked():
        bring_about(domain.isActive, domain.create)
    if moves(place):
        _note(place)
    used = _names_in_use(hypervisor, domain)
    for other, left in others:
        if not moves((other, left)):
            raise Failed(f"{name} is on {hypervisor.uri} and on {other.uri}")
        other.stop(left)
        # Where hypervisors share a directory, they all see what is in use.
        other.remove_volumes(name, keep=used)
        other.undefine(left)


def _complete(name: str, place: Place, origin: Place | None) -> None:
    """Give a VM that has arrived its definition and its snapshots, and remove copies that others have begun."""
    libvirt = load()
    hypervisor, domain = place
    inactive = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE
    with hypervisor.asked() as connection:
        root = hypervisor.volume_of(ET.fromstring(domain.XMLDesc()), name, "root")  # noqa: S314
        parts = hypervisor.parts(root)
        if origin is None or parts is None:
            # Somebody has removed what was left behind.
            connection.defineXML(_rename(domain.XMLDesc(inactive), str, arrives="yes"))
        else:
            journey = Journey(name, origin, hypervisor, parts[2])
            with origin[0].asked():
                connection.defineXML(journey.renamed(origin[1].XMLDesc(inactive), arrives="yes"))
                for snapshot in _snapshots(origin[1]):
                    xml = journey.renamed(snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE))
                    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
                    flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT if snapshot.isCurrent() else 0
                    domain.snapshotCreateXML(xml, flags)
    hypervisor.remove_volumes(name, keep=_names_in_use(hypervisor, domain))


# Volumes

#: Where the header of a qcow2 file says where the name of its backing file is, how long that and how long a cluster is.
_BACKING_OFFSET, _BACKING_SIZE, _CLUSTER_BITS = slice(8, 16), slice(16, 20), slice(20, 24)
_MOST_NAME = 1023


def copy(here: Any, old: Any, there: Any, new: Any) -> None:
    """Copy what a volume holds, without its holes."""
    libvirt = load()
    receive, send = here.newStream(), there.newStream()

    def write(stream: Any, data: bytes, opaque: None) -> None:
        _send(send, data)

    def skip(stream: Any, length: int, opaque: None) -> None:
        send.sendHole(length)

    try:
        old.download(receive, 0, 0, libvirt.VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM)
        new.upload(send, 0, 0, libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM)
        receive.sparseRecvAll(write, skip, None)
        receive.finish()
        send.finish()
    except BaseException:
        for end in (receive.abort, send.abort):
            with suppress(libvirt.libvirtError):
                end()
        raise


def _send(stream: Any, data: bytes) -> None:
    while data:
        data = data[stream.send(data) :]


def set_backing(connection: Any, volume: Any, path: str) -> None:
    """Have an overlay begin with another base, the same in another place."""
    cluster = 1 << int.from_bytes(_read(connection, volume, 512)[_CLUSTER_BITS], "big")
    header = with_backing(_read(connection, volume, cluster), path)
    stream = connection.newStream()
    volume.upload(stream, 0, len(header))
    _send(stream, header)
    stream.finish()


def with_backing(header: bytes, path: str) -> bytes:
    """Name another backing file in the first cluster of a qcow2 file, which ends with that name and zeros."""
    start, size = int.from_bytes(header[_BACKING_OFFSET], "big"), int.from_bytes(header[_BACKING_SIZE], "big")
    name = path.encode()
    if not start or len(name) > _MOST_NAME or start + len(name) > len(header) or any(header[start + size :]):
        raise Misconfigured(f"a copy cannot be made an overlay of {path}")
    changed = bytearray(header[:start] + name + bytes(len(header) - start - len(name)))
    changed[_BACKING_SIZE] = len(name).to_bytes(4, "big")
    return bytes(changed)


def _read(connection: Any, volume: Any, length: int) -> bytes:
    """Read the beginning of a volume."""
    stream = connection.newStream()
    volume.download(stream, 0, length)
    read = b""
    while len(read) < length and (data := stream.recv(length - len(read))):
        read += data
    stream.finish()
    return read
