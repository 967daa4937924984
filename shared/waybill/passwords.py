"""Password files: ``user:hash`` a line, hashed with argon2id (RFC 9106) as a PHC string.

::

    # waybill edge passwd FILE USER writes such lines; empty ones and those that begin with # are left alone
    truck-7:$argon2id$v=19$m=19456,t=2,p=1$SALT$HASH

New hashes take 19 MiB, two passes and one lane: OWASP's recommendation. What a file may ask for is bounded, so that no
line makes a gateway spend more than 64 MiB and a fraction of a second on one password.
"""

from __future__ import annotations

import base64
import fcntl
import os
import re
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from waybill.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

MEMORY, PASSES, LANES = 19 * 1024, 2, 1
"""Of new hashes; memory in KiB."""

MEMORY_RANGE, PASSES_RANGE, LANES_RANGE = range(7 * 1024, 64 * 1024 + 1), range(1, 6), range(1, 5)
"""What a hash in a file may ask for."""

SALT_RANGE, HASH_RANGE = range(8, 65), range(16, 65)
"""Bytes."""

MAX_FILE: Final = 4 << 20
"""Bytes of a password file, some 30,000 users."""

MAX_PASSWORD: Final = 1024
"""Bytes of a password that is set."""

MAX_USER: Final = 256
"""Characters of a user name."""

_HASH: Final = re.compile(
    r"\$argon2id\$v=19\$m=(\d{1,9}),t=(\d{1,9}),p=(\d{1,9})\$([A-Za-z0-9+/]{1,128})\$([A-Za-z0-9+/]{1,128})"
)


def valid_user(name: str) -> bool:
    """Say whether ``name`` can be a user's: printable, without ``:`` and what has a meaning in topics (``+ # / $``)."""
    return (
        0 < len(name) <= MAX_USER
        and name.isprintable()
        and name == name.strip()
        and not name.startswith("$")
        and not any(each in name for each in ":+#/")
    )


def load(path: Path) -> dict[str, str]:
    """Return the hashes of a file by user. Raises ConfigError: unreadable, too large, a line that is none."""
    return parse(_read(path), path)


def parse(text: str, path: Path) -> dict[str, str]:
    """Return the hashes in ``text`` by user; ``path`` is for errors. Raises ConfigError for a line that is none."""
    users: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, _, phc = line.removesuffix("\r").partition(":")
        where = f"{path}: line {number}"
        if not valid_user(user):
            raise ConfigError(f"{where}: it does not begin with a user name and ':'; write such lines with passwd")
        if user in users:
            raise ConfigError(f"{where}: {user!r} is there twice; leave one of the two lines")
        if wrong := _fault(phc):
            raise ConfigError(f"{where}: {user!r}: {wrong}; make it anew: waybill edge passwd {path} {user}")
        users[user] = phc
    return users


def encode(password: bytes) -> str:
    """Return the hash of a password, as a file has it; takes some 20 ms and 19 MiB."""
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    salt = secrets.token_bytes(16)
    kdf = Argon2id(salt=salt, length=32, iterations=PASSES, lanes=LANES, memory_cost=MEMORY)
    return kdf.derive_phc_encoded(password)


def verify(phc: str, password: bytes) -> bool:
    """Say whether a hash, as :func:`load` returns it, is of this password; takes as long as the hash asks for."""
    from cryptography.exceptions import InvalidKey
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    try:
        Argon2id.verify_phc_encoded(password, phc)
    except InvalidKey:
        return False
    return True


def decoy(like: str) -> str:
    """Return the hash of no password, which takes as long to verify as ``like``; empty: as new ones do."""
    head = like.rsplit("$", 2)[0] if like else f"$argon2id$v=19$m={MEMORY},t={PASSES},p={LANES}"
    parts = (base64.b64encode(secrets.token_bytes(size)).decode().rstrip("=") for size in (16, 32))
    return "$".join((head, *parts))


def put(path: Path, user: str, password: bytes) -> None:
    """Give ``user`` a password in the file, which is made where there is none (mode 0600).

    Other lines stay as they are. Raises ConfigError: bad name, bad password, a file that cannot be written.
    """
    check_user(user)
    if not 0 < len(password) <= MAX_PASSWORD:
        raise ConfigError(f"the password of {user!r} has {len(password)} bytes; use 1 to {MAX_PASSWORD}")
    line = f"{user}:{encode(password)}"

    def edit(lines: list[str]) -> list[str]:
        places = [place for place, each in enumerate(lines) if _user_of(each) == user]
        if not places:
            return [*lines, line]
        return [line if place == places[0] else each for place, each in enumerate(lines) if place not in places[1:]]

    _replace(path, edit)


def delete(path: Path, user: str) -> None:
    """Take ``user`` out of the file. Raises ConfigError: not there, or a file that cannot be written."""

    def edit(lines: list[str]) -> list[str]:
        kept = [each for each in lines if _user_of(each) != user]
        if len(kept) == len(lines):
            raise ConfigError(f"{path}: no user {user!r}; nothing was changed")
        return kept

    if not path.exists():
        raise ConfigError(f"{path}: no such file; nothing was changed")
    _replace(path, edit)


def check_user(name: str) -> None:
    """Raise ConfigError where ``name`` cannot be a user's."""
    if not valid_user(name):
        raise ConfigError(
            f"{name!r} cannot be a user name: use 1 to {MAX_USER} printable characters without ':', '+', '#', '/', "
            "no '$' in front and no space around it"
        )


def _user_of(line: str) -> str | None:
    return None if line.startswith("#") else line.partition(":")[0]


def _fault(phc: str) -> str:
    """Return what is wrong with a hash; empty where nothing is."""
    found = _HASH.fullmatch(phc)
    if found is None:
        return "what follows is no argon2id hash"
    asked = (("m", MEMORY_RANGE), ("t", PASSES_RANGE), ("p", LANES_RANGE))
    for (name, allowed), text in zip(asked, found.groups()[:3], strict=True):
        if int(text) not in allowed:
            return f"its hash has {name}={text}, which must be from {allowed[0]} to {allowed[-1]}"
    for name, allowed, text in (("salt", SALT_RANGE, found[4]), ("hash", HASH_RANGE, found[5])):
        try:
            size = len(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
        except ValueError:
            return f"its {name} is no base64"
        if size not in allowed:
            return f"its {name} has {size} bytes, which must be from {allowed[0]} to {allowed[-1]}"
    return ""


def _read(path: Path) -> str:
    try:
        # not to wait for the other end of a pipe
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path}: is no regular file, and cannot be a password file; name another")
            data = file.read(MAX_FILE + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such password file; make it: waybill edge passwd {path} USER") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE:
        raise ConfigError(f"{path}: is larger than {MAX_FILE} bytes; is it a password file?")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: line {line}: is no UTF-8; write such lines with passwd") from error


def _replace(path: Path, edit: Callable[[list[str]], list[str]]) -> None:
    """Write the file anew with other lines, whole or not at all; owner and mode stay."""
    path = path.resolve()  # a link stays one
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)  # against a second passwd at the same time
            lines, before = [], None
            if path.exists():
                lines, before = [each for each in _read(path).split("\n") if each], path.stat()
            text = "".join(f"{line}\n" for line in edit(lines))
            if len(text.encode()) > MAX_FILE:
                raise ConfigError(f"{path}: would be larger than {MAX_FILE} bytes; use a second file")
            try:
                with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    if before is not None:
                        if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                            os.fchown(file.fileno(), before.st_uid, before.st_gid)
                        os.fchmod(file.fileno(), before.st_mode & 0o777)
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
