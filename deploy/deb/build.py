"""Build the gateway's Debian package: the agent and its pinned packages, bound to one Debian release's Python.

::

    make deb RELEASE=trixie ARCH=arm64          →  dist/waybill-edge_0.1.0-1+deb13_arm64.deb

    /usr/bin/waybill                            deploy/deb/waybill
    /usr/lib/waybill/                           what requirements/edge.txt pins, by its hashes, and this checkout
    /usr/share/doc/waybill-edge/                changelogs, and the licence of everything that is bundled

Any machine with ``dpkg-deb`` builds for each release and architecture, since wheels are taken as they are. The same
commit gives the same bytes: times are those of the commit (``SOURCE_DATE_EPOCH`` overrides it), owners root.
"""

from __future__ import annotations

import argparse
import email
import gzip
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

ROOT: Final = Path(__file__).parents[2]
HERE: Final = Path(__file__).parent
NAME: Final = "waybill-edge"
LIB: Final = "usr/lib/waybill"
DOC: Final = f"usr/share/doc/{NAME}"
SCRIPTS: Final = ("postinst", "prerm", "postrm")


@dataclass(frozen=True, slots=True)
class Release:
    """A release of Debian: its number, the minor version of its Python 3, that of its C library 2."""

    number: int
    python: int
    libc: int


RELEASES: Final[Mapping[str, Release]] = {"bookworm": Release(12, 11, 36), "trixie": Release(13, 13, 41)}
MACHINES: Final[Mapping[str, str]] = {"amd64": "x86_64", "arm64": "aarch64"}
"""Debian's architecture → the machine in a wheel's name."""

APACHE: Final = "/usr/share/common-licenses/Apache-2.0"
"""Where every Debian has the licence that several packages bring along."""

OVERRIDES: Final = (
    f"# Wheels stay as their authors built them: by their hashes.\n{NAME}: unstripped-binary-or-object *\n"
)
"""For lintian."""

DESCRIPTION: Final = """\
 Takes messages from MQTT devices, keeps them on the disk through outages
 and crashes, and sends them on to Kafka: none lost, none twice, in order,
 or the loss declared.
 .
 All Python packages that it needs come with it, in /usr/lib/waybill."""


def build(release: str, arch: str, out: Path) -> Path:
    """Build the package in the directory ``out`` and return its path. Raises CalledProcessError of pip and dpkg-deb."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    version = f"{version}-1+deb{RELEASES[release].number}"
    when = moment()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        tree = Path(made) / "tree"
        packages(tree / LIB, release, arch, Path(made))
        launcher = tree / "usr/bin/waybill"
        launcher.parent.mkdir()
        shutil.copyfile(HERE / "waybill", launcher)
        documents(tree, version, when)
        size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN/control").write_text(control(version, release, arch, -(-size // 1024)))
        for script in SCRIPTS:
            shutil.copyfile(HERE / script, tree / "DEBIAN" / script)
        settle(tree, when)
        package = out / f"{NAME}_{version}_{arch}.deb"
        _run("dpkg-deb", "--root-owner-group", "--build", str(tree), str(package), SOURCE_DATE_EPOCH=str(when))
    return package


def packages(to: Path, release: str, arch: str, scratch: Path) -> None:
    """Install the pinned packages for another Debian's Python, and this checkout, without their scripts."""
    target, machine = RELEASES[release], MACHINES[arch]
    pins = scratch / "edge.txt"
    pins.write_text("\n".join(requirements(target.python)) + "\n")
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(17, target.libc + 1)] + [f"manylinux2014_{machine}"]
    wanted = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", f"3.{target.python}"]
    wanted += [part for tag in tags for part in ("--platform", tag)]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = [*pip, "install", "--target", str(to), "--no-compile", "--no-deps"]
    _run(*install, *wanted, "--require-hashes", "-r", str(pins))
    _run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(scratch), str(ROOT))
    (wheel,) = scratch.glob("waybill-*.whl")
    _run(*install, "--upgrade", *wanted, str(wheel))
    shutil.rmtree(to / "bin")
    for info in to.glob("*.dist-info"):
        for name in ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json"):
            (info / name).unlink(missing_ok=True)


def requirements(python: int) -> Iterator[str]:
    """Give what requirements/edge.txt pins for a Python 3 of minor version ``python``, whatever this one is."""
    environment = {
        "python_version": f"3.{python}",
        "python_full_version": f"3.{python}.0",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "sys_platform": "linux",
    }
    for line in (ROOT / "requirements/edge.txt").read_text().replace("\\\n", " ").splitlines():
        text, *hashes = line.split(" --hash=")
        requirement = Requirement(text.strip())
        if requirement.marker is None or requirement.marker.evaluate(environment):
            yield " --hash=".join([f"{requirement.name}{requirement.specifier}", *map(str.strip, hashes)])


def control(version: str, release: str, arch: str, size: int) -> str:
    """Return the package's control file. ``size``: KiB installed."""
    python = RELEASES[release].python
    name, address = os.environ.get("DEBFULLNAME", "Waybill"), os.environ.get("DEBEMAIL", "waybill@waybill.example")
    fields = {
        "Package": NAME,
        "Version": version,
        "Architecture": arch,
        "Maintainer": f"{name} <{address}>",
        "Installed-Size": str(size),
        "Depends": f"libc6 (>= 2.28), libgcc-s1, passwd, python3 (>= 3.{python}), python3 (<< 3.{python + 1})",
        "Section": "net",
        "Priority": "optional",
        "Description": f"durable MQTT to Kafka: the agent on a gateway\n{DESCRIPTION}",
    }
    return "".join(f"{field}: {value}\n" for field, value in fields.items())


def documents(tree: Path, version: str, when: int) -> None:
    """Write the changelogs and the licences."""
    to = tree / DOC
    to.mkdir(parents=True)
    entry = f"{NAME} ({version}) stable; urgency=medium\n\n  * See changelog.gz.\n\n"
    entry += f" -- Waybill <waybill@waybill.example>  {formatdate(when)}\n"
    for name, text in (
        ("changelog.Debian.gz", entry),
        ("changelog.gz", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")),
    ):
        (to / name).write_bytes(gzip.compress(text.encode(), mtime=0))
    overrides = tree / "usr/share/lintian/overrides" / NAME
    overrides.parent.mkdir(parents=True)
    overrides.write_text(OVERRIDES)
    (to / "copyright").write_text("\n".join(licences(tree / LIB)), encoding="utf-8")


def licences(lib: Path) -> Iterator[str]:
    """Give the licence of each bundled package, in its own words. Raises ValueError where one has none."""
    for info in sorted(lib.glob("*.dist-info")):
        about = email.message_from_string((info / "METADATA").read_text(encoding="utf-8"))
        kinds = [each.rpartition(" :: ")[2] for each in about.get_all("Classifier", []) if each.startswith("License")]
        texts = sorted(
            path
            for path in info.rglob("*")
            if path.is_file() and path.name.upper().startswith(("LICEN", "COPYING", "NOTICE"))
        )
        if not texts:
            raise ValueError(f"{info.name} comes without its licence, which a package has to hold")
        kind = about["License-Expression"] or ", ".join(kinds) or (about["License"] or "").partition("\n")[0]
        yield f"{'=' * 78}\n{about['Name']} {about['Version']}: {kind or 'as follows'}\n{'=' * 78}"
        for path in texts:
            text = path.read_text(encoding="utf-8")
            whole = "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
            yield f"--- {path.relative_to(info)}\n{f'The Apache License 2.0: {APACHE}' if whole else text}"


def settle(tree: Path, when: int) -> None:
    """Give every file its mode and time, whatever the umask and the clock here."""
    programs = {tree / "usr/bin/waybill", *(tree / "DEBIAN" / script for script in SCRIPTS)}
    for path in (tree, *tree.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path in programs else 0o644)
        os.utime(path, (when, when))


def moment() -> int:
    """Return the time of the package, in seconds since 1970: of the environment, or of the commit."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    said = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False)
    return int(said.stdout) if said.returncode == 0 else int((ROOT / "CHANGELOG.md").stat().st_mtime)


def _run(*command: str, **environment: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | environment)


def main() -> int:
    """Build what the arguments ask for, and print its path."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--release", choices=RELEASES, default="bookworm")
    parser.add_argument("--arch", choices=MACHINES, default="amd64")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    arguments = parser.parse_args()
    if shutil.which("dpkg-deb") is None:
        print("dpkg-deb is not installed; it comes with Debian's package dpkg, on any Linux", file=sys.stderr)
        return 2
    try:
        print(build(arguments.release, arguments.arch, arguments.out))
    except subprocess.CalledProcessError as error:
        print(f"{error.cmd[0]} failed, as said above", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
