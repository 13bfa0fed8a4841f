"""The libvirt provider with a real guest, without KVM: what the mock of tests/vms/test_libvirt.py cannot show."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import orjson
import pytest

from labctl.vms.provider import Failed, Misconfigured, NoCapacity, Provider, Wanted
from labctl.vms.providers import libvirt_hypervisor
from labctl.vms.providers.libvirt import LibvirtProvider
from labctl.vms.providers.libvirt_migration import with_backing

from ..contracts.provider import ProviderContract
from .daemons import Daemon, until
from .migrating import kill_in_the_middle, migrate

FOX = Wanted("fox", "tiny", {})
#: Somewhere on the disk where nothing is.
SECTOR = 100_000


def read(device: str) -> str:
    """Give the command that reads a line off a disk, not out of the guest's memory."""
    return (
        f"echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/{device} bs=512 skip={SECTOR} count=1 2>/dev/null | head -n 1"
    )


def write(device: str, text: str) -> str:
    return f"echo {text} | dd of=/dev/{device} bs=512 seek={SECTOR} conv=fsync 2>/dev/null"


def test_a_vm_lives_its_life_on_two_hypervisors_though_workers_that_migrate_it_are_killed(
    both: dict[str, Daemon], between: dict[str, Any], guest: Callable[..., Any], timed: Callable[[str], Any]
) -> None:
    provider = LibvirtProvider("libvirt", between)
    with timed("clone and start"):
        provider.create(FOX)
    with timed("from start to ready"):
        console = guest(both["a"], "fox")
        console.wait_until_ready()
    found = provider.look_up("fox")
    assert found is not None
    assert found.running
    assert found.addresses == ()
    assert found.host == "a"
    provider.create(FOX)
    console.do("echo before > /tmp/state")
    console.do(write("vda", "before"))

    with timed("disk"):
        provider.add_disk("fox", 1, 2)
    provider.add_disk("fox", 1, 2)
    until(lambda: "vdb" in console.do("ls /sys/block"), "the guest sees its disk")
    assert console.do("cat /sys/block/vdb/size") == str(2 * 1024**3 // 512)
    console.do(write("vdb", "before"))

    with timed("live migration, killed and again"):
        kill_in_the_middle(between, "a", both["b"], live=True)
        migrate(provider, "a", live=True)
    assert (both["a"].files(), both["a"].guests()) == ({"tiny.qcow2"}, [])
    console = guest(both["b"], "fox")
    assert [console.do(each) for each in ("cat /tmp/state", read("vda"), read("vdb"))] == ["before"] * 3

    with timed("snapshot"):
        provider.snapshot("fox", "one")
    provider.snapshot("fox", "one")
    console.do("echo after > /tmp/state")
    console.do(write("vda", "after"))
    console.do(write("vdb", "after"))
    provider.add_disk("fox", 1, 2)
    provider.add_disk("fox", 2, 1)
    until(lambda: "vdc" in console.do("ls /sys/block"), "the guest sees its second disk")

    with pytest.raises(Misconfigured, match="snapshots"):
        provider.migrate("fox", {"b"}, live=True)
    with timed("migration, killed and again"):
        kill_in_the_middle(between, "b", both["a"], live=False)
        migrate(provider, "b", live=False)
    assert (both["b"].files(), both["b"].guests()) == ({"tiny.qcow2"}, [])
    assert len(both["a"].files()) == 4

    with timed("revert"):
        provider.revert("fox", "one")
    console = guest(both["a"], "fox")
    assert [console.do(each) for each in ("cat /tmp/state", read("vda"), read("vdb"))] == ["before"] * 3
    assert "vdc" not in console.do("ls /sys/block")
    provider.add_disk("fox", 2, 1)
    until(lambda: "vdc" in console.do("ls /sys/block"), "the guest sees its second disk again")
    assert provider.names() == {"fox"}

    with timed("destroy"):
        provider.destroy("fox")
    provider.destroy("fox")
    assert provider.look_up("fox") is None
    assert provider.names() == set()


@pytest.mark.usefixtures("needs")
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
@pytest.mark.parametrize("path", ["/b", "/another/directory/with/a/long/name/base.qcow2"])
def test_an_overlay_is_told_where_its_base_is_after_a_migration(tmp_path: Path, path: str, compat: str) -> None:
    overlay = tmp_path / "overlay.qcow2"
    options = ["-u", "-f", "qcow2", "-F", "raw", "-b", "/images/base.raw", "-o", f"compat={compat}"]
    subprocess.run(["qemu-img", "create", "-q", *options, overlay, "1M"], check=True)
    data = overlay.read_bytes()
    overlay.write_bytes(with_backing(data[:65536], path) + data[65536:])

    told = subprocess.run(["qemu-img", "info", "--output=json", overlay], check=True, capture_output=True).stdout
    assert orjson.loads(told)["backing-filename"] == path
    assert orjson.loads(told)["backing-filename-format"] == "raw"
    with pytest.raises(Misconfigured):
        with_backing(data[:65536], "/" * 1024)


def test_nine_disks_fit_and_one_more_leaves_nothing(daemon: Daemon, provider: LibvirtProvider) -> None:
    provider.create(FOX)

    with pytest.raises(Failed, match="No more available PCI slots"):
        _add_disks(provider, "fox")

    xml = daemon.connect().lookupByName("fox").XMLDesc()
    disks = {name for name in daemon.files() if "+disk" in name}
    assert all(name in xml for name in disks)
    assert len(disks) == xml.count("<disk ") - 1 == 9
    provider.destroy("fox")


def _add_disks(provider: LibvirtProvider, name: str) -> None:
    for number in range(1, 26):
        provider.add_disk(name, number, 1)


def test_too_much_memory_is_no_capacity_and_leaves_nothing(daemon: Daemon, provider: LibvirtProvider) -> None:
    with pytest.raises(NoCapacity, match="annot allocate memory"):
        provider.create(Wanted("fox", "tiny", {"memory_mb": 1_000_000_000}))

    assert provider.names() == set()


def test_a_network_that_is_not_there_is_misconfigured_and_leaves_nothing(
    daemon: Daemon, provider: LibvirtProvider
) -> None:
    with pytest.raises(Misconfigured, match="nowhere"):
        provider.create(Wanted("fox", "tiny", {"network": "nowhere"}))

    assert provider.names() == set()


def test_a_base_volume_that_libvirt_has_not_seen_yet_is_found(daemon: Daemon, provider: LibvirtProvider) -> None:
    provider.names()
    new = daemon.images / "new.qcow2"
    new.write_bytes((daemon.images / "tiny.qcow2").read_bytes())
    daemon.give(new)

    provider.create(Wanted("fox", "new", {}))

    provider.destroy("fox")
    new.unlink()


def test_a_vm_whose_volume_is_gone_already_can_be_destroyed(daemon: Daemon, provider: LibvirtProvider) -> None:
    provider.create(FOX)
    (daemon.images / "labctl-libvirt+fox+root.qcow2").unlink()

    provider.destroy("fox")

    assert provider.names() == set()


def test_a_daemon_that_was_killed_is_found_again_with_its_guests(daemon: Daemon, provider: LibvirtProvider) -> None:
    provider.create(FOX)
    daemon.kill()
    with pytest.raises(Failed):
        provider.look_up("fox")

    daemon.start()

    found = until(lambda: _try(provider), "the provider connects again")
    assert found.running
    provider.destroy("fox")


def _try(provider: LibvirtProvider) -> Any:
    try:
        return provider.look_up("fox")
    except Failed:
        return None


def test_a_daemon_that_hangs_costs_seconds_and_its_vms_are_not_made_elsewhere(
    daemon: Daemon,
    two: tuple[Daemon, Daemon],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    timed: Callable[[str], Any],
) -> None:
    monkeypatch.setattr(libvirt_hypervisor, "KEEPALIVE", (1, 2))
    monkeypatch.setattr(libvirt_hypervisor, "PATIENCE", 3)
    provider = LibvirtProvider("libvirt", {"uris": [each.uri for each in two], **options})
    provider.create(FOX)
    provider.create(Wanted("cat", "tiny", {}))
    assert [len(each.guests()) for each in two] == [1, 1]
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        with timed("noticing that a hypervisor hangs"), pytest.raises(Failed):
            provider.look_up("fox")
        with timed("a call while it hangs"), pytest.raises(Failed):
            provider.create(FOX)
        found = provider.look_up("cat")
        assert found is not None
        assert found.running
    finally:
        daemon.process.send_signal(signal.SIGCONT)

    until(lambda: _try(provider), "the provider connects again")
    provider.create(FOX)
    assert [len(each.guests()) for each in two] == [1, 1]
    for name in provider.names():
        provider.destroy(name)
    assert [each.files() for each in two] == [{"tiny.qcow2"}] * 2


class TestLibvirtProviderWithARealGuest(ProviderContract):
    """The provider under its contract; nobody waits for the guests to boot."""

    template = "tiny"
    unknown = "no-such-template"

    @pytest.fixture
    def make(self, between: dict[str, Any]) -> Iterator[Callable[[], Provider]]:
        def make() -> Provider:
            return LibvirtProvider("libvirt", between)

        yield make
        for name in make().names():
            make().destroy(name)

    def check_disks(self, provider: Provider, name: str, gigabytes: list[int]) -> None:
        assert isinstance(provider, LibvirtProvider)
        hypervisor, domain = provider._find_there(name)
        connection = hypervisor._connect()
        disks = ElementTree.fromstring(domain.XMLDesc()).findall("devices/disk/source")
        sizes = [connection.storageVolLookupByPath(disk.get("file")).info()[1] for disk in disks]
        assert sizes[1:] == [each * 1024**3 for each in gigabytes]
