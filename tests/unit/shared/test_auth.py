"""Identities by certificate; password files while an agent runs: what is remembered, and for how long."""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tests.integration.edge.conftest import written
from waybill.acl import Acl
from waybill.auth import Auth, Counters, Door, Hasher, Users
from waybill.mqtt.codec import ConnackCode
from waybill.mqtt.settings import ConnectInfo


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "users", V7="seven", V8="eight")


async def test_a_file_that_everybody_may_read_is_told_of(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Users(path, Counters())
    assert not caplog.messages
    path.chmod(0o644)
    Users(path, Counters())
    assert caplog.messages == [f"{path}: everybody on this machine may read or change it; chmod o= it"]


async def test_what_is_remembered_is_forgotten_when_that_user_changes(path: Path) -> None:
    counters, hasher = Counters(), Hasher()
    users = Users(path, counters)
    try:
        for user, password in (("V7", b"seven"), ("V8", b"eight")):
            assert not users.remembers(user, password)
            assert await users.verify(user, password, hasher)
            assert users.remembers(user, password)
            assert not users.remembers(user, password + b"!")
        assert not users.remembers("V7", b"eight")
        kept = path.read_text().splitlines()[1]
        written(path, V7="seven")  # the same password, with another salt
        path.write_text(path.read_text() + kept)
        assert await users.reload(hasher) == set(), "it might still be being written"
        assert await users.reload(hasher) == {"V7"}
        assert await users.reload(hasher) == set()
        assert not users.remembers("V7", b"seven")
        assert users.remembers("V8", b"eight")
        assert (counters.hashed, counters.reloads) == (2, 1)
    finally:
        hasher.close()


async def test_a_password_that_changes_while_it_is_hashed_is_not_decided(path: Path) -> None:
    hasher = Hasher()
    users = Users(path, Counters())
    try:
        written(path, V7="new")
        await users.reload(hasher)
        # One thread: the file is read first, and taken over before the hash is there.
        changed, right = await asyncio.gather(users.reload(hasher), users.verify("V7", b"seven", hasher))
        assert changed == {"V7", "V8"}
        assert right is None
        assert not users.remembers("V7", b"seven")
        assert await users.verify("V7", b"new", hasher)
    finally:
        hasher.close()


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("truck-7", "truck-7"),
        ("truck-7:2", ConnackCode.NOT_AUTHORIZED),
        ("+", ConnackCode.NOT_AUTHORIZED),
        ("$SYS", ConnackCode.NOT_AUTHORIZED),
        ("a/b", ConnackCode.NOT_AUTHORIZED),
        (None, ConnackCode.NOT_AUTHORIZED),
    ],
)
def test_a_certificate_names_a_user_or_nobody(name: str | None, answer: object) -> None:
    """Who shows none where TLS should have asked for one is refused here too."""
    auth = Auth({"door": Door(certificates="required", anonymous=True)}, Acl(()))
    certificate: bytes | None = None
    if name is not None:
        key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + dt.timedelta(days=1))
        certificate = made.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    info = ConnectInfo("dev", "admin", b"x", certificate, "127.0.0.1:1", 4, True, "door")
    assert auth.authorize_connect(info) == answer
    auth.close()
