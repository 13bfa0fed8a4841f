"""A base volume that boots in seconds: GRUB, Debian's cloud kernel, and busybox in an initramfs."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

SECTOR = 512
#: Where the kernel begins; what is before it is GRUB's.
KERNEL_AT = 2048
#: Size of the disk, most of which is never written.
MEGABYTES = 64

MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
)

#: The guest: it says that it is ready until somebody writes a line, and then does what lines say.
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in {modules}; do insmod /lib/$module.ko; done
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo
until read -t 1 line; do echo "guest is ready"; done
while true; do
    eval "$line" 2>&1
    echo "status $?"
    read line
done
"""


def build(kernel: Path, image: Path) -> None:
    """Write a raw image that boots the kernel ``kernel/vmlinuz``, whose modules lie beside it."""
    linux = (kernel / "vmlinuz").read_bytes()
    initramfs = b"".join(archive(contents(kernel)))
    sizes = [-(-len(data) // SECTOR) for data in (linux, initramfs)]
    loader = grub(
        image.with_suffix(".grub"),
        f"linux (hd0){KERNEL_AT}+{sizes[0]} console=ttyS0 quiet panic=-1 random.trust_cpu=on\n"
        f"initrd (hd0){KERNEL_AT + sizes[0]}+{sizes[1]}\n"
        "boot\n",
    )
    assert len(loader) <= KERNEL_AT * SECTOR
    with image.open("wb") as disk:
        disk.write(loader)
        disk.seek(KERNEL_AT * SECTOR)
        disk.write(linux)
        disk.seek((KERNEL_AT + sizes[0]) * SECTOR)
        disk.write(initramfs)
        disk.truncate(MEGABYTES * 1024 * 1024)


def grub(directory: Path, configuration: str) -> bytes:
    """Make what a disk begins with: the sector that the BIOS loads, and behind it GRUB's core."""
    directory.mkdir()
    (directory / "grub.cfg").write_text(configuration)
    command = ["grub-mkimage", "-O", "i386-pc", "-p", "(hd0)", "-c", directory / "grub.cfg", "-o", directory / "core"]
    subprocess.run([*command, "biosdisk", "linux"], check=True)
    return Path("/usr/lib/grub/i386-pc/boot.img").read_bytes() + (directory / "core").read_bytes()


def contents(kernel: Path) -> Iterator[tuple[str, int, bytes]]:
    """Give the files of the initramfs: path, mode, data."""
    busybox = shutil.which("busybox")
    assert busybox is not None
    for directory in ("bin", "lib", "dev"):
        yield directory, 0o040755, b""
    yield "bin/busybox", 0o100755, Path(busybox).read_bytes()
    modules = [module for module in MODULES if (kernel / f"{module}.ko").exists()]
    for module in modules:
        yield f"lib/{module}.ko", 0o100644, (kernel / f"{module}.ko").read_bytes()
    yield "init", 0o100755, INIT.format(modules=" ".join(modules)).encode()


def archive(files: Iterator[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """Pack files as the kernel wants them (cpio, newc)."""
    for number, (path, mode, data) in enumerate([*files, ("TRAILER!!!", 0, b"")]):
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + name
        yield header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4)
