"""``waybill edge install`` and ``uninstall``: the agent as a service of systemd, on this machine or in an image.

::

    /etc/waybill/agent.toml          copied with the files that it names beside it; what is there is never overwritten
    /etc/systemd/system/waybill-edge.service   and its link in multi-user.target.wants
    /etc/sysusers.d/waybill.conf     the user, made now, or at an image's first boot
    /etc/tmpfiles.d/waybill.conf     who may read the configuration, set now and at each boot
    /var/lib/waybill                 the data: systemd makes it, at the first start

Everything is a :class:`Step`: what it says, and what it does where that is wanted (``--dry-run``).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

import msgspec

import waybill.config
from edge_agent import config
from edge_agent.config import EdgeConfig
from waybill.errors import ConfigError, Unavailable

USER: Final = "waybill"
CONFIG: Final = Path("/etc/waybill/agent.toml")
DATA: Final = Path("/var/lib/waybill")
UNIT: Final = Path("/etc/systemd/system/waybill-edge.service")
LINK: Final = UNIT.parent / "multi-user.target.wants" / UNIT.name
SYSUSERS: Final = Path("/etc/sysusers.d/waybill.conf")
TMPFILES: Final = Path("/etc/tmpfiles.d/waybill.conf")

HIDDEN: Final = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108 - not used, refused
"""What the service does not see: ``ProtectHome``, ``PrivateTmp``."""

RUNNING: Final = Path("/run/systemd/system")
"""Is there where systemd runs (sd_booted(3))."""

BASE_BYTES: Final = 128 << 20
"""What the agent takes at most beside what devices can make it take: 61 MB as measured (docs/bench.md), twice."""

_SYSUSERS: Final = f'u {USER} - "Waybill edge agent" {DATA}\n'
_TMPFILES: Final = f"d {CONFIG.parent} 0750 root {USER}\nZ {CONFIG.parent} ~0750 root {USER}\n"


@dataclass(frozen=True, slots=True)
class Step:
    """``text``: what is done, or, where ``do`` is None, what there is to know."""

    text: str
    do: Callable[[], None] | None = None


def program() -> Path:
    """Return the command that is running: what the unit starts. Raises ConfigError where there is no such file."""
    found = Path(sys.executable).with_name("waybill")
    if not found.is_file():
        raise ConfigError(f"{found}: no such file; say with --program where waybill is installed")
    return found


def memory_bytes(settings: EdgeConfig) -> int:
    """Return the most that the agent may take, all in all: ``MemoryMax`` of its unit."""
    return config.memory_ceiling(settings) + 2 * settings.forward.window_bytes + BASE_BYTES


def unit(settings: EdgeConfig, command: Path) -> str:
    """Return the unit for an agent with ``settings``, started by ``command``."""
    text = (files("edge_agent.setup") / UNIT.name).read_text(encoding="utf-8")
    text = re.sub(r"(?m)^ExecStart=.*$", f"ExecStart={command} edge run --config {CONFIG}", text)
    text = re.sub(r"(?m)^MemoryMax=.*$", f"MemoryMax={-(-memory_bytes(settings) >> 20)}M", text)
    if settings.data != DATA:
        text = re.sub(r"(?m)^(StateDirectoryMode=.*)$", rf"\1\nReadWritePaths={settings.data}", text)
    return text


def install(root: Path, given: Path | None, command: Path) -> list[Step]:
    """Return the steps that install the agent below ``root``.

    ``given``: the configuration to copy where none is there. ``command``: the installed ``waybill``.
    Raises ConfigError.
    """
    placed = _below(root, CONFIG)
    if given is not None and not given.is_file():
        raise ConfigError(f"--config {given}: no such file")
    source = placed if placed.exists() else given
    if source is None:
        raise ConfigError(f"{placed}: no such file; write one (waybill edge init FILE) and give it with --config FILE")
    settings = config.load(source)
    _check(settings, source, command)
    steps = [_written(root, SYSUSERS, _SYSUSERS), _written(root, TMPFILES, _TMPFILES)]
    if source == placed:
        another = given is not None and given.read_bytes() != placed.read_bytes()
        steps.append(Step(f"kept       {CONFIG}{f': {given} is another one, and is not copied' if another else ''}"))
    else:
        steps += _copied(root, source)
    if settings.data != DATA:
        steps.append(Step(f"for you    make {settings.data} yourself: install -d -m 0700 -o {USER} -g {USER}"))
    steps += [_written(root, UNIT, unit(settings, command)), _linked(root)]
    changed = any(step.do is not None for step in steps)
    steps += _memory(settings)
    if root != Path("/"):
        if not _below(root, command).exists():
            steps.append(Step(f"for you    put waybill where the unit starts it, {command}; --program names another"))
        return [*steps, Step("the user is made, and the agent starts, when the image boots")]
    if shutil.which("systemd-sysusers") is None:
        steps.append(Step(f"for you    make the user {USER}, then: chgrp -R {USER} {CONFIG.parent}"))
        return [*steps, Step(f"systemd is not there; as the user {USER}: {command} edge run --config {CONFIG}")]
    steps += [_run("systemd-sysusers", str(SYSUSERS)), _run("systemd-tmpfiles", "--create", str(TMPFILES))]
    if not RUNNING.is_dir():
        return [*steps, Step("systemd does not run here: the agent starts with the next boot that has it")]
    # Where nothing has changed, an agent that runs stays up.
    return [*steps, _run("systemctl", "daemon-reload"), _run("systemctl", "restart" if changed else "start", UNIT.name)]


def uninstall(root: Path, *, purge: bool) -> list[Step]:
    """Return the steps that take the agent away; with ``purge`` its configuration, its data and its user, too."""
    steps = []
    data = _data(root)
    if root == Path("/") and RUNNING.is_dir() and UNIT.exists():
        steps.append(_run("systemctl", "stop", UNIT.name))
    gone = [LINK, UNIT, SYSUSERS, TMPFILES]
    steps += [_removed(root, path) for path in gone]
    if root == Path("/") and RUNNING.is_dir():
        steps.append(_run("systemctl", "daemon-reload"))
    if not purge:
        return [*steps, Step(f"kept       {CONFIG.parent} and {data}: the messages that wait (--purge removes them)")]
    steps += [_removed(root, CONFIG.parent), _removed(root, DATA)]
    if data != DATA:
        steps.append(Step(f"for you    {data} stays, with the messages that wait there: remove it yourself"))
    if root == Path("/") and _is_user():
        steps.append(_run("userdel", USER))
    return steps


def _data(root: Path) -> Path:
    """Return where the installed configuration has its data; the usual place where it cannot be read."""
    with contextlib.suppress(ConfigError):
        return config.load(_below(root, CONFIG)).data
    return DATA


def _check(settings: EdgeConfig, source: Path, command: Path) -> None:
    """Refuse what the hardened service could not see or write. Raises ConfigError."""
    if not command.is_absolute():
        raise ConfigError(f"--program {command}: write the whole path")
    if any(command.is_relative_to(hidden) for hidden in HIDDEN):
        raise ConfigError(
            f"{command}: the service does not see what is below {command.parents[-2]}; install waybill in /opt/waybill"
        )
    data = settings.data
    if not data.is_absolute() or data.is_relative_to(source.parent.absolute()):
        raise ConfigError(f'{source}: data: a service keeps its data below /var; write data = "{DATA}"')
    if any(data.is_relative_to(hidden) for hidden in HIDDEN):
        raise ConfigError(f'{source}: data: the service does not see {data}; write data = "{DATA}"')
    for path in _named(waybill.config.load(source, EdgeConfig)):
        if any(path.expanduser().is_relative_to(hidden) for hidden in HIDDEN) or ".." in path.parts:
            raise ConfigError(
                f"{source}: the service would not find {path}; put it beside the configuration, written relative to it"
            )


def _named(settings: EdgeConfig) -> list[Path]:
    """Return the files that a configuration names, as it names them, but for sockets."""
    tables = (*settings.listeners, *settings.uplinks, *settings.sources)
    values = [(item.name, getattr(table, item.name)) for table in tables for item in msgspec.structs.fields(table)]
    return sorted({value for name, value in values if isinstance(value, Path) and name != "path"})


def _copied(root: Path, source: Path) -> Iterator[Step]:
    """Copy a configuration and what it names beside it, each where it is not there yet."""
    base = source.parent
    named = _named(waybill.config.load(source, EdgeConfig))
    inside = [base / path for path in named if not path.is_absolute() and (base / path).is_file()]
    for path in (source, *inside):
        to = CONFIG if path == source else CONFIG.parent / path.relative_to(base)
        target = _below(root, to)
        if target.exists():
            yield Step(f"kept       {to}")
        else:
            yield Step(f"copied     {path} to {to}", lambda path=path, target=target: _copy(path, target))  # type: ignore[misc]


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(target, path.read_bytes(), 0o640)


def _written(root: Path, path: Path, text: str) -> Step:
    target = _below(root, path)
    if target.is_file() and not target.is_symlink() and target.read_text(encoding="utf-8") == text:
        return Step(f"unchanged  {path}")

    def do() -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, text.encode(), 0o644)

    return Step(f"{'replaced' if target.exists() else 'written':10} {path}", do)


def _write(target: Path, data: bytes, mode: int) -> None:
    """Write a file so that after a power cut there is the old one, if any, or all of the new one."""
    part = target.with_name(target.name + ".part")
    with part.open("wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(target)


def _linked(root: Path) -> Step:
    target, to = _below(root, LINK), f"../{UNIT.name}"
    if target.is_symlink() and str(target.readlink()) == to:
        return Step(f"unchanged  {LINK}")

    def do() -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(to)

    return Step(f"linked     {LINK}: it starts at each boot", do)


def _removed(root: Path, path: Path) -> Step:
    target = _below(root, path)
    if not target.exists() and not target.is_symlink():
        return Step(f"not there  {path}")
    whole = target.is_dir() and not target.is_symlink()
    return Step(f"removed    {path}", lambda: shutil.rmtree(target) if whole else target.unlink())


def _run(*command: str) -> Step:
    def do() -> None:
        try:
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise Unavailable(f"{command[0]} is not there; it comes with systemd, which runs the agent") from error
        except subprocess.CalledProcessError as error:
            said = str(error.stderr).strip() or f"exit code {error.returncode}"
            raise Unavailable(f"{' '.join(command)}: {said}; journalctl -u {UNIT.stem} says more") from error

    return Step(f"run        {' '.join(command)}", do)


def _memory(settings: EdgeConfig) -> list[Step]:
    """Say where devices may take more than the machine has."""
    allowed, there = memory_bytes(settings), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if allowed <= there:
        return []
    text = f"{allowed >> 20} MiB, and this machine has {there >> 20}: smaller [limits] are in docs/security.md"
    return [Step(f"for you    the [limits] allow devices and the agent {text}")]


def _is_user() -> bool:
    import pwd

    try:
        pwd.getpwnam(USER)
    except KeyError:
        return False
    return True


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")
