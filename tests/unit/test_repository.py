"""The repository's own promises: requirement files that agree with pyproject.toml, no registry host, a clean wheel."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
BUILD = PROJECT["dependency-groups"]["build"]
FILES = {
    "edge": ["edge"],
    "cloud": ["cloud"],
    "demo": ["edge", "cloud", "sim", "tui"],
    "dev": ["edge", "cloud", "sim", "tui", "dev"],
}
# A pattern, so that this file does not hold what it looks for.
REGISTRY = re.compile(
    r"\b(pypi|pythonhosted|npmjs|crates|docker|ghcr|quay|maven(\.apache)?|deb\.debian)\.(org|com|io)\b"
)


def pins(name: str) -> dict[str, tuple[str, Marker | None, int]]:
    """Read a requirement file: package → version, marker, number of hashes."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", " ")
    found: dict[str, tuple[str, Marker | None, int]] = {}
    for line in text.splitlines():
        requirement = Requirement(line.partition("--hash")[0].strip())
        version = str(requirement.specifier).removeprefix("==")
        found[canonicalize_name(requirement.name)] = (version, requirement.marker, line.count("--hash=sha256:"))
    return found


def asked(name: str) -> Iterator[Requirement]:
    """Give what pyproject.toml asks for, for one requirement file."""
    texts = [*PROJECT["project"]["dependencies"], *(text for extra in FILES[name] for text in EXTRAS[extra])]
    if name in {"demo", "dev"}:
        texts += BUILD
    return (requirement for requirement in map(Requirement, texts) if requirement.name != "waybill")


@pytest.mark.parametrize("name", FILES)
def test_a_requirement_file_pins_what_pyproject_asks_for(name: str) -> None:
    pinned = pins(name)
    for requirement in asked(name):
        package = canonicalize_name(requirement.name)
        assert package in pinned, f"requirements/{name}.txt lacks {package}: make requirements"
        version = pinned[package][0]
        assert version in requirement.specifier, f"requirements/{name}.txt has {package} {version}: make requirements"


@pytest.mark.parametrize("name", FILES)
def test_a_requirement_file_is_complete_for_this_python(name: str) -> None:
    """What the pinned packages themselves ask for, read from those installed, is pinned too, in versions they take."""
    pinned = pins(name)
    waiting = [(canonicalize_name(r.name), frozenset(r.extras)) for r in asked(name)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        package, extras = waiting.pop()
        if (package, extras) in seen:
            continue
        seen.add((package, extras))
        version, _, hashes = pinned[package]
        assert hashes > 0, f"{package} has no hash"
        assert importlib.metadata.version(package) == version
        for text in importlib.metadata.requires(package) or []:
            needed = Requirement(text)
            if any(needed.marker is None or needed.marker.evaluate({"extra": extra}) for extra in extras | {""}):
                dependency = canonicalize_name(needed.name)
                assert dependency in pinned, f"requirements/{name}.txt lacks {dependency} of {package}"
                assert pinned[dependency][0] in SpecifierSet(str(needed.specifier), prereleases=True)
                waiting.append((dependency, frozenset(needed.extras)))


def test_what_is_deployed_is_what_is_tested() -> None:
    tested = pins("dev")
    for name in ("edge", "cloud", "demo"):
        for package, (version, _, _) in pins(name).items():
            assert tested[package][0] == version


def test_a_gateway_does_not_install_kafka() -> None:
    assert not [name for name in pins("edge") if "kafka" in name or name in {"cramjam", "textual", "hatchling"}]
    assert [name for name in pins("cloud") if "kafka" in name]
    assert "aiomqtt" not in pins("cloud")


@pytest.mark.parametrize("name", FILES)
def test_a_requirement_file_holds_no_address_and_no_option(name: str) -> None:
    for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._\[\],-]+==[^:\\]+\\|    --hash=sha256:[0-9a-f]{64}( \\)?", line), line


def files() -> Iterator[Path]:
    """Give the repository's files: what git knows or would add, or in an unpacked archive what is there."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        yield from (path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file())
    else:
        for path in ROOT.rglob("*"):
            inside = path.relative_to(ROOT).parts
            if path.is_file() and not any(part in {".venv", "var", "__pycache__"} for part in inside):
                yield path


def test_no_file_names_a_package_registry() -> None:
    count = 0
    for path in files():
        count += 1
        if found := REGISTRY.search(path.read_text(errors="ignore")):
            pytest.fail(f"{path.relative_to(ROOT)} names {found[0]}: registries come from the user's own configuration")
    assert count > 40


def test_the_pattern_for_registries_finds_them() -> None:
    for host in ("files.pythonhosted." + "org", "https://pypi." + "org/simple", "repo1.maven." + "org"):
        assert REGISTRY.search(host)


def test_the_wheel_holds_the_four_packages_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    packages = {"edge_agent", "cloud_ingest", "waybill", "fleet_simulator"}
    assert {name.partition("/")[0] for name in names} == packages | {
        f"waybill-{PROJECT['project']['version']}.dist-info"
    }
    for package in packages:
        assert f"{package}/py.typed" in names
    assert "fleet_simulator/data/drives/LICENSE" in names
    assert sum(name.startswith("fleet_simulator/data/drives/trips/") for name in names) == 6


def test_the_recorded_drives_are_whole() -> None:
    trips = ROOT / "simulators" / "fleet_simulator" / "data" / "drives" / "trips"
    rows = sum(len(trip.read_bytes().splitlines()) - 1 for trip in trips.iterdir())
    assert rows == 18559


def test_shared_and_simulators_are_folders_not_packages() -> None:
    assert not (ROOT / "shared" / "__init__.py").exists()
    assert not (ROOT / "simulators" / "__init__.py").exists()
