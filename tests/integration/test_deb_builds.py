"""Every Debian package that `make deb` builds, wherever it is built; tests/system/test_deb.py installs one of them."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
ELF = {"amd64": 62, "arm64": 183}


def built(out: Path, release: str, arch: str) -> Path:
    """Build a package in ``out`` and return its path."""
    command = [sys.executable, "deploy/deb/build.py", "--release", release, "--arch", arch, "--out", str(out)]
    return Path(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip())


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
@pytest.mark.parametrize(("release", "python"), [("bookworm", 11), ("trixie", 13)])
def test_every_package_is_for_its_debian_and_the_same_again(
    tmp_path: Path, release: str, python: int, arch: str
) -> None:
    package = built(tmp_path, release, arch)
    control = subprocess.run(["dpkg-deb", "--field", str(package)], check=True, capture_output=True, text=True).stdout
    assert f"Architecture: {arch}\n" in control
    assert f"python3 (>= 3.{python}), python3 (<< 3.{python + 1})\n" in control
    subprocess.run(["dpkg-deb", "--extract", str(package), str(tmp_path / "tree")], check=True)
    modules = list((tmp_path / "tree").rglob("*.so"))
    assert {module.name.split(".")[1] for module in modules} <= {
        f"cpython-3{python}-{MACHINES[arch]}-linux-gnu",
        "abi3",
    }
    assert len(modules) >= 5
    assert {int.from_bytes(module.read_bytes()[18:20], "little") for module in modules} == {ELF[arch]}
    again = built(tmp_path / "again", release, arch)
    assert again.name == package.name
    assert again.read_bytes() == package.read_bytes()
