"""A computer with Debian, systemd and an operating system of its own, in QEMU: emulated, so that any host will do.

Its disk is a file; it is made from Debian's packages, and without mounts. The test types into it through a port that
is no network (virtio-serial), so that it can be without one. The host is 10.0.2.2 to it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
FAR: Final = 1800.0
"""Seconds after which nothing is waited for any more: a start takes a minute, or many on a busy host."""

PACKAGES: Final = (
    "systemd-sysv,systemd-timesyncd,dbus,udev,linux-image-cloud-amd64,iproute2,procps,python3,mosquitto-clients"
)

CONTROL: Final = r"""
import json, os, subprocess
port = os.open("/dev/virtio-ports/control", os.O_RDWR)
for line in os.fdopen(port, "rb", closefd=False):
    number, script = json.loads(line)
    done = subprocess.run(
        ["bash", "-c", script], cwd="/srv", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", "SYSTEMD_PAGER": "",
             "DEBIAN_FRONTEND": "noninteractive"},
    )
    said = json.dumps([number, done.returncode, done.stdout.decode(errors="replace")]).encode() + b"\n"
    while said:
        said = said[os.write(port, said):]
"""

SERVICE: Final = r"""
[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart=/usr/bin/python3 -IS /usr/lib/control.py
Restart=always
RestartSec=1
KillMode=process
[Install]
WantedBy=multi-user.target
"""


def until(met: Callable[[], object], process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait for ``met``; fails after FAR, or when ``process`` has ended."""
    end = time.monotonic() + FAR
    while not met():
        assert time.monotonic() < end
        assert process is None or process.poll() is None
        time.sleep(0.2)


def packages(names: str = PACKAGES, release: str = "bookworm") -> Path:
    """Return a root file system of Debian's, as a tar file: downloaded once a day."""
    kept = ROOT / "var" / "machine"
    tar = kept / f"{release}-{time.strftime('%Y%m%d')}.tar"
    if not tar.exists():
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        made = kept / "part.tar"
        less = [f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("man", "doc", "locale")]
        options = ["--quiet", "--variant=minbase", f"--include={names}", "--dpkgopt=force-unsafe-io", *less]
        subprocess.run(["mmdebstrap", *options, release, str(made)], check=True)
        made.rename(tar)
    return tar


class Machine:
    """It has what is put below ``root`` before :meth:`build`; then it can be started, and its power be cut."""

    def __init__(self, work: Path) -> None:
        """``work``: a directory of its own, with a gigabyte to spare."""
        self.root, self.disk, self.console = work / "root", work / "disk.img", work / "console.log"
        self._kernel, self._start, self._port = work / "vmlinuz", work / "initrd.img", work / "control"
        self._asked = 0
        self.root.mkdir(parents=True)

    def build(self, tar: Path, hosts: str, off: Sequence[str] = ()) -> None:
        """Make its disk. ``hosts``: for its /etc/hosts. ``off``: units that are not to start by themselves."""
        subprocess.run(["tar", "-xf", str(tar), "-C", str(self.root)], check=True)
        files = {
            "etc/hostname": "gateway\n",
            "etc/hosts": f"127.0.0.1 localhost gateway\n{hosts}\n",
            "etc/machine-id": "",
            "etc/resolv.conf": "",
            "etc/systemd/network/any.network": "[Match]\nName=en*\n[Network]\nDHCP=ipv4\n",
            "etc/systemd/system/control.service": SERVICE,
            "usr/lib/control.py": CONTROL,
        }
        for name, text in files.items():
            (self.root / name).unlink(missing_ok=True)
            (self.root / name).write_text(text)
        enable = [
            "systemctl",
            f"--root={self.root}",
            "enable",
            "--quiet",
            "control.service",
            "systemd-networkd.service",
        ]
        subprocess.run(enable, check=True)
        if off:
            subprocess.run(["systemctl", f"--root={self.root}", "disable", "--quiet", *off], check=True)
        for found, to in (("vmlinuz-*", self._kernel), ("initrd.img-*", self._start)):
            (path,) = (self.root / "boot").glob(found)
            shutil.copyfile(path, to)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(self.root), str(self.disk), "1G"], check=True)
        shutil.rmtree(self.root)

    @contextmanager
    def on(self, ports: dict[int, int], *, clock: str = "") -> Iterator[None]:
        """Have it run until its power is cut, at the latest at the end.

        ``ports``: port of this host's loopback → its own. ``clock``: what its battery clock says, as in
        ``1970-01-01``; nothing: the right time.
        """
        forward = "".join(f",hostfwd=tcp:127.0.0.1:{here}-:{there}" for here, there in ports.items())
        self._port.unlink(missing_ok=True)
        command = [
            "nice", "-n", "10", "qemu-system-x86_64",
            "-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "1G",
            "-nodefaults", "-no-user-config", "-display", "none", "-serial", f"file:{self.console}",
            "-kernel", str(self._kernel), "-initrd", str(self._start),
            "-append", "root=/dev/vda rw console=ttyS0 quiet mitigations=off no_timer_check systemd.show_status=no",
            # What its kernel wrote is this host's; what it still had in memory goes with it.
            "-drive", f"file={self.disk},if=virtio,format=raw,cache=writeback",
            "-netdev", f"user,id=net{forward}", "-device", "virtio-net-pci,netdev=net",
            "-chardev", f"socket,id=control,path={self._port},server=on,wait=off",
            "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=control,name=control",
            "-device", "virtio-rng-pci", *(["-rtc", f"base={clock}"] if clock else []),
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            until(self._port.exists, self._process)
            with socket.socket(socket.AF_UNIX) as self._typed:
                self._typed.settimeout(FAR)
                self._typed.connect(str(self._port))
                with self._typed.makefile("rb") as self._said:
                    self.does("true")
                    yield
        finally:
            self.cut_power()

    def cut_power(self) -> None:
        """End it, from one instruction to the next."""
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def power_off(self) -> None:
        """Shut it down, and wait for that."""
        self._typed.sendall(json.dumps([0, "systemctl poweroff"]).encode() + b"\n")
        assert self._process.wait(FAR) == 0

    def types(self, script: str) -> tuple[int, str]:
        """Do a script of bash as root, in /srv; return its exit code and what it said. Waits until it has started."""
        self._asked += 1
        self._typed.sendall(json.dumps([self._asked, script]).encode() + b"\n")
        for line in self._said:
            number, code, said = json.loads(line)
            if number == self._asked:
                return code, said
        raise AssertionError(f"it ended; see {self.console}")

    def does(self, script: str) -> str:
        """Do a script that has to succeed; return what it said."""
        code, said = self.types(script)
        assert code == 0, f"{script}\n{said}"
        return said
