"""``waybill edge check``, what is on this machine: disk, clock, memory, files, certificates, listeners.

Each step does the thing itself: it writes and syncs, binds, reads, verifies.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import errno
import os
import re
import socket
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edge_agent.clock import Clock
from edge_agent.config import EdgeConfig
from edge_agent.listener_config import ListenerSettings
from edge_agent.setup.finding import Finding
from edge_agent.setup.install import CONFIG, UNIT, memory_bytes, unit
from edge_agent.status import SOCKET, EdgeStatus
from waybill import pki, snapshot
from waybill.errors import ConfigError, Refused, WaybillError

if TYPE_CHECKING:
    from cryptography import x509

MOUNTS: Final = Path("/proc/self/mountinfo")

SYNCS: Final = 16
"""Blocks of 4 KiB that are written and synced: 64 KiB of a card's life."""

SLOW_MS: Final = 200.0
"""Median of a sync from which on devices notice."""

SOON_DAYS: Final = 30
"""Days of a certificate that is about to end."""

LOWEST_PORT: Final = 1024
"""What the service may listen at: it has no capabilities."""

VOLATILE: Final = {
    "tmpfs": "in memory: a power cut or a reboot takes every message",
    "ramfs": "in memory: a power cut or a reboot takes every message",
    "overlay": "an overlay: on many images its upper layer is in memory, and a reboot takes every message",
}
UNFIT: Final = {
    "nfs": "on the network: it is away when the network is, and syncs are slow",
    "nfs4": "on the network: it is away when the network is, and syncs are slow",
    "cifs": "on the network: it is away when the network is, and syncs are slow",
    "smb3": "on the network: it is away when the network is, and syncs are slow",
    "9p": "another machine's: whether a sync reaches its disk is that one's matter",
    "vfat": "FAT, which a power cut can damage as a whole, and which keeps no permissions",
    "exfat": "FAT, which a power cut can damage as a whole, and which keeps no permissions",
    "ntfs": "NTFS, whose permissions are not this system's",
    "fuseblk": "a file system in user space, on which locks and syncs may mean little",
}


async def agent(settings: EdgeConfig) -> tuple[Finding, EdgeStatus | None]:
    """Ask the agent that runs here, if one does."""
    path = settings.data / SOCKET
    try:
        if not path.exists():
            return Finding("agent", "ok", "does not run"), None
        status = msgspec.convert(await snapshot.request(path, "snapshot"), EdgeStatus)
    except (PermissionError, WaybillError) as error:
        if isinstance(error, PermissionError) or not os.access(path, os.W_OK):
            return Finding("agent", "failed", f"{settings.data} is not open to this user", mend=_AS_ROOT), None
        return Finding("agent", "warning", "was killed, or does not answer", mend="journalctl -u waybill-edge"), None
    except msgspec.ValidationError:
        return Finding("agent", "warning", "runs, in another version than this command's", mend="restart it"), None
    trouble = status.fault or status.alarm
    text = f"runs, version {status.version}, {status.link.state}"
    return Finding("agent", "warning" if trouble else "ok", f"{text}{f': {trouble}' if trouble else ''}"), status


# --- disk ---


def disk(settings: EdgeConfig) -> Iterator[Finding]:
    """Try the data directory's disk."""
    data = settings.data
    there = next(path for path in (data, *data.absolute().parents) if path.exists())
    if not there.is_dir():
        yield Finding("disk", "failed", f"{there} is no directory", mend="name another with data = …")
        return
    note = "" if there == data else f"; {data} is not there yet, its agent makes it"
    kind, device = file_system(there)
    unfit = VOLATILE.get(kind) or UNFIT.get(kind)
    if not kind:
        text = f"{there}: what it is on is not to be seen from here, as in a chroot{note}"
        yield Finding("file system", "skipped", text)
    elif unfit:
        yield Finding("file system", "warning", f"{there} is {unfit}{note}", mend="data = … on a local disk, ext4 say")
    else:
        yield Finding("file system", "ok", f"{there}: {kind} on {device}{note}")
    yield _synced(there)
    yield _room(settings, there)
    yield from _private(data)


def file_system(path: Path) -> tuple[str, str]:
    """Return type and device of the file system of ``path`` (proc(5), mountinfo), empty where they are not known."""
    real, found = path.resolve(), ("", "", "")
    try:
        mounts = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # nobody has mounted /proc
        mounts = []
    for each in mounts:
        before, _, after = each.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        if real.is_relative_to(point) and len(point) >= len(found[0]):  # the last of equals hides those before
            kind, device = after.split()[:2]
            found = point, kind, device
    return found[1], found[2]


_AS_ROOT: Final = "run this as root (sudo), or as the agent's user"
_MENDS: Final = {
    errno.ENOSPC: "make room, or name another disk with data = …",
    errno.EROFS: "mount it for writing; a card that turns read-only by itself is at its end: see dmesg",
    errno.EACCES: _AS_ROOT,
    errno.EPERM: _AS_ROOT,
    errno.EIO: "the disk fails: see dmesg, and take another",
}


def _synced(there: Path) -> Finding:
    taken: list[float] = []
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".waybill-check-") as file:
            for _ in range(SYNCS):
                file.write(os.urandom(4096))
                file.flush()
                began = time.perf_counter()
                os.fsync(file.fileno())
                taken.append((time.perf_counter() - began) * 1000)
    except OSError as error:
        mend = _MENDS.get(error.errno or 0, "name another disk with data = …")
        return Finding("disk", "failed", f"{there}: cannot be written and synced: {error.strerror}", mend=mend)
    middle, longest = statistics.median(taken), max(taken)
    text = f"{SYNCS} syncs of 4 KiB: {middle:.1f} ms, at most {longest:.1f}; {1000 / middle:,.0f} commits a second"
    if middle > SLOW_MS:
        return Finding("disk", "warning", text, mend="devices wait as long for each acknowledgement: another card")
    return Finding("disk", "ok", text)


def _room(settings: EdgeConfig, there: Path) -> Finding:
    state = os.statvfs(there)
    free = state.f_bavail * state.f_frsize
    own = sum(path.stat().st_size for path in settings.data.glob("buffer*")) if settings.data.is_dir() else 0
    buffer = settings.buffer
    text = f"{_gb(free)} free, the buffer has {_gb(own)} and may take {_gb(buffer.max_bytes)}"
    if free < buffer.min_free_bytes:
        mend = "below min_free_bytes nothing is taken from devices: remove something, or lower it"
        return Finding("room", "failed", text, mend=mend)
    if free + own < buffer.max_bytes + buffer.min_free_bytes:
        fits = max(0, free + own - buffer.min_free_bytes)
        return Finding(
            "room", "warning", text, mend=f"the disk is full before the buffer is: max_bytes = {fits} at most"
        )
    return Finding("room", "ok", text)


def _private(data: Path) -> Iterator[Finding]:
    if data.is_dir() and (mode := data.stat().st_mode & 0o777) & 0o007:
        text = f"{data} has mode {mode:04o}: everybody on this machine may look in"
        yield Finding("permissions", "warning", text, mend=f"chmod 0700 {data}")


# --- clock, memory ---


def clock() -> Finding:
    """Look at the clock: whether NTP vouches for it, whether it can be right, whether it outlives a power cut."""
    found = Clock()
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    battery = any(Path("/sys/class/rtc").glob("rtc*"))
    kept = "" if battery else "; without a battery clock it is wrong after each boot until NTP sets it"
    if found.is_behind():
        mend = "run an NTP client (timedatectl set-ntp true; chrony), and let UDP 123 out"
        return Finding("clock", "failed", f"it says {now}, which has passed{kept}", mend=mend)
    if not found.synced:
        mend = "timedatectl set-ntp true, or chrony; until then times in Kafka are marked unknown, and nothing is lost"
        return Finding("clock", "warning", f"{now}, and no NTP client vouches for it{kept}", mend=mend)
    return Finding("clock", "ok", f"{now}, synchronised{kept}")


def memory(settings: EdgeConfig) -> Finding:
    """Compare what devices can make the agent take with what the machine has."""
    allowed, there = memory_bytes(settings), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"devices and agent may take {allowed >> 20} MiB of {there >> 20}"
    if allowed > there:
        return Finding(
            "memory", "warning", text, mend="smaller [limits]: waybill edge init writes them for your devices"
        )
    return Finding("memory", "ok", text)


def service(path: Path, settings: EdgeConfig, root: Path = Path("/")) -> Iterator[Finding]:
    """Compare the installed unit with the one that this configuration would get; nothing where there is none.

    ``path``: the configuration. ``root``: below which the unit is.
    """
    placed = root / UNIT.relative_to("/")
    if path.absolute() != root / CONFIG.relative_to("/") or not placed.is_file():
        return
    there = placed.read_text(encoding="utf-8", errors="replace")
    started = re.search(r"(?m)^ExecStart=(\S+)", there)
    if started is not None and there == unit(settings, Path(started[1])):
        yield Finding("service", "ok", f"{UNIT} is as this version and this configuration want it")
    else:
        text = f"{UNIT} is another than this version and this configuration want (paths, memory)"
        yield Finding("service", "warning", text, mend="waybill edge install writes it anew; changes go into a drop-in")


# --- files, certificates ---


def files(settings: EdgeConfig) -> Iterator[Finding]:
    """Look who can read the files that the configuration names: the agent's user must, others must not read keys."""
    owner = settings.data.stat() if settings.data.is_dir() else None
    tables: Iterable[Any] = (*settings.listeners, *settings.uplinks, *settings.sources)
    named = {
        path: key
        for table in tables
        for key in ("key", "passwords", "password_file", "proxy_password_file", "certificate", "ca", "client_ca")
        if (path := getattr(table, key, None)) is not None
    }
    troubled = False
    for path, key in named.items():
        try:
            found = path.stat()
        except OSError as error:
            troubled = True
            mend = f"waybill edge passwd {path} USER makes it" if key == "passwords" else "put it there"
            yield Finding("permissions", "failed", f"{key}: {error.strerror}", str(path), mend)
            continue
        secret = key in {"key", "passwords", "password_file", "proxy_password_file"}
        if secret and found.st_mode & 0o004:
            troubled = True
            yield Finding("permissions", "warning", f"{key}: everybody may read it", str(path), f"chmod o-rwx {path}")
        if owner is not None and not _may_read(found, owner):
            troubled = True
            text = f"{key}: the owner of {settings.data} may not read it"
            yield Finding("permissions", "failed", text, str(path), f"chgrp waybill {path} && chmod 0640 {path}")
    if named and not troubled:
        yield Finding("permissions", "ok", f"{len(named)} files")


def _may_read(found: os.stat_result, owner: os.stat_result) -> bool:
    if owner.st_uid in {0, found.st_uid}:
        return owner.st_uid == 0 or bool(found.st_mode & 0o400)
    return bool(found.st_mode & (0o040 if owner.st_gid == found.st_gid else 0o004))


def certificate(path: Path, key: Path, ca: Path | None, gateway: str, now: dt.datetime, about: str) -> Finding:
    """Read a certificate: its key, its dates, who it names, and whether its CA is the one that is believed.

    ``gateway``: whom it must name; empty for a listener's.
    """
    try:
        pki.server_context(path, key)
        chain = _pem(path)
        named = pki.gateway_of(chain[0].public_bytes(_der())) if gateway else ""
    except ConfigError as error:
        hidden = isinstance(error.__cause__, PermissionError)
        mend = _AS_ROOT if hidden else "bring certificate and key anew, both from one directory"
        return Finding("certificate", "failed", str(error), about, mend)
    except (Refused, ValueError) as error:
        return Finding("certificate", "failed", f"{path}: {error}", about, f"waybill cloud gateway issue {gateway}")
    leaf = chain[0]
    if named != gateway:
        text = f"{path} is of gateway {named!r}, and this is {gateway!r}"
        return Finding("certificate", "failed", text, about, f"gateway = {named!r}, or the certificate of {gateway}")
    days = (leaf.not_valid_after_utc - now).days
    dates = f"valid {leaf.not_valid_before_utc:%Y-%m-%d} to {leaf.not_valid_after_utc:%Y-%m-%d}"
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        text = f"{path}: {dates}, and now it is {now:%Y-%m-%d %H:%M} UTC"
        return Finding("certificate", "failed", text, about, "issue it anew, or set this machine's clock")
    text = f"{path}: {f'{named}, ' if named else ''}{dates}, {days} days left"
    if days < SOON_DAYS:
        return Finding("certificate", "warning", text, about, "issue it anew before that")
    if ca is not None and gateway and not _signed(leaf, [*chain[1:], *_pem(ca)]):
        return Finding(
            "certificate", "warning", f"{text}; {ca} has not signed it", about, "bring the three files of one directory"
        )
    return Finding("certificate", "ok", text, about)


def _pem(path: Path) -> list[x509.Certificate]:
    from cryptography import x509

    return x509.load_pem_x509_certificates(path.read_bytes())


def _der() -> Any:  # noqa: ANN401 - an enum that is imported on first use
    from cryptography.hazmat.primitives.serialization import Encoding

    return Encoding.DER


def _signed(leaf: x509.Certificate, by: list[x509.Certificate]) -> bool:
    from cryptography.exceptions import InvalidSignature

    for issuer in by:
        try:
            leaf.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False


# --- listeners ---


async def listeners(settings: EdgeConfig, status: EdgeStatus | None, now: dt.datetime) -> list[Finding]:
    """Bind each address, unless the running agent holds it."""
    held = {each.address for each in status.listeners} if status is not None else set()
    found = []
    for number, listener in enumerate(settings.listeners, 1):
        about = listener.name or f"[[listener]] {number}"
        found.append(await asyncio.to_thread(_listener, listener, held, about))
        if listener.certificate is not None and listener.key is not None:
            found.append(certificate(listener.certificate, listener.key, listener.client_ca, "", now, about))
        if listener.passwords is not None and listener.passwords.is_file():
            found.append(_passwords(listener.passwords, about))
    return found


def _listener(listener: ListenerSettings, held: set[str], about: str) -> Finding:
    if listener.path is not None:
        text = str(listener.path)
        if text in held:
            return Finding("listener", "ok", f"{text} is held by the running agent", about)
        parent = listener.path.parent
        if not parent.is_dir() and parent != Path("/run/waybill"):  # which systemd makes
            return Finding("listener", "failed", f"{parent}: no such directory", about, "make it, or use /run/waybill")
        return Finding("listener", "ok", f"{text} can be made", about)
    host, port = listener.host, listener.port
    text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if text in held:
        return Finding("listener", "ok", f"{text} is held by the running agent", about)
    if 0 < port < LOWEST_PORT:
        mend = "the service may not: take a port from 1024 on, and let the firewall redirect"
        return Finding("listener", "failed", f"{text} takes rights of root", about, mend)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        with socket.create_server((host, port), family=family):
            return Finding("listener", "ok", f"{text} is free", about)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        if taken and any(address.endswith(f":{port}") for address in held):
            return Finding("listener", "ok", f"{text} is held by the running agent", about)
        mend = f"ss -ltnp 'sport = :{port}' shows who; end that, or take another port" if taken else "see: ip address"
        return Finding(
            "listener", "failed", f"{text}: {'in use by another program' if taken else error.strerror}", about, mend
        )


def _passwords(path: Path, about: str) -> Finding:
    from waybill import passwords

    try:
        users = passwords.load(path)
    except (WaybillError, OSError) as error:
        return Finding("passwords", "failed", str(error), about, f"waybill edge passwd {path} USER")
    if not users:
        return Finding("passwords", "warning", f"{path} names nobody", about, f"waybill edge passwd {path} USER")
    return Finding("passwords", "ok", f"{path}: {len(users)} user{'s' * (len(users) != 1)}", about)


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 10**8 else f"{count / 1e6:.1f} MB"
