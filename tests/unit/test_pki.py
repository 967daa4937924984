"""Certificates: what they say, who is refused, and that a real TLS 1.3 handshake takes and refuses what it should."""

import asyncio
import contextlib
import datetime as dt
import socket
import ssl
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from waybill import pki
from waybill.errors import ConfigError, Refused

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    pki.ca_init(tmp_path / "ca", now=NOW)
    return tmp_path / "ca"


def der(identity: pki.Identity) -> bytes:
    return ssl.PEM_cert_to_DER_cert(identity.certificate.read_text())


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str = "127.0.0.1") -> tuple[str | None, str | None]:
    """Shake hands in memory; return the TLS version and the gateway that the server saw. Raises either side's error."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname=host)
    far = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (near, far, near, far):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    peer = far.getpeercert(binary_form=True)
    return far.version(), pki.gateway_of(peer) if peer else None


def test_a_gateway_and_a_server_shake_hands_in_tls_1_3(ca: Path, tmp_path: Path) -> None:
    server = pki.issue_server(ca, tmp_path / "node", ["127.0.0.1", "ingest.example"], now=NOW)
    gateway = pki.issue_gateway(ca, tmp_path / "gw", "truck-7", now=NOW)
    listener = pki.server_context(server.certificate, server.key, server.ca)
    agent = pki.client_context(gateway.ca, gateway.certificate, gateway.key)
    assert handshake(listener, agent) == ("TLSv1.3", "truck-7")
    assert handshake(listener, agent, "ingest.example") == ("TLSv1.3", "truck-7")


async def test_the_contexts_serve_real_connections(ca: Path, tmp_path: Path) -> None:
    server = pki.issue_server(ca, tmp_path / "node", ["127.0.0.1"], now=NOW)
    gateway = pki.issue_gateway(ca, tmp_path / "gw", "truck-7", now=NOW)
    seen: list[str] = []

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(pki.gateway_of(writer.get_extra_info("ssl_object").getpeercert(binary_form=True)))
        writer.write(b"!")
        await writer.drain()
        writer.close()

    listener = pki.server_context(server.certificate, server.key, server.ca)
    agent = pki.client_context(gateway.ca, gateway.certificate, gateway.key)
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=listener) as running:
        reader, writer = await asyncio.open_connection(*running.sockets[0].getsockname(), ssl=agent)
        assert await reader.read() == b"!"
        writer.close()
        await writer.wait_closed()
    assert seen == ["truck-7"]


def test_a_client_without_a_certificate_is_refused(ca: Path, tmp_path: Path) -> None:
    server = pki.issue_server(ca, tmp_path / "node", ["127.0.0.1"], now=NOW)
    with pytest.raises(ssl.SSLError, match="(?i)peer did not return a certificate"):
        handshake(pki.server_context(server.certificate, server.key, server.ca), pki.client_context(server.ca))


def test_a_gateway_of_another_ca_is_refused(ca: Path, tmp_path: Path) -> None:
    server = pki.issue_server(ca, tmp_path / "node", ["127.0.0.1"], now=NOW)
    pki.ca_init(tmp_path / "other", now=NOW)
    stranger = pki.issue_gateway(tmp_path / "other", tmp_path / "gw", "truck-7", now=NOW)
    client = pki.client_context(server.ca, stranger.certificate, stranger.key)
    with pytest.raises(ssl.SSLError, match="(?i)certificate verify failed"):
        handshake(pki.server_context(server.certificate, server.key, server.ca), client)


def test_a_server_certificate_is_no_client_certificate(ca: Path, tmp_path: Path) -> None:
    server = pki.issue_server(ca, tmp_path / "node", ["127.0.0.1"], now=NOW)
    client = pki.client_context(server.ca, server.certificate, server.key)
    with pytest.raises(ssl.SSLError, match="(?i)unsuitable certificate purpose|unsupported certificate purpose"):
        handshake(pki.server_context(server.certificate, server.key, server.ca), client)


def test_the_client_refuses_another_host_name_and_another_ca(ca: Path, tmp_path: Path) -> None:
    server = pki.issue_server(ca, tmp_path / "node", ["ingest.example"], now=NOW)
    listener = pki.server_context(server.certificate, server.key)
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        handshake(listener, pki.client_context(server.ca))
    pki.ca_init(tmp_path / "other", now=NOW)
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer|self-signed|signature failure"):
        handshake(listener, pki.client_context(tmp_path / "other" / "ca.pem"), "ingest.example")


def test_tls_1_2_is_refused(ca: Path, tmp_path: Path) -> None:
    server = pki.issue_server(ca, tmp_path / "node", ["127.0.0.1"], now=NOW)
    old = pki.client_context(server.ca)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="(?i)unsupported protocol|protocol.version"):
        handshake(pki.server_context(server.certificate, server.key), old)


def ms(when: dt.datetime) -> int:
    return int(when.timestamp() * 1000)


YEAR = dt.timedelta(days=365)


def test_t3_where_the_clock_is_behind_a_certificate_of_the_future_is_taken(tmp_path: Path) -> None:
    # To certificates of ten years ahead the present is what 1970 is to those of today.
    then = NOW + 10 * YEAR
    pki.ca_init(tmp_path / "ca", now=then)
    server = pki.issue_server(tmp_path / "ca", tmp_path / "node", ["127.0.0.1"], now=then)
    gateway = pki.issue_gateway(tmp_path / "ca", tmp_path / "gw", "truck-7", now=then)
    floor: int | None = None
    listener = pki.server_context(server.certificate, server.key, server.ca, floor_ms=lambda: floor)
    agent = pki.client_context(gateway.ca, gateway.certificate, gateway.key, floor_ms=lambda: floor)
    with pytest.raises(ssl.SSLCertVerificationError, match="not yet valid"):
        handshake(listener, agent)
    floor = ms(then)
    assert handshake(listener, agent) == ("TLSv1.3", "truck-7")
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(listener, agent, "another.example")
    floor = None  # the clock was set: dates count again
    with pytest.raises(ssl.SSLCertVerificationError, match="not yet valid"):
        handshake(listener, agent)


@pytest.mark.parametrize("expired", ["server", "gateway"])
def test_t3_where_the_clock_is_behind_what_surely_expired_is_refused(ca: Path, tmp_path: Path, expired: str) -> None:
    days = {"server": 1000, "gateway": 1000, expired: 30}
    server = pki.issue_server(ca, tmp_path / "node", ["127.0.0.1"], now=NOW, days=days["server"])
    gateway = pki.issue_gateway(ca, tmp_path / "gw", "truck-7", now=NOW, days=days["gateway"])
    floor = ms(NOW + YEAR)
    listener = pki.server_context(server.certificate, server.key, server.ca, floor_ms=lambda: floor)
    agent = pki.client_context(gateway.ca, gateway.certificate, gateway.key, floor_ms=lambda: floor)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
        handshake(listener, agent)


def test_a_blocking_connection_is_checked_before_anything_is_sent(ca: Path, tmp_path: Path) -> None:
    server = pki.issue_server(ca, tmp_path / "node", ["127.0.0.1"], now=NOW, days=30)
    near, far = socket.socketpair()
    listener = pki.server_context(server.certificate, server.key)
    agent = pki.client_context(server.ca, floor_ms=lambda: ms(NOW + YEAR))

    def serve() -> bytes:
        with listener.wrap_socket(far, server_side=True) as accepted:
            return accepted.recv(1)

    with ThreadPoolExecutor(1) as thread:
        received = thread.submit(serve)
        with near, pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
            agent.wrap_socket(near, server_hostname="127.0.0.1")
        with contextlib.suppress(OSError):  # that it was closed without a word
            assert received.result(10) == b""


def test_what_a_certificate_says(ca: Path, tmp_path: Path) -> None:
    identity = pki.issue_gateway(ca, tmp_path / "gw", "truck-7", now=NOW, days=30)
    certificate = x509.load_pem_x509_certificate(identity.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["urn:waybill:gateway:truck-7"]
    assert certificate.not_valid_before_utc <= NOW
    assert certificate.not_valid_after_utc == NOW.replace(microsecond=0) + dt.timedelta(days=30)
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate((ca / "ca.pem").read_bytes()))
    assert identity.ca.read_bytes() == (ca / "ca.pem").read_bytes()


def test_a_device_is_who_its_common_name_says(ca: Path, tmp_path: Path) -> None:
    assert pki.common_name(der(pki.issue_gateway(ca, tmp_path / "gw", "truck-7", now=NOW))) == "truck-7"
    with pytest.raises(Refused, match="cannot be read"):
        pki.common_name(b"no certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    for count in (0, 2):
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"truck-{n}") for n in range(count)])
        builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW + dt.timedelta(days=1))
        with pytest.raises(Refused, match=f"has {count} common names; it needs one"):
            pki.common_name(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))


def test_keys_are_for_their_owner_alone(ca: Path, tmp_path: Path) -> None:
    identity = pki.issue_gateway(ca, tmp_path / "gw", "truck-7", now=NOW)
    for key in (ca / "ca.key", identity.key):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_nothing_is_overwritten(ca: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in ca.iterdir()}
    with pytest.raises(ConfigError, match=r"ca/ca\.key exists and is not overwritten"):
        pki.ca_init(ca, now=NOW)
    assert {path: path.read_bytes() for path in ca.iterdir()} == before
    bundle = pki.issue_gateway(ca, tmp_path / "gw", "truck-7", now=NOW)
    bundle.key.unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "gw").iterdir()}
    with pytest.raises(ConfigError, match=r"gateway\.pem exists"):
        pki.issue_gateway(ca, tmp_path / "gw", "truck-8", now=NOW)
    assert {path: path.read_bytes() for path in (tmp_path / "gw").iterdir()} == before


def test_a_node_and_a_gateway_may_share_a_directory(ca: Path, tmp_path: Path) -> None:
    pki.issue_server(ca, tmp_path / "pki", ["localhost"], now=NOW)
    pki.issue_gateway(ca, tmp_path / "pki", "truck-7", now=NOW)
    assert len(list((tmp_path / "pki").iterdir())) == 5


@pytest.mark.parametrize("gateway", ["", "a" * 65, "a/b", "a+b", "node:1", "ä", "a b", "a\n", ".", ".."])
def test_what_cannot_name_a_gateway(ca: Path, tmp_path: Path, gateway: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a gateway"):
        pki.issue_gateway(ca, tmp_path / "gw", gateway, now=NOW)
    assert not (tmp_path / "gw").exists()


@pytest.mark.parametrize("host", ["", "mqtts://ingest", "ingest:8883", "-a.example", "a..b", "a" * 64, "é.example"])
def test_what_cannot_name_a_server(ca: Path, tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="neither a DNS name nor an IP address"):
        pki.issue_server(ca, tmp_path / "node", [host], now=NOW)


def test_an_identity_that_is_none_is_refused(ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="names no gateway"):
        pki.gateway_of(der(pki.Identity(ca / "ca.pem", ca / "ca.pem", ca / "ca.key")))
    with pytest.raises(Refused, match="cannot be read"):
        pki.gateway_of(b"no certificate")
    with monkeypatch.context() as patch:
        patch.setattr(pki, "check_gateway_id", lambda text: text)
        evil = pki.issue_gateway(ca, tmp_path / "gw", "+/up", now=NOW)
    with pytest.raises(Refused, match="cannot name a gateway"):
        pki.gateway_of(der(evil))


def test_a_ca_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca\.pem cannot be read: .*waybill cloud ca init"):
        pki.issue_gateway(tmp_path, tmp_path / "gw", "truck-7", now=NOW)
    pki.ca_init(tmp_path / "one", now=NOW)
    pki.ca_init(tmp_path / "two", now=NOW)
    (tmp_path / "one" / "ca.key").write_bytes((tmp_path / "two" / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match="is not the elliptic-curve key of"):
        pki.issue_gateway(tmp_path / "one", tmp_path / "gw", "truck-7", now=NOW)
    (tmp_path / "two" / "ca.pem").write_text("nothing")
    with pytest.raises(ConfigError, match="no usable CA"):
        pki.issue_gateway(tmp_path / "two", tmp_path / "gw", "truck-7", now=NOW)


def test_contexts_name_the_file_that_is_wrong(ca: Path, tmp_path: Path) -> None:
    server = pki.issue_server(ca, tmp_path / "node", ["localhost"], now=NOW)
    with pytest.raises(ConfigError, match=r"nowhere\.pem cannot be read: No such file"):
        pki.client_context(tmp_path / "nowhere.pem")
    with pytest.raises(ConfigError, match="holds no PEM certificates"):
        pki.client_context(server.key)
    with pytest.raises(ConfigError, match="its own unencrypted key"):
        pki.server_context(server.certificate, ca / "ca.key")
    with pytest.raises(ConfigError, match=r"only .*server\.pem is given"):
        pki.client_context(server.ca, server.certificate)
