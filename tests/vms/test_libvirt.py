"""The libvirt provider on libvirt's own mock hypervisor (test:///), in this process: what needs no real guest."""

import ast
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from labctl.vms.provider import Failed, Misconfigured, NoCapacity, Partial, Provider, Unreachable, Wanted
from labctl.vms.providers import libvirt_hypervisor, libvirt_migration
from labctl.vms.providers.libvirt import LibvirtProvider, Options
from labctl.vms.providers.libvirt_domain import Shape, render
from labctl.vms.providers.libvirt_hypervisor import Hypervisor
from labctl.vms.providers.libvirt_migration import Journey

from ..contracts.provider import ProviderContract

ROOT = Path(__file__).resolve().parents[2]
ROOM = 100 * 1024**3
NODE = f"""
<node>
  <pool type="dir">
    <name>default</name>
    <capacity unit="bytes">{ROOM}</capacity>
    <target><path>/images</path></target>
  </pool>
</node>
"""


class Lab:
    """Mock hypervisors, each with an empty storage pool ``default``; a test sees what the provider sees."""

    def __init__(self, directory: Path, open_: Callable[[str], Any]) -> None:
        self.directory = directory
        self.open_ = open_
        self.connections: dict[str, Any] = {}
        self.down: set[str] = set()

    def add(self, name: str, *templates: str) -> str:
        """Add a hypervisor with base volumes; gives its URI."""
        node = self.directory / f"{name}.xml"
        node.write_text(NODE)
        uri = f"test://{node}"
        self.connections[uri] = self.open_(uri)
        for template in templates:
            self.add_volume(uri, template)
        return uri

    def pool(self, uri: str) -> Any:
        return self.connections[uri].storagePoolLookupByName("default")

    def add_volume(self, uri: str, name: str, kind: str = "qcow2", capacity: int = 1024**3) -> None:
        self.pool(uri).createXML(
            f'<volume><name>{name}</name><capacity unit="bytes">{capacity}</capacity>'
            f'<allocation>0</allocation><target><format type="{kind}"/></target></volume>'
        )

    def volumes(self, uri: str) -> set[str]:
        return {volume.name() for volume in self.pool(uri).listAllVolumes()}

    def domains(self, uri: str) -> set[str]:
        return {domain.name() for domain in self.connections[uri].listAllDomains()}

    def domain(self, uri: str, name: str) -> Any:
        return self.connections[uri].lookupByName(name)

    def is_empty(self, uri: str) -> bool:
        return not self.domains(uri) and self.volumes(uri) == {"debian.qcow2"}

    def host(self, uri: str) -> str:
        """Give the host name of a hypervisor, which the mock would take from where it runs."""
        return Path(uri).stem

    def open(self, uri: str) -> Any:
        """Stand in for libvirt.open: every connection to one of these has a state of its own."""
        import libvirt

        if uri in self.down:
            raise libvirt.libvirtError("it is down")
        return self.connections[uri]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    why = "labctl[libvirt] is not installed; make test-libvirt installs it"
    libvirt = pytest.importorskip("libvirt", reason=why, exc_type=ImportError)
    libvirt_hypervisor.run_events()
    lab = Lab(tmp_path, libvirt.open)
    monkeypatch.setattr(libvirt, "open", lab.open)
    # A hypervisor that was down is asked again at once.
    monkeypatch.setattr(libvirt_hypervisor, "PAUSE", 0)
    yield lab
    for connection in lab.connections.values():
        connection.close()


@pytest.fixture
def uri(lab: Lab) -> str:
    return lab.add("one", "debian.qcow2")


@pytest.fixture
def provider(uri: str) -> LibvirtProvider:
    return LibvirtProvider("libvirt", {"uris": uri})


def wanted(name: str = "fox", template: str = "debian", **options: Any) -> Wanted:
    return Wanted(name, template, options)


class WithoutDisks(LibvirtProvider):
    """The mock cannot attach devices, and what is migrated has some in the contract."""

    add_disk = Provider.add_disk
    migrate = Provider.migrate

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        super().__init__(name, options)
        self.capabilities -= {"disk", "migrate", "live_migrate"}


class TestLibvirtProviderOnTheMock(ProviderContract):
    """The provider on a mock hypervisor."""

    template = "debian"
    unknown = "no-such-template"

    @pytest.fixture
    def make(self, uri: str) -> Callable[[], Provider]:
        return lambda: WithoutDisks("libvirt", {"uris": uri})


# Options


def test_without_the_bindings_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)

    with pytest.raises(Misconfigured, match=r"install labctl\[libvirt\]"):
        LibvirtProvider("libvirt", {})


def test_every_mistake_in_the_options_is_named_at_once(lab: Lab, tmp_path: Path) -> None:
    options = {
        "uris": [],
        "memory_mb": "much",
        "cpus": 0,
        "mark": "a+b",
        "most_vms": -1,
        "domain_xml": str(tmp_path / "missing"),
        "colour": "red",
    }

    with pytest.raises(Misconfigured) as caught:
        LibvirtProvider("libvirt", options)

    assert sorted(line.partition(":")[0] for line in str(caught.value).splitlines()) == sorted(options)


def test_a_pool_may_say_otherwise_than_its_provider(lab: Lab, uri: str) -> None:
    provider = LibvirtProvider("libvirt", {"uris": [uri], "memory_mb": 512, "cpus": 3, "network": "lab"})

    provider.create(wanted(memory_mb=64, network="user"))

    xml = lab.domain(uri, "fox").XMLDesc()
    assert "<memory unit='KiB'>65536</memory>" in xml
    assert ">3</vcpu>" in xml
    assert "<interface type='user'>" in xml


@pytest.mark.parametrize("options", [{"cpus": "many"}, {"uris": ["test:///default"]}])
def test_a_pools_options_that_are_wrong_are_misconfigured(
    lab: Lab, uri: str, provider: LibvirtProvider, options: dict[str, Any]
) -> None:
    option = next(iter(options))
    with pytest.raises(Misconfigured, match=f"^{option}: "):
        provider.check_options(options)
    with pytest.raises(Misconfigured, match=f"^options: {option}: "):
        provider.create(wanted(**options))

    assert lab.is_empty(uri)


def test_a_pools_own_template_of_domains_is_checked_at_the_start(provider: LibvirtProvider) -> None:
    provider.check_options({"memory_mb": 512})
    with pytest.raises(Misconfigured, match=r"^domain_xml: /nowhere: "):
        provider.check_options({"domain_xml": "/nowhere"})


def test_docs_libvirt_has_every_option_with_its_default() -> None:
    text = (ROOT / "docs" / "libvirt.rst").read_text()
    documented = re.findall(r"^``(\w+)``\n    (?:.|\n    )*? Default:\s+``(.*?)``\.$", text, re.MULTILINE)

    assert [(name, ast.literal_eval(default)) for name, default in documented] == list(asdict(Options()).items())


# The template of domains


def test_docs_libvirt_has_every_placeholder() -> None:
    text = (ROOT / "docs" / "libvirt.rst").read_text()
    documented = re.findall(r"^``\$\{(\w+)\}``  ", text, re.MULTILINE)
    shipped = (ROOT / "labctl" / "vms" / "providers" / "domain.xml.template").read_text()

    assert set(re.findall(r"\$\{(\w+)\}", shipped)) | {"domain"} == set(documented)


def template(tmp_path: Path, text: str) -> Shape:
    path = tmp_path / "lab.xml"
    path.write_text(text)
    return Shape(domain_xml=str(path))


DISK = '<devices><disk><source file="${disk}"/></disk></devices>'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<domain>", "no element found"),
        ("<domain><name>${nmae}</name></domain>", "there is no placeholder nmae"),
        ("<domain><name>${name}</name>$</domain>", "Invalid placeholder"),
        ("<domain><name>a</name>" + DISK + "</domain>", "<name>${name}</name>"),
        ("<machine><name>${name}</name>" + DISK + "</machine>", "must be a <domain>"),
        ("<domain><name>${name}</name></domain>", '<source file="${disk}"/>'),
        ("<domain><name>${name}</name><uuid>1</uuid>" + DISK + "</domain>", "leave <uuid> and <mac> to libvirt"),
    ],
)
def test_a_template_that_cannot_work_is_misconfigured(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        render(template(tmp_path, text), name="fox", disk="/fox", kind="kvm")

    assert str(caught.value).startswith(f"domain_xml: {tmp_path}/lab.xml: ")
    assert complaint in str(caught.value)


def test_values_are_escaped_in_text_and_in_attributes(tmp_path: Path) -> None:
    odd = "a<b>&amp;\"'${name}"
    shape = template(tmp_path, "<domain><name>${name}</name><a b=\"${name}\" c='${name}'/>" + DISK + "</domain>")

    domain = render(shape, name=odd, disk="/&", kind="kvm")

    found = domain.find("a")
    assert found is not None
    assert domain.findtext("name") == found.get("b") == found.get("c") == odd


def test_the_name_of_a_network_is_escaped() -> None:
    domain = render(Shape(network="a\"b<c'&"), name="fox", disk="/fox", kind="kvm")

    source = domain.find("devices/interface/source")
    assert source is not None
    assert source.get("network") == "a\"b<c'&"


def test_the_labs_own_template_may_have_metadata_and_its_own_words(lab: Lab, uri: str, tmp_path: Path) -> None:
    text = """
        <domain type="${type}">
          <name>${name}</name>
          <title>${name}.${domain}</title>
          <metadata><rack xmlns="urn:lab">7</rack></metadata>
          <memory unit="MiB">${memory_mb}</memory>
          <vcpu>${cpus}</vcpu>
          <os><type>hvm</type></os>
          <devices>
            <disk type="file"><source file="${disk}"/><target dev="vda"/></disk>
            ${interface}
          </devices>
        </domain>
    """
    provider = LibvirtProvider("libvirt", {"uris": uri, "domain_xml": template(tmp_path, text).domain_xml})

    provider.create(Wanted("fox", "debian", {}, "lab.example.com"))

    xml = lab.domain(uri, "fox").XMLDesc()
    assert "<title>fox.lab.example.com</title>" in xml
    assert '<rack xmlns="urn:lab">7</rack>' in xml or ">7</" in xml
    assert provider.names() == {"fox"}


# Making


def test_a_vm_is_an_overlay_of_its_base_volume_and_says_whose_it_is(
    lab: Lab, uri: str, provider: LibvirtProvider
) -> None:
    provider.create(wanted())

    assert lab.volumes(uri) == {"debian.qcow2", "labctl-libvirt+fox+root.qcow2"}
    volume = lab.pool(uri).storageVolLookupByName("labctl-libvirt+fox+root.qcow2").XMLDesc()
    assert "<path>/images/debian.qcow2</path>" in volume
    assert f"<capacity unit='bytes'>{1024**3}</capacity>" in volume
    domain = lab.domain(uri, "fox")
    assert domain.isActive()
    assert "<source file='/images/labctl-libvirt+fox+root.qcow2'/>" in domain.XMLDesc()
    assert 'mark="labctl-libvirt" template="debian"' in domain.metadata(2, libvirt_hypervisor.NAMESPACE)
    found = provider.look_up("fox")
    assert found is not None
    assert found.running
    assert found.host == lab.connections[uri].getHostname()


def test_asking_twice_is_asking_once(lab: Lab, uri: str, provider: LibvirtProvider) -> None:
    provider.create(wanted())
    before = lab.domain(uri, "fox").UUIDString()

    provider.create(wanted())
    LibvirtProvider("libvirt", {"uris": uri}).create(wanted())

    assert lab.domain(uri, "fox").UUIDString() == before
    assert provider.names() == {"fox"}


@pytest.mark.parametrize("left", ["domain", "domain and volume", "volume"])
def test_what_was_half_made_is_listed_and_asking_again_completes_it(
    lab: Lab, uri: str, provider: LibvirtProvider, left: str
) -> None:
    provider.create(wanted())
    domain = lab.domain(uri, "fox")
    domain.destroy()
    if left == "domain":
        lab.pool(uri).storageVolLookupByName("labctl-libvirt+fox+root.qcow2").delete()
    if left == "volume":
        domain.undefine()
    found = provider.look_up("fox")
    assert found is None if left == "volume" else found is not None and not found.running
    assert provider.names() == {"fox"}

    provider.create(wanted())

    assert lab.domain(uri, "fox").isActive()
    assert lab.volumes(uri) == {"debian.qcow2", "labctl-libvirt+fox+root.qcow2"}


@pytest.mark.parametrize("left", ["domain", "domain and volume", "volume"])
def test_what_was_half_made_can_be_destroyed(lab: Lab, uri: str, provider: LibvirtProvider, left: str) -> None:
    provider.create(wanted())
    lab.domain(uri, "fox").destroy()
    if left == "domain":
        lab.pool(uri).storageVolLookupByName("labctl-libvirt+fox+root.qcow2").delete()
    if left == "volume":
        lab.domain(uri, "fox").undefine()

    provider.destroy("fox")

    assert lab.is_empty(uri)


def test_a_template_without_a_base_volume_is_misconfigured(lab: Lab, uri: str, provider: LibvirtProvider) -> None:
    with pytest.raises(Misconfigured, match=r"template windows: .* no such volume in the storage pool default"):
        provider.create(wanted(template="windows"))

    assert lab.is_empty(uri)


def test_the_disk_of_a_vm_is_no_template(lab: Lab, uri: str, provider: LibvirtProvider) -> None:
    provider.create(wanted())

    with pytest.raises(Misconfigured, match="is the disk of a VM"):
        provider.create(wanted("cat", "labctl-libvirt+fox+root.qcow2"))


def test_a_base_volume_that_is_neither_qcow2_nor_raw_is_misconfigured(
    lab: Lab, uri: str, provider: LibvirtProvider
) -> None:
    lab.add_volume(uri, "odd", "vmdk")

    with pytest.raises(Misconfigured, match="odd is vmdk, neither qcow2 nor raw"):
        provider.create(wanted(template="odd"))


def test_a_storage_pool_that_is_not_there_is_misconfigured(uri: str) -> None:
    provider = LibvirtProvider("libvirt", {"uris": uri, "storage_pool": "images"})

    with pytest.raises(Misconfigured, match="images"):
        provider.create(wanted())


def test_a_storage_pool_that_is_off_is_started(lab: Lab, uri: str, provider: LibvirtProvider) -> None:
    lab.pool(uri).destroy()

    provider.create(wanted())

    assert lab.pool(uri).isActive()


def test_no_space_for_the_volume_is_no_capacity_and_nothing_is_left(
    lab: Lab, uri: str, provider: LibvirtProvider
) -> None:
    lab.add_volume(uri, "huge", capacity=2 * ROOM)

    with pytest.raises(NoCapacity, match="Not enough free space"):
        provider.create(wanted(template="huge"))

    assert provider.names() == set()
    assert lab.domains(uri) == set()


def test_a_hypervisor_takes_no_more_than_most_vms(lab: Lab, uri: str) -> None:
    provider = LibvirtProvider("libvirt", {"uris": uri, "most_vms": 2})
    provider.create(wanted("a"))
    provider.create(wanted("b"))

    with pytest.raises(NoCapacity, match="has 2 VMs"):
        provider.create(wanted("c"))

    provider.create(wanted("b"))
    provider.destroy("a")
    provider.create(wanted("c"))
    assert provider.names() == {"b", "c"}


def test_many_who_want_the_same_vm_at_once_get_one(
    lab: Lab, uri: str, provider: LibvirtProvider, at_once: Callable[..., Any]
) -> None:
    another = LibvirtProvider("libvirt", {"uris": uri})

    at_once([lambda: provider.create(wanted()), lambda: another.create(wanted())] * 4)

    assert lab.domains(uri) == {"fox"}
    assert lab.domain(uri, "fox").isActive()
    assert lab.volumes(uri) == {"debian.qcow2", "labctl-libvirt+fox+root.qcow2"}


def test_many_who_want_the_same_vm_at_once_get_one_on_one_hypervisor(
    lab: Lab, two: tuple[str, str], over_two: LibvirtProvider, at_once: Callable[..., Any]
) -> None:
    at_once([lambda: over_two.create(wanted())] * 8)

    assert [lab.domains(uri) for uri in two] == [{"fox"}, set()]


# What is not ours


def test_a_domain_of_that_name_that_is_not_ours_is_left_alone(lab: Lab, uri: str, provider: LibvirtProvider) -> None:
    theirs = lab.connections[uri].defineXML(
        "<domain type='test'><name>fox</name><memory>1024</memory><os><type>hvm</type></os></domain>"
    )

    assert provider.look_up("fox") is None
    assert provider.names() == set()
    provider.destroy("fox")
    with pytest.raises(Failed, match="already exists"):
        provider.create(wanted())

    assert lab.domain(uri, "fox").UUIDString() == theirs.UUIDString()
    assert lab.volumes(uri) == {"debian.qcow2"}


def test_the_vms_of_another_mark_are_left_alone(lab: Lab, uri: str, provider: LibvirtProvider) -> None:
    other = LibvirtProvider("libvirt", {"uris": uri, "mark": "other"})
    other.create(wanted("cat"))
    lab.add_volume(uri, "other+dog+root.qcow2")

    provider.destroy("cat")
    provider.destroy("dog")

    assert provider.names() == set()
    assert other.names() == {"cat", "dog"}
    assert other.look_up("cat") is not None


def test_a_vm_is_destroyed_with_its_own_volumes_only(lab: Lab, uri: str, provider: LibvirtProvider) -> None:
    for name in ("fox", "fox+a", "foxy", "a+fox"):
        provider.create(wanted(name))
        lab.add_volume(uri, f"labctl-libvirt+{name}+disk1.qcow2")
    others = lab.volumes(uri) - {"labctl-libvirt+fox+root.qcow2", "labctl-libvirt+fox+disk1.qcow2"}

    provider.destroy("fox")

    assert lab.volumes(uri) == others
    assert provider.names() == {"fox+a", "foxy", "a+fox"}


# Several hypervisors


@pytest.fixture
def two(lab: Lab) -> tuple[str, str]:
    return lab.add("one", "debian.qcow2"), lab.add("two", "debian.qcow2")


@pytest.fixture
def over_two(two: tuple[str, str]) -> LibvirtProvider:
    return LibvirtProvider("libvirt", {"uris": list(two)})


def test_the_hypervisor_with_the_fewest_vms_is_taken_and_of_several_the_first(
    lab: Lab, two: tuple[str, str], over_two: LibvirtProvider
) -> None:
    for name in ("a", "b", "c"):
        over_two.create(wanted(name))
    assert [lab.domains(uri) for uri in two] == [{"a", "c"}, {"b"}]

    over_two.destroy("a")
    over_two.destroy("c")
    over_two.create(wanted("d"))

    assert [lab.domains(uri) for uri in two] == [{"d"}, {"b"}]
    assert over_two.names() == {"b", "d"}


def test_vms_that_are_made_at_once_are_spread(
    lab: Lab, two: tuple[str, str], over_two: LibvirtProvider, at_once: Callable[..., Any]
) -> None:
    at_once([lambda number=number: over_two.create(wanted(f"vm{number}")) for number in range(12)])

    assert [len(lab.domains(uri)) for uri in two] == [6, 6]


def test_a_vm_is_completed_where_it_is(lab: Lab, two: tuple[str, str], over_two: LibvirtProvider) -> None:
    over_two.create(wanted("a"))
    over_two.create(wanted("b"))
    over_two.destroy("a")
    lab.domain(two[1], "b").destroy()

    over_two.create(wanted("b"))

    assert lab.domains(two[0]) == set()
    assert lab.domain(two[1], "b").isActive()


def test_a_template_may_be_on_some_hypervisors_only(lab: Lab, two: tuple[str, str], over_two: LibvirtProvider) -> None:
    lab.add_volume(two[1], "windows.img", "raw")

    over_two.create(wanted("a", "windows"))
    over_two.create(wanted("b", "windows"))

    assert lab.domains(two[1]) == {"a", "b"}


def test_without_room_on_one_hypervisor_the_next_is_taken(
    lab: Lab, two: tuple[str, str], over_two: LibvirtProvider
) -> None:
    lab.add_volume(two[0], "large", capacity=2 * ROOM)
    lab.add_volume(two[1], "large", capacity=ROOM // 3 * 2)

    over_two.create(wanted("a", "large"))

    assert [lab.domains(uri) for uri in two] == [set(), {"a"}]
    with pytest.raises(NoCapacity):
        over_two.create(wanted("b", "large"))


@pytest.mark.parametrize("lost", ["define", "complete", "undefine"])
def test_what_may_be_left_on_one_hypervisor_is_not_made_on_the_next(
    lab: Lab, two: tuple[str, str], over_two: LibvirtProvider, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    real = getattr(Hypervisor, lost)

    def lose(hypervisor: Hypervisor, *arguments: Any) -> None:
        real(hypervisor, *arguments)
        monkeypatch.setattr(Hypervisor, "find", lambda *arguments: fail())
        fail()

    def fail(*arguments: Any) -> None:
        raise Failed("the connection is lost")

    with monkeypatch.context() as patch:
        patch.setattr(Hypervisor, lost, lose)
        if lost == "undefine":
            patch.setattr(Hypervisor, "complete", fail)
        if lost == "complete":
            patch.setattr(Hypervisor, "stop", fail)
        with pytest.raises(Failed, match="the connection is lost; and then the connection is lost"):
            over_two.create(wanted())
    monkeypatch.undo()

    assert lab.domains(two[1]) == set()


def test_a_vm_whose_making_was_answered_by_nobody_is_found_and_completed(
    lab: Lab, two: tuple[str, str], over_two: LibvirtProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Hypervisor.define

    def define(*arguments: Any) -> None:
        real(*arguments)
        raise Failed("no answer")

    monkeypatch.setattr(Hypervisor, "define", define)

    over_two.create(wanted())

    assert lab.domain(two[0], "fox").isActive()
    assert lab.domains(two[1]) == set()


def test_while_a_hypervisor_is_down_nothing_is_made_twice(
    lab: Lab, two: tuple[str, str], over_two: LibvirtProvider
) -> None:
    over_two.create(wanted("a"))
    lab.down.add(two[0])
    provider = LibvirtProvider("libvirt", {"uris": list(two)})

    for ask in (provider.look_up, provider.destroy, lambda name: provider.create(wanted(name))):
        with pytest.raises(Unreachable, match="it is down"):
            ask("a")

    lab.down.clear()
    assert provider.names() == {"a"}
    assert [lab.domains(uri) for uri in two] == [{"a"}, set()]


def test_a_vm_on_a_hypervisor_that_answers_needs_no_other(
    lab: Lab, two: tuple[str, str], over_two: LibvirtProvider
) -> None:
    over_two.create(wanted("a"))
    over_two.create(wanted("b"))
    lab.down.add(two[0])
    provider = LibvirtProvider("libvirt", {"uris": list(two)})

    assert provider.look_up("b") is not None
    provider.create(wanted("b"))
    provider.snapshot("b", "before")
    provider.destroy("b")

    assert lab.is_empty(two[1])


def test_a_hypervisor_that_is_down_does_not_keep_new_vms_from_being_made_on_another(
    lab: Lab, two: tuple[str, str]
) -> None:
    lab.down.add(two[0])
    provider = LibvirtProvider("libvirt", {"uris": list(two)})
    provider.create(replace(wanted("a"), is_new=True))
    with pytest.raises(Failed, match=r"has no such volume.*it is down") as error:
        provider.create(replace(wanted("b", "none"), is_new=True))

    assert lab.domains(two[1]) == {"a"} and not isinstance(error.value, Unreachable)


def test_a_list_without_a_hypervisor_that_is_down_says_of_which_it_is(
    lab: Lab, two: tuple[str, str], over_two: LibvirtProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def host(hypervisor: Hypervisor) -> str:
        with hypervisor.asked():
            hypervisor.last_host = {two[0]: "h1", two[1]: "h2"}[hypervisor.uri]
            return hypervisor.last_host

    monkeypatch.setattr(Hypervisor, "host", host)
    over_two.create(wanted("a"))
    over_two.create(wanted("b"))
    listed = over_two.names()
    assert listed == {"a", "b"} and not isinstance(listed, Partial)

    real = Hypervisor.domains
    fail = Failed("it is down")
    monkeypatch.setattr(Hypervisor, "domains", lambda self: _raise(fail) if self.uri == two[0] else real(self))
    listed = over_two.names()
    assert isinstance(listed, Partial) and listed == {"b"}
    assert listed.hosts == {"h2"} and listed.trouble == "it is down"

    # Who has never heard of the one that is down does not know whether the other is on the same host.
    listed = LibvirtProvider("libvirt", {"uris": list(two)}).names()
    assert isinstance(listed, Partial) and listed == {"b"} and listed.hosts == set()

    monkeypatch.setattr(Hypervisor, "domains", lambda self: _raise(fail))
    with pytest.raises(Failed, match="it is down; it is down"):
        over_two.names()


def _raise(error: Exception) -> Any:
    raise error


# From one to another


class Killed(BaseException):
    """The worker is killed there."""


@pytest.fixture
def three(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three hypervisors on hosts ``one``, ``two`` and ``three``, that volumes can be copied between."""

    def host(hypervisor: Hypervisor) -> str:
        hypervisor.last_host = lab.host(hypervisor.uri)
        return hypervisor.last_host

    def bring(journey: Journey, here: Any, there: Any, volume: str, base: Any) -> None:
        name = Path(journey._path(f"/images/{volume}")).name
        journey.target.add_volume(journey.target.pool(there), name, 1024**2, base)

    monkeypatch.setattr(Hypervisor, "host", host)
    monkeypatch.setattr(Journey, "_bring", bring)
    return [lab.add(name, "debian.qcow2") for name in ("one", "two", "three")]


@pytest.fixture
def over_three(three: list[str]) -> LibvirtProvider:
    return LibvirtProvider("libvirt", {"uris": three})


def on(lab: Lab, uris: list[str]) -> list[str]:
    """Tell on which hosts there is anything of a VM."""
    return [lab.host(uri) for uri in uris if not lab.is_empty(uri)]


def test_only_with_several_hypervisors_can_vms_be_migrated_and_live_only_if_the_lab_says_how(
    uri: str, three: list[str]
) -> None:
    live = {"live_migration": "tcp://${host}"}

    assert "migrate" not in LibvirtProvider("libvirt", {"uris": uri, **live}).capabilities
    assert LibvirtProvider("libvirt", {"uris": three}).capabilities >= {"migrate"}
    assert "live_migrate" not in LibvirtProvider("libvirt", {"uris": three}).capabilities
    assert LibvirtProvider("libvirt", {"uris": three, **live}).capabilities >= {"migrate", "live_migrate"}


def test_a_migrated_vm_is_the_same_with_its_snapshots_elsewhere_and_nowhere_else(
    lab: Lab, three: list[str], over_three: LibvirtProvider
) -> None:
    over_three.create(wanted())
    for name in ("first", "second", "third"):
        over_three.snapshot("fox", name)
    over_three.revert("fox", "second")
    before = lab.domain(three[0], "fox").UUIDString()

    over_three.migrate("fox", {"one", "two"}, live=False)

    domain = lab.domain(three[2], "fox")
    assert on(lab, three) == ["three"]
    assert domain.isActive() and domain.isPersistent() and domain.UUIDString() == before
    for xml in (domain.XMLDesc(), domain.XMLDesc(2)):
        assert 'template="debian"/>' in xml and "labctl-libvirt+fox+root-" in xml
    assert domain.snapshotCurrent().getName() == "second"
    assert domain.snapshotLookupByName("third").getParent().getName() == "second"
    assert len(lab.volumes(three[2])) == 2
    over_three.revert("fox", "first")
    over_three.migrate("fox", {"three"}, live=False)
    over_three.migrate("fox", {"one"}, live=False)
    assert on(lab, three) == ["two"] and len(lab.volumes(three[1])) == 2
    over_three.destroy("fox")
    assert on(lab, three) == []


#: Whatever changes something on the way, in this order.
STEPS = [
    (libvirt_migration, "_note"),
    (Journey, "_shut_down"),
    (Journey, "_cold"),
    (Journey, "_bring"),
    (Journey, "go"),
    (libvirt_migration, "_complete"),
    (libvirt_migration, "_names_in_use"),
    (Hypervisor, "stop"),
    (Hypervisor, "remove_volumes"),
    (Hypervisor, "undefine"),
]


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("now", ["two", "three"])
@pytest.mark.parametrize(("place", "step"), STEPS, ids=[name for _, name in STEPS])
def test_a_migration_that_was_killed_at_any_point_loses_nothing_and_is_completed_by_asking_again(
    lab: Lab, three: list[str], monkeypatch: pytest.MonkeyPatch, place: Any, step: str, now: str, is_done: bool
) -> None:
    def killed(*arguments: Any, **keywords: Any) -> None:
        if is_done:
            real(*arguments, **keywords)
        raise Killed

    real = getattr(place, step)
    provider = LibvirtProvider("libvirt", {"uris": three})
    provider.create(wanted())
    provider.snapshot("fox", "before")
    with monkeypatch.context() as patch:
        patch.setattr(place, step, killed)
        with pytest.raises(Killed):
            provider.migrate("fox", {"one"}, live=False)

    another = LibvirtProvider("libvirt", {"uris": list(reversed(three))})
    assert another.names() == {"fox"} and another.look_up("fox") is not None
    avoid = {"one", "two", "three"} - {now}
    another.migrate("fox", avoid, live=False)

    found = another.look_up("fox")
    assert found is not None and found.running and found.host == now
    there = next(uri for uri in three if lab.host(uri) == now)
    assert lab.domain(there, "fox").snapshotListNames() == ["before"]
    another.migrate("fox", avoid, live=False)
    assert on(lab, three) == [now] and len(lab.volumes(there)) == 2
    another.destroy("fox")
    assert on(lab, three) == []


def test_a_vm_that_runs_on_the_other_side_is_the_one_whatever_was_left_behind(
    lab: Lab, three: list[str], over_three: LibvirtProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    over_three.create(wanted())
    with monkeypatch.context() as patch:
        patch.setattr(libvirt_migration, "_complete", lambda *arguments: _raise(Killed()))
        with pytest.raises(Killed):
            over_three.migrate("fox", {"one"}, live=False)
    monkeypatch.setattr(Journey, "go", lambda *arguments: pytest.fail("it is copied again"))
    before = lab.domain(three[1], "fox").ID()

    found = over_three.look_up("fox")
    assert found is not None and found.running and found.host == "two"
    over_three.migrate("fox", {"one"}, live=False)

    assert on(lab, three) == ["two"] and lab.domain(three[1], "fox").ID() == before


def test_a_vm_whose_migration_was_killed_can_be_destroyed(
    lab: Lab, three: list[str], over_three: LibvirtProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    over_three.create(wanted())
    with monkeypatch.context() as patch:
        patch.setattr(libvirt_migration, "_complete", lambda *arguments: _raise(Killed()))
        with pytest.raises(Killed):
            over_three.migrate("fox", {"one"}, live=False)
    assert on(lab, three) == ["one", "two"]

    over_three.destroy("fox")

    assert on(lab, three) == []


def test_while_a_hypervisor_is_down_it_is_not_known_where_a_vm_is_that_has_left(
    lab: Lab, three: list[str], over_three: LibvirtProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    over_three.create(wanted())
    over_three.snapshot("fox", "before")
    with monkeypatch.context() as patch:
        patch.setattr(Hypervisor, "undefine", lambda *arguments: _raise(Killed()))
        with pytest.raises(Killed):
            over_three.migrate("fox", {"one"}, live=False)
    lab.down.add(three[1])
    provider = LibvirtProvider("libvirt", {"uris": three})

    with pytest.raises(Unreachable):
        provider.revert("fox", "before")

    assert not lab.domain(three[0], "fox").isActive()


def test_two_who_migrate_a_vm_at_once_get_one(
    lab: Lab, three: list[str], over_three: LibvirtProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first goes on, though it was given up, while the second is asked."""
    over_three.create(wanted())
    real, asked = Journey._bring, []

    def bring(journey: Journey, *arguments: Any) -> None:
        real(journey, *arguments)
        if not asked:
            asked.append(True)
            LibvirtProvider("libvirt", {"uris": three}).migrate("fox", {"one", "three"}, live=False)

    monkeypatch.setattr(Journey, "_bring", bring)

    over_three.migrate("fox", {"one", "three"}, live=False)

    assert asked and on(lab, three) == ["two"]
    assert lab.domain(three[1], "fox").isActive() and len(lab.volumes(three[1])) == 2


@pytest.mark.parametrize("volumes", [[], [("debian.qcow2", "raw", 1024**3)], [("debian.qcow2", "qcow2", 1024**2)]])
def test_a_vm_whose_base_volume_is_not_elsewhere_goes_on_where_it_is(
    lab: Lab, three: list[str], volumes: list[tuple[str, str, int]]
) -> None:
    provider = LibvirtProvider("libvirt", {"uris": three[:2]})
    provider.create(wanted())
    lab.pool(three[1]).storageVolLookupByName("debian.qcow2").delete()
    for volume in volumes:
        lab.add_volume(three[1], *volume)

    with pytest.raises(Misconfigured, match="template debian: "):
        provider.migrate("fox", {"one"}, live=False)

    assert lab.domain(three[0], "fox").isActive() and lab.domains(three[1]) == set()


def test_a_vm_for_which_there_is_no_room_elsewhere_goes_on_where_it_is(lab: Lab, three: list[str]) -> None:
    provider = LibvirtProvider("libvirt", {"uris": three[:2], "most_vms": 1})
    provider.create(wanted())
    provider.create(wanted("cat"))

    with pytest.raises(NoCapacity, match="has 1 VMs"):
        provider.migrate("fox", {"one"}, live=False)
    provider.destroy("cat")
    with pytest.raises(NoCapacity, match="out of service"):
        provider.migrate("fox", {"one", "two"}, live=False)
    root = "labctl-libvirt+fox+root.qcow2"
    lab.pool(three[0]).storageVolLookupByName(root).delete()
    for uri, name, size in ((three[0], root, 2 * 1024**3), (three[1], "full", ROOM - 1024**3)):
        lab.pool(uri).createXML(
            f"<volume><name>{name}</name><capacity>{size}</capacity><allocation>{size}</allocation></volume>"
        )
    with pytest.raises(NoCapacity, match="not enough free space"):
        provider.migrate("fox", {"one"}, live=False)
    assert on(lab, three[:1]) == ["one"] and lab.domain(three[0], "fox").isActive()


def test_a_vm_with_snapshots_is_not_migrated_live(lab: Lab, three: list[str]) -> None:
    provider = LibvirtProvider("libvirt", {"uris": three, "live_migration": "tcp://${host}"})
    provider.create(wanted())
    provider.snapshot("fox", "one")

    with pytest.raises(Misconfigured, match="fox: libvirt cannot migrate a VM live that has snapshots"):
        provider.migrate("fox", {"one"}, live=True)

    assert on(lab, three) == ["one"] and lab.domain(three[0], "fox").isActive()


# Connections


def test_a_hypervisor_that_does_not_answer_costs_no_more_than_patience(
    lab: Lab, uri: str, provider: LibvirtProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    import libvirt

    up = threading.Event()
    monkeypatch.setattr(libvirt, "open", lambda uri: up.wait() and lab.open(uri))
    monkeypatch.setattr(libvirt_hypervisor, "PATIENCE", 0.05)

    for _ in range(2):
        with pytest.raises(Failed, match="does not answer"):
            provider.names()
    up.set()
    monkeypatch.setattr(libvirt_hypervisor, "PATIENCE", 20)

    assert provider.names() == set()


def test_a_hypervisor_that_was_just_down_is_not_asked_at_once(
    lab: Lab, uri: str, provider: LibvirtProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirt_hypervisor, "PAUSE", 60)
    lab.down.add(uri)
    with pytest.raises(Failed, match="it is down"):
        provider.names()
    lab.down.clear()

    with pytest.raises(Failed, match="it is down"):
        provider.names()


def test_libvirt_prints_nothing(provider: LibvirtProvider, capfd: pytest.CaptureFixture[str]) -> None:
    provider.create(wanted())
    with pytest.raises(Failed):
        provider.revert("fox", "nowhere")
    provider.look_up("cat")

    assert capfd.readouterr() == ("", "")


# How a VM does


def test_a_vm_that_is_not_there_is_none(provider: LibvirtProvider) -> None:
    assert provider.look_up("fox") is None


def test_a_pause_counts_as_running_and_a_crash_does_not(lab: Lab, uri: str, provider: LibvirtProvider) -> None:
    import libvirt

    provider.create(wanted())
    domain = lab.domain(uri, "fox")
    domain.suspend()
    paused = provider.look_up("fox")
    domain.coreDump(str(lab.directory / "core"), libvirt.VIR_DUMP_CRASH)
    crashed = provider.look_up("fox")

    assert paused is not None
    assert paused.running
    assert crashed is not None
    assert not crashed.running


@pytest.mark.parametrize(
    ("interface", "expected"),
    [
        ("<interface type='network'><source network='default'/></interface>", 1),
        ("<interface type='user'/><interface type='network'><source network='default'/></interface>", 1),
        ("<interface type='user'/>", 0),
        ("", 0),
    ],
)
def test_addresses_are_those_of_interfaces_that_can_be_reached(
    lab: Lab, uri: str, provider: LibvirtProvider, interface: str, expected: int
) -> None:
    provider.create(wanted())
    domain = lab.domain(uri, "fox")
    domain.destroy()
    xml = domain.XMLDesc()
    start, end = xml.index("<interface"), xml.index("</interface>") + len("</interface>")
    lab.connections[uri].networkDefineXML(
        "<network><name>default</name><ip address='192.168.122.1' netmask='255.255.255.0'>"
        "<dhcp><range start='192.168.122.2' end='192.168.122.254'/></dhcp></ip></network>"
    ).create()
    lab.connections[uri].defineXML(xml[:start] + interface + xml[end:])
    domain.create()

    found = provider.look_up("fox")

    assert found is not None
    assert len(found.addresses) == expected
    assert all(address.startswith("192.168.122.") for address in found.addresses)


# What users do


def test_a_snapshot_is_made_once_and_a_revert_leaves_the_vm_running(
    lab: Lab, uri: str, provider: LibvirtProvider
) -> None:
    provider.create(wanted())
    provider.snapshot("fox", "before <all>")
    provider.snapshot("fox", "before <all>")
    lab.domain(uri, "fox").destroy()

    provider.revert("fox", "before <all>")
    provider.revert("fox", "before <all>")

    found = provider.look_up("fox")
    assert found is not None
    assert found.running
    assert lab.domain(uri, "fox").snapshotListNames() == ["before <all>"]


def test_a_revert_to_a_snapshot_that_is_not_there_fails_with_libvirts_words(provider: LibvirtProvider) -> None:
    provider.create(wanted())

    with pytest.raises(Failed, match="no domain snapshot with matching name 'never'"):
        provider.revert("fox", "never")


def test_nothing_can_be_done_to_a_vm_that_is_not_there(provider: LibvirtProvider) -> None:
    for ask in (lambda: provider.add_disk("fox", 1, 1), lambda: provider.snapshot("fox", "a")):
        with pytest.raises(Failed, match="there is no VM fox"):
            ask()


def test_a_disk_that_cannot_be_attached_leaves_no_volume(lab: Lab, uri: str, provider: LibvirtProvider) -> None:
    provider.create(wanted())

    with pytest.raises(Failed, match="not supported"):
        provider.add_disk("fox", 1, 10)

    assert lab.volumes(uri) == {"debian.qcow2", "labctl-libvirt+fox+root.qcow2"}


@pytest.mark.parametrize("number", [0, 26])
def test_a_vm_has_at_most_25_added_disks(provider: LibvirtProvider, number: int) -> None:
    with pytest.raises(Misconfigured, match="at most 25"):
        provider.add_disk("fox", number, 1)


def test_a_vm_is_destroyed_with_its_snapshots_saved_state_and_disks(
    lab: Lab, uri: str, provider: LibvirtProvider
) -> None:
    provider.create(wanted())
    provider.snapshot("fox", "one")
    provider.snapshot("fox", "two")
    lab.add_volume(uri, "labctl-libvirt+fox+disk1.qcow2")
    lab.domain(uri, "fox").managedSave()

    provider.destroy("fox")
    provider.destroy("fox")

    assert lab.is_empty(uri)
