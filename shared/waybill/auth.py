"""Who may connect: identities by password file or certificate; and what then is allowed, by the rules of the ACL.

::

    CONNECT ─▶ a certificate's common name ─────────────────────────────────┐
           ├─▶ user name ─▶ remembered? ─no─▶ line ─▶ one thread: argon2id ─┼─▶ user ─▶ Acl
           └─▶ neither, where ``anonymous`` ─▶ nobody in particular ────────┘

All of it comes before anything of a session is touched. Argon2id takes some 20 ms of one core and releases the
interpreter, so one thread hashes and the loop goes on; at most ``LINE`` wait for it, more are told to come back later.
A password that was right is remembered as a digest under a random key of this process, so that a fleet that reconnects
at once is let in without hashing. An unknown user costs a hash as well: how long an answer takes tells nothing.

A password file is read again when it was changed and then left alone for a look (``LOOK``). One that cannot be used
leaves the users as they were and is logged; one without users lets nobody in. Who is connected by a password that was
changed or taken out is disconnected.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal, ParamSpec, TypeVar

from waybill import passwords, pki
from waybill.acl import Acl
from waybill.errors import ConfigError, Refused
from waybill.mqtt.codec import ConnackCode
from waybill.mqtt.settings import Answer, Client, ConnectInfo

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

LINE: Final = 64
"""Passwords that wait for the hashing thread, of all listeners: what a slow gateway does within ``connect_timeout``."""

LOOK: Final = 1.0
"""Seconds between two looks at the password files."""


@dataclass(slots=True)
class Counters:
    """Since the start.

    ``hashed``: passwords that were hashed to be compared; ``remembered``: those that needed no hash; ``refused``:
    connections without a right password or certificate; ``busy``: those sent away because too many waited.
    ``publish_denied``, ``subscribe_denied``: by the rules. ``reloads``: password files read again; ``unreadable``:
    those that could not be used.
    """

    hashed: int = 0
    remembered: int = 0
    refused: int = 0
    busy: int = 0
    publish_denied: int = 0
    subscribe_denied: int = 0
    reloads: int = 0
    unreadable: int = 0


@dataclass(frozen=True, slots=True)
class Door:
    """How one listener tells who connects. ``passwords``: the file, None for none.

    ``certificates``: whether TLS asks for one; with ``required`` and passwords both are wanted, with ``optional`` one
    of them. ``anonymous``: without either, as nobody in particular. ``bound``: the client id has to be the user's name,
    or begin with it and a colon.
    """

    passwords: Path | None = None
    certificates: Literal["", "optional", "required"] = ""
    anonymous: bool = False
    bound: bool = False


class Hasher:
    """The thread that hashes, and the line before it."""

    def __init__(self) -> None:
        self.waiting = 0
        self.turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "passwords")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do ``work`` in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *args, **kwargs))

    def close(self) -> None:
        """End; what is being hashed is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class Users:
    """The users of one password file."""

    def __init__(self, path: Path, counters: Counters) -> None:
        """Read ``path``. Raises ConfigError where it cannot be used or has no users."""
        self.path = path
        self._counters = counters
        self._key = secrets.token_bytes(32)
        self._remembered: dict[str, bytes] = {}  # one a user at most
        self._seen = self._stamp = self._look()
        self._set(passwords.load(path))
        if not self._hashes:
            raise ConfigError(
                f"{path}: holds no users, so nobody could connect; add one: waybill edge passwd {path} USER"
            )
        if path.stat().st_mode & 0o007:
            log.warning("%s: everybody on this machine may read or change it; chmod o= it", path)

    def _set(self, hashes: dict[str, str]) -> None:
        self._hashes = hashes
        self._decoy = passwords.decoy(next(iter(hashes.values()), ""))

    def remembers(self, user: str, password: bytes) -> bool:
        """Say whether this password was right before and the file still says so."""
        digest = self._remembered.get(user)
        return digest is not None and hmac.compare_digest(digest, self._digest(user, password))

    async def verify(self, user: str, password: bytes, hasher: Hasher) -> bool | None:
        """Say whether this is the user's password; None where the file changed meanwhile. Takes its turn."""
        async with hasher.turn:
            if self.remembers(user, password):  # somebody before in the line had the same
                return True
            phc = self._hashes.get(user)
            self._counters.hashed += 1
            right = await hasher.run(passwords.verify, phc or self._decoy, password)
        if phc != self._hashes.get(user):
            return None
        if right:
            self._remembered[user] = self._digest(user, password)
        return right

    def _digest(self, user: str, password: bytes) -> bytes:
        # A user name holds no U+0000 (MQTT), so the two cannot be parted otherwise.
        return hashlib.blake2b(user.encode() + b"\0" + password, key=self._key, digest_size=32).digest()

    async def reload(self, hasher: Hasher) -> set[str]:
        """Read the file again if it changed; returns the users who have another password now, or none."""
        now = self._look()
        settled, self._seen = now == self._seen, now
        if now == self._stamp or not settled:
            return set()
        self._stamp = now
        try:
            hashes = await hasher.run(passwords.load, self.path)
        except ConfigError as error:
            self._counters.unreadable += 1
            log.error("%s; the users stay as they were", error)  # noqa: TRY400 - the text says it all
            return set()
        self._counters.reloads += 1
        if hashes:
            log.info("%s: %d users", self.path, len(hashes))
        else:
            log.warning("%s: holds no users; nobody can connect with a password", self.path)
        changed = {user for user, phc in self._hashes.items() if hashes.get(user) != phc}
        self._remembered = {user: digest for user, digest in self._remembered.items() if user not in changed}
        self._set(hashes)
        return changed

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


class Auth:
    """Answers the server's questions. ``doors``: by name of the listener."""

    def __init__(self, doors: dict[str, Door], acl: Acl) -> None:
        """Read the password files. Raises ConfigError."""
        self.counters = Counters()
        self._doors = doors
        self._acl = acl
        self._users = {
            path: Users(path, self.counters) for path in {door.passwords for door in doors.values()} if path is not None
        }
        self._hasher = Hasher()
        self._connected: dict[str, Client] = {}  # by client id: those who may have come with a password

    def authorize_connect(self, info: ConnectInfo) -> Answer | Awaitable[Answer]:
        """Say who it is: a user's name, empty for nobody in particular, or why not."""
        door = self._doors[info.listener]
        certificate = info.peer_certificate
        if certificate is None and door.certificates == "required":
            return self._refuse(info, "it shows no certificate")
        users = self._users.get(door.passwords) if door.passwords is not None else None
        if certificate is not None and (users is None or door.certificates == "optional"):
            return self._certified(info, door, certificate)
        if users is None or info.user is None:
            return "" if door.anonymous else self._refuse(info, "it gives no user name, and nobody is let in without")
        password = info.password or b""
        if users.remembers(info.user, password):
            self.counters.remembered += 1
            return self._admit(info, door, info.user)
        return self._verify(info, door, users, info.user, password)

    def _certified(self, info: ConnectInfo, door: Door, certificate: bytes) -> Answer:
        try:
            user = pki.common_name(certificate)
        except Refused as error:
            return self._refuse(info, str(error))
        if not passwords.valid_user(user):
            return self._refuse(info, f"its certificate's common name {user!r} cannot be a user name")
        return self._admit(info, door, user)

    async def _verify(self, info: ConnectInfo, door: Door, users: Users, user: str, password: bytes) -> Answer:
        hasher = self._hasher
        if hasher.waiting >= LINE:
            self.counters.busy += 1
            log.warning("a connection from %s is sent away: %d passwords wait to be hashed", info.address, LINE)
            return ConnackCode.UNAVAILABLE
        hasher.waiting += 1
        try:
            right = await users.verify(user, password, hasher)
        finally:
            hasher.waiting -= 1
        if right is None:
            return ConnackCode.UNAVAILABLE
        if not right:
            return self._refuse(info, f"not the password of {user!r}, or no such user", ConnackCode.BAD_CREDENTIALS)
        return self._admit(info, door, user)

    def _admit(self, info: ConnectInfo, door: Door, user: str) -> Answer:
        if door.bound and info.client_id != user and not info.client_id.startswith(f"{user}:"):
            why = f"the client id of user {user!r} is {info.client_id!r}; it has to be {user!r} or begin with '{user}:'"
            return self._refuse(info, why, ConnackCode.BAD_CLIENT_ID)
        return user

    def _refuse(self, info: ConnectInfo, why: str, code: ConnackCode = ConnackCode.NOT_AUTHORIZED) -> ConnackCode:
        self.counters.refused += 1
        log.warning("a connection from %s is refused: %s", info.address, why)
        return code

    def authorize_publish(self, client: Client, topic: str) -> bool:
        """Say whether a client may publish to ``topic``."""
        if self._acl.may_publish(client.client_id, client.user or "", client.listener, topic):
            return True
        self.counters.publish_denied += 1
        log.warning("%s may not publish to %r", _named(client), topic)
        return False

    def authorize_subscribe(self, client: Client, pattern: str) -> bool:
        """Say whether a client may subscribe to ``pattern``."""
        if self._acl.may_subscribe(client.client_id, client.user or "", client.listener, pattern):
            return True
        self.counters.subscribe_denied += 1
        log.warning("%s may not subscribe to %r", _named(client), pattern)
        return False

    def on_connected(self, client: Client) -> None:
        """Remember who may have come with a password."""
        if client.user and self._doors[client.listener].passwords is not None:
            self._connected[client.client_id] = client

    def on_disconnected(self, client: Client) -> None:
        """Forget it."""
        if self._connected.get(client.client_id) is client:
            del self._connected[client.client_id]

    async def watch(self, disconnect: Callable[[str, str], object]) -> None:
        """Look at the password files, for ever. ``disconnect(client_id, reason)`` ends a connection."""
        while True:
            await asyncio.sleep(LOOK)
            for users in self._users.values():
                changed = await users.reload(self._hasher)
                for client_id in self._whose(users.path, changed):
                    disconnect(client_id, "the password was changed or taken out")

    def _whose(self, path: Path, changed: set[str]) -> list[str]:
        return [
            client.client_id
            for client in self._connected.values()
            if client.user in changed and self._doors[client.listener].passwords == path
        ]

    def close(self) -> None:
        """End the hashing thread."""
        self._hasher.close()


def _named(client: Client) -> str:
    return f"client {client.client_id!r} of " + (f"user {client.user!r}" if client.user else "nobody in particular")
