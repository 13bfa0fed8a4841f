"""The numbers and codenames of distributions' versions, and the table they are looked up in."""

import csv
import subprocess
import sys
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as configured
from hypothesis import strategies as st

from labctl.repos.distros import Version, resolve

ROOT = Path(__file__).parents[2]
#: Where Debian's package distro-info-data has what our table was made of.
DISTRO_INFO = Path("/usr/share/distro-info")


def read_releases() -> list[tuple[str, str, str]]:
    """Read the file, less leniently than labctl does."""
    text = resources.files("labctl.repos").joinpath("releases.csv").read_text(encoding="utf-8")
    lines = text.splitlines()
    start = lines.index("distro,version,codename")
    assert all(line.startswith("# ") for line in lines[:start])
    return [(distro, version, codename) for distro, version, codename in csv.reader(lines[start + 1 :])]


RELEASES = read_releases()


@pytest.mark.parametrize(
    ("distro", "version", "number", "codename", "platform"),
    [
        ("ubuntu", "jammy", "22.04", "jammy", "ubuntu/22.04"),
        ("ubuntu", "22.04", "22.04", "jammy", "ubuntu/22.04"),
        ("Ubuntu", "Trusty", "14.04", "trusty", "ubuntu/14.04"),
        ("UBUNTU", "NOBLE", "24.04", "noble", "ubuntu/24.04"),
        ("debian", "12", "12", "bookworm", "debian/12"),
        ("Debian", "Bookworm", "12", "bookworm", "debian/12"),
    ],
)
def test_a_release_is_known_by_its_number_and_by_its_codename(
    distro: str, version: str, number: str, codename: str, platform: str
) -> None:
    assert resolve(distro, version) == Version(number, codename, platform)


@pytest.mark.parametrize(
    ("distro", "version", "platform"),
    [
        ("centos", "9", "centos/9"),
        ("rocky", "10", "rocky/10"),
        ("CentOS", "8.5.2111", "centos/8.5.2111"),
        ("ubuntu", "99.04", "ubuntu/99.04"),
        ("ubuntu", "12", "ubuntu/12"),
        ("debian", "22.04", "debian/22.04"),
        ("debian", ".5", "debian/.5"),
        ("debian", "..5..", "debian/..5.."),
        ("", "7", "/7"),
    ],
)
def test_digits_and_dots_that_are_no_release_are_a_number_without_a_codename(
    distro: str, version: str, platform: str
) -> None:
    assert resolve(distro, version) == Version(version, None, platform)


@pytest.mark.parametrize(
    ("distro", "version", "platform"),
    [
        ("centos", "9.stream", "centos/9.stream"),
        ("ubuntu", "Frobnicate", "ubuntu/frobnicate"),
        ("Debian", "Sid", "debian/sid"),
        ("debian", "jammy", "debian/jammy"),
        ("ubuntu", " jammy", "ubuntu/ jammy"),
        ("ubuntu", "22.04\n", "ubuntu/22.04\n"),
        ("ubuntu", "22.04 LTS", "ubuntu/22.04 lts"),
        ("ubuntu ", "jammy", "ubuntu /jammy"),
        ("ubuntu", "", "ubuntu/"),
        ("ubuntu", "...", "ubuntu/..."),
        # Digits of other scripts are no version's.
        ("ubuntu", "२२.०४", "ubuntu/२२.०४"),
        ("ubuntu", "²", "ubuntu/²"),
        ("#", "distro", "#/distro"),
        ("distro", "version", "distro/version"),
    ],
)
def test_anything_else_is_a_codename_without_a_number(distro: str, version: str, platform: str) -> None:
    assert resolve(distro, version) == Version(None, version, platform)


def test_a_long_text_of_digits_is_read_once() -> None:
    version = "1" * 1_000_000 + "x"
    assert resolve("ubuntu", version) == Version(None, version, f"ubuntu/{version}")


@st.composite
def in_any_case(draw: st.DrawFn, word: str) -> str:
    upper = draw(st.lists(st.booleans(), min_size=len(word), max_size=len(word)))
    return "".join(letter.upper() if up else letter for letter, up in zip(word, upper, strict=True))


@configured(deadline=None)
@given(st.data(), st.sampled_from(RELEASES))
def test_every_release_is_found_by_both_its_names_in_any_letter_case(
    data: st.DataObject, release: tuple[str, str, str]
) -> None:
    distro, number, codename = release
    spelled = data.draw(in_any_case(distro))
    expected = Version(number, codename, f"{distro}/{number}")
    assert resolve(spelled, number) == resolve(spelled, data.draw(in_any_case(codename))) == expected


DISTROS = st.one_of(st.sampled_from(["ubuntu", "Debian", "centos", "rocky"]), st.text())
VERSIONS = st.one_of(
    st.text(), st.text("0123456789."), st.sampled_from([name for release in RELEASES for name in release[1:]])
)


@configured(deadline=None)
@given(DISTROS, VERSIONS)
def test_any_text_has_a_version_and_what_is_told_of_it_leads_back_to_it(distro: str, version: str) -> None:
    told = resolve(distro, version)
    names = [name for name in (told.number, told.codename) if name is not None]
    assert names
    for name in names:
        assert resolve(distro, name) == told
    assert resolve(distro.lower(), version.lower()).platform == told.platform
    assert resolve(distro, told.platform.removeprefix(f"{distro.lower()}/")).platform == told.platform


def test_the_file_names_no_release_twice() -> None:
    # A number and a codename cannot be the same: one of them has letters only, the other none.
    for distro, version, codename in RELEASES:
        assert distro in ("ubuntu", "debian")
        assert set(version) <= set("0123456789.")
        assert codename.isascii() and codename.isalpha() and codename.islower()
    assert len({(distro, version) for distro, version, _ in RELEASES}) == len(RELEASES)
    assert len({(distro, codename) for distro, _, codename in RELEASES}) == len(RELEASES)


@pytest.mark.parametrize(
    "release",
    [
        # What clients of shaman rely on.
        ("ubuntu", "22.04", "jammy"),
        ("ubuntu", "20.04", "focal"),
        ("ubuntu", "18.04", "bionic"),
        ("ubuntu", "16.10", "yakkety"),
        ("ubuntu", "16.04", "xenial"),
        ("ubuntu", "14.04", "trusty"),
        ("debian", "11", "bullseye"),
        ("debian", "10", "buster"),
        ("debian", "9", "stretch"),
        ("debian", "8", "jessie"),
        ("debian", "7", "wheezy"),
        # What has been released since.
        ("ubuntu", "24.04", "noble"),
        ("ubuntu", "26.04", "resolute"),
        ("debian", "12", "bookworm"),
        ("debian", "13", "trixie"),
        # The first and the last ones.
        ("ubuntu", "4.10", "warty"),
        ("ubuntu", "26.10", "stonking"),
        ("debian", "1.1", "buzz"),
        ("debian", "15", "duke"),
    ],
)
def test_the_file_has_the_releases_that_clients_ask_for(release: tuple[str, str, str]) -> None:
    assert release in RELEASES


@pytest.mark.parametrize("distro", ["ubuntu", "debian"])
def test_the_file_agrees_with_distro_info_where_both_know_releases(distro: str) -> None:
    """A newer distro-info may know more, an older one less: they are compared up to the newest that both know of."""
    path = DISTRO_INFO / f"{distro}.csv"
    if not path.exists():
        pytest.skip(f"no {path}: Debian's package distro-info-data is not installed")
    with path.open(encoding="utf-8") as file:
        rows = [(row["version"] or "", row["series"]) for row in csv.DictReader(file)]
    theirs = {version.removesuffix(" LTS"): series for version, series in rows if version}
    ours = {version: codename for name, version, codename in RELEASES if name == distro}
    newest = min(max(map(_order, theirs)), max(map(_order, ours)))
    assert _until(newest, ours) == _until(newest, theirs)


def _order(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def _until(newest: list[int], releases: dict[str, str]) -> dict[str, str]:
    return {version: name for version, name in releases.items() if _order(version) <= newest}


@pytest.mark.skipif(find_spec("setuptools") is None, reason="setuptools, which builds the package, is not installed")
def test_an_installed_package_carries_the_file(tmp_path: Path) -> None:
    build = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=60)
    built = tmp_path / "labctl" / "repos" / "releases.csv"
    assert built.read_bytes() == resources.files("labctl.repos").joinpath("releases.csv").read_bytes()
