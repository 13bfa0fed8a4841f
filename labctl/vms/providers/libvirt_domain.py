"""The XML of domains: what a VM is like, filled into the shipped template or the lab's own."""

from pathlib import Path
from string import Template
from typing import Annotated
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from pydantic import Field
from pydantic.dataclasses import dataclass

from labctl.vms.provider import Misconfigured

Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Shape:
    """What a VM is like: the provider's ``options`` say so for all its pools, a pool's for its own."""

    memory_mb: Annotated[int, Field(ge=16)] = 2048
    cpus: Annotated[int, Field(ge=1)] = 2
    #: One of libvirt's networks; ``user``: what any user may have, and nobody can connect to.
    network: Text = "default"
    #: The lab's own template of a domain; empty: domain.xml.template beside this file.
    domain_xml: str = ""
    #: ``kvm``, ``qemu``...; empty: kvm where the hypervisor has it.
    domain_type: str = ""


def render(shape: Shape, *, name: str, disk: str, kind: str, dns: str = "") -> ET.Element:
    """Fill the template of a domain in; raises :class:`Misconfigured`."""
    path = Path(shape.domain_xml) if shape.domain_xml else Path(__file__).with_name("domain.xml.template")
    given = {"name": name, "domain": dns, "disk": disk, "type": kind, "memory_mb": shape.memory_mb, "cpus": shape.cpus}
    words = {key: _escape(str(value)) for key, value in given.items()}
    source = "" if shape.network == "user" else f'<source network="{_escape(shape.network)}"/>'
    words["interface"] = (
        f'<interface type="{"network" if source else "user"}">{source}<model type="virtio"/></interface>'
    )
    try:
        domain = ET.fromstring(Template(path.read_text()).substitute(words))  # noqa: S314
    except KeyError as error:
        raise Misconfigured(f"domain_xml: {path}: there is no placeholder {error.args[0]}") from error
    except (OSError, ValueError, ET.ParseError) as error:
        raise Misconfigured(f"domain_xml: {path}: {error}") from error
    mistakes = []
    if domain.tag != "domain" or domain.findtext("name") != name:
        mistakes.append("it must be a <domain> with <name>${name}</name>")
    if disk not in sources(domain):
        mistakes.append('it must have a disk with <source file="${disk}"/>')
    if domain.find("uuid") is not None or domain.find("devices/interface/mac") is not None:
        mistakes.append("it must leave <uuid> and <mac> to libvirt, or all VMs had the same")
    if mistakes:
        raise Misconfigured("\n".join(f"domain_xml: {path}: {mistake}" for mistake in mistakes))
    return domain


def _escape(text: str) -> str:
    return escape(text, {'"': "&quot;", "'": "&apos;"})


def sources(domain: ET.Element) -> set[str]:
    """List the files of a domain's disks."""
    return {source.get("file", "") for source in domain.findall("devices/disk/source")}


def element(tag: str, text: str = "", *children: ET.Element, **attributes: str) -> ET.Element:
    """Make an XML element."""
    made = ET.Element(tag, attributes)
    made.text = text
    made.extend(children)
    return made
