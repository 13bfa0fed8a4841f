"""A real LDAP server with a few users, and servers that are no use."""

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("slapd", path="/usr/sbin:/usr/bin")
#: Where Debian has them.
SCHEMA = Path("/etc/ldap/schema")
MISSING = "slapd and openssl are not installed (Debian: apt-get install slapd openssl)"
INSTALLED = bool(PROGRAM and shutil.which("openssl") and SCHEMA.is_dir())

BASE = "dc=example,dc=org"
PEOPLE = f"ou=people,{BASE}"
SERVICE, SERVICE_PASSWORD = f"cn=labctl,{BASE}", "service secret"
ROOT, ROOT_PASSWORD = f"cn=root,{BASE}", "root secret"
PASSWORD = "correct horse"
#: Names that mean something else in a filter or a DN.
ODD = ["we*ird()\\name", 'com,ma+plus"quote', "#first", "a=b;c<d>", "ädä", "a/b", "a@b.org"]

CONFIG = """
include {schema}/core.schema
include {schema}/cosine.schema
include {schema}/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {home}/pid
argsfile {home}/args
{tls}
database mdb
suffix "{base}"
rootdn "{root}"
rootpw "{root_password}"
directory {home}/data
maxsize 16777216
access to attrs=userPassword by anonymous auth by * none
access to dn.subtree="ou=open,{base}" by * read
access to dn.subtree="{base}" by dn.exact="{service}" read by anonymous auth by * none
"""


def _entry(dn: str, *lines: str) -> str:
    return "\n".join([f"dn: {dn}", *lines, "", ""])


def person(dn: str, uid: str, password: str = PASSWORD) -> str:
    more = ["objectClass: inetOrgPerson", f"uid: {uid}", "cn: x", "sn: x", f"userPassword: {password}"]
    return _entry(dn, *more)


def hexadecimal(text: str) -> str:
    return "".join(f"\\{byte:02x}" for byte in text.encode())


def people(elsewhere: str) -> str:
    """Write the users as LDIF; ``elsewhere`` is the URL of a server that a part of them is on."""
    units = [
        _entry(BASE, "objectClass: dcObject", "objectClass: organization", "o: x", "dc: example"),
        *(
            _entry(f"ou={unit},{BASE}", "objectClass: organizationalUnit", f"ou: {unit}")
            for unit in ("people", "others", "open")
        ),
        _entry(
            SERVICE,
            "objectClass: organizationalRole",
            "objectClass: simpleSecurityObject",
            "cn: labctl",
            f"userPassword: {SERVICE_PASSWORD}",
        ),
        _entry(
            f"ou=elsewhere,{PEOPLE}",
            "objectClass: referral",
            "objectClass: extensibleObject",
            "ou: elsewhere",
            f"ref: {elsewhere}/ou=elsewhere,{PEOPLE}",
        ),
    ]
    names = ["ada", "bob", "admin", "leaver", *ODD]
    persons = [person(f"uid={hexadecimal(name)},{PEOPLE}", name) for name in names]
    persons += [person(f"uid=twin,ou={unit},{BASE}", "twin") for unit in ("people", "others")]
    persons += [person(f"uid=eve,ou=open,{BASE}", "eve")]
    return "".join([*units, *persons])


class Certificates:
    """An authority, the certificate of a server at 127.0.0.1, and another authority."""

    def __init__(self, home: Path) -> None:
        self.authority, self.key = self._authority(home, "authority")
        self.other, _ = self._authority(home, "other")
        self.server, self.server_key = home / "server.pem", home / "server.key"
        request, extensions = home / "server.csr", home / "extensions"
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        _openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=ldap", "-keyout", self.server_key, "-out", request
        )
        _openssl(
            "x509",
            "-req",
            "-in",
            request,
            "-CA",
            self.authority,
            "-CAkey",
            self.key,
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            extensions,
            "-out",
            self.server,
        )

    def _authority(self, home: Path, name: str) -> tuple[Path, Path]:
        certificate, key = home / f"{name}.pem", home / f"{name}.key"
        _openssl(
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            f"/CN={name}",
            "-days",
            "2",
            "-keyout",
            key,
            "-out",
            certificate,
        )
        return certificate, key


def _openssl(*arguments: Any) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Slapd:
    """One running server."""

    def __init__(self, home: Path, certificates: Certificates | None, elsewhere: str = "ldap://127.0.0.1:9") -> None:
        tls = ""
        self.plain, self.ports = free_port(), []
        self.url = f"ldap://127.0.0.1:{self.plain}"
        urls = [self.url]
        if certificates:
            tls = (
                f"TLSCACertificateFile {certificates.authority}\nTLSCertificateFile {certificates.server}\n"
                f"TLSCertificateKeyFile {certificates.server_key}"
            )
            encrypted = free_port()
            # The second address is none of those in the certificate.
            self.tls_url, self.misnamed_url = (f"ldaps://{host}:{encrypted}" for host in ("127.0.0.1", "127.0.0.2"))
            urls += [self.tls_url, self.misnamed_url]
        (home / "data").mkdir(parents=True)
        config, data = home / "slapd.conf", home / "people.ldif"
        config.write_text(
            CONFIG.format(
                home=home, schema=SCHEMA, tls=tls, base=BASE, root=ROOT, root_password=ROOT_PASSWORD, service=SERVICE
            )
        )
        data.write_text(people(elsewhere))
        assert PROGRAM
        # Where AppArmor is on, the installed one reads its own directories only.
        program = shutil.copy(PROGRAM, home / "slapd")
        added = subprocess.run(
            [program, "-T", "add", "-f", config, "-l", data], capture_output=True, text=True, check=False
        )
        assert added.returncode == 0, added.stderr
        self.said = home / "slapd.log"
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [program, "-f", config, "-h", " ".join(f"{url}/" for url in urls), "-d", "256"],
                stderr=said,
                stdout=said,
            )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.plain), 1).close()
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, self.said.read_text()
                threading.Event().wait(0.02)

    def delete(self, dn: str) -> None:
        """Remove an entry."""
        import ldap3

        root = ldap3.Connection(ldap3.Server(self.url, get_info=ldap3.NONE), ROOT, ROOT_PASSWORD, auto_bind=True)
        assert root.delete(dn), root.result
        root.unbind()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Listener:
    """A server that takes connections and says nothing, or a byte now and then."""

    def __init__(self, drip: bytes, pause: float) -> None:
        self.drip, self.pause = drip, pause
        self.calls = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"ldap://127.0.0.1:{self.socket.getsockname()[1]}"
        self.tls_url = self.url.replace("ldap:", "ldaps:")
        self.closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                taken, _ = self.socket.accept()
                self.calls += 1
                threading.Thread(target=self._serve, args=(taken,), daemon=True).start()

    def _serve(self, taken: socket.socket) -> None:
        with taken, suppress(OSError):
            for byte in self.drip:
                if self.closed.wait(self.pause):
                    return
                taken.send(bytes([byte]))
            self.closed.wait(60)

    def close(self) -> None:
        self.closed.set()
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


@contextmanager
def listening(drip: bytes = b"", pause: float = 0.2) -> Iterator[Listener]:
    listener = Listener(drip, pause)
    try:
        yield listener
    finally:
        listener.close()
