"""Certificates of a deployment: one CA, a server certificate for each ingest node, a client's for each gateway.

All keys are ECDSA P-256, all certificates X.509 v3 as RFC 5280 section 4.2 wants them. A gateway is named by one URI in
its certificate's subject alternative name (RFC 5280 section 4.2.1.6), ``urn:waybill:gateway:ID`` (RFC 8141),
and by nothing else: never by the common name, a payload or a topic.

On disk, PEM (RFC 7468), keys as unencrypted PKCS #8 (RFC 5958) of mode 0600; nothing that exists is ever overwritten::

    CA directory       ca.pem  ca.key
    server directory   ca.pem  server.pem   server.key
    gateway's bundle   ca.pem  gateway.pem  gateway.key

The TLS contexts here speak TLS 1.3 (RFC 8446) and nothing older. Where the wall clock is known to be wrong because it
says what has surely passed (a gateway without a battery clock, just after its boot), they do not compare dates with it:
every certificate would be "not yet valid". The peer's is then held against the time that has surely passed. X.509
itself is imported on first use: an agent needs only the contexts, and its memory is small.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from waybill.errors import ConfigError, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

GATEWAY_URN = "urn:waybill:gateway:"
CA_DAYS = 3650
LEAF_DAYS = 730
# Certificates are valid from before they were made, for gateways and servers whose clocks disagree a little.
BACKDATED = dt.timedelta(hours=1)

_GATEWAY_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Identity(NamedTuple):
    """Files of one party: its certificate, its key, and the CA that the other party's certificate must come from."""

    ca: Path
    certificate: Path
    key: Path


def check_gateway_id(text: str) -> str:
    """Return ``text`` if it can name a gateway: 1 to 64 letters, digits, ``.``, ``_``, ``-``; not ``.`` or ``..``.

    Such an id is safe as a level of an MQTT topic, in a URN and as the name of a directory. Raises ConfigError.
    """
    if not _GATEWAY_ID.fullmatch(text) or text in {".", ".."}:
        raise ConfigError(f"{text!r} cannot name a gateway: use 1 to 64 letters, digits, '.', '_' or '-'")
    return text


def gateway_of(der: bytes) -> str:
    """Return the gateway id in a certificate (DER, as ``ssl.SSLObject.getpeercert(binary_form=True)`` gives it).

    Says who it is, not whether to believe it: the chain was verified by the TLS handshake. Raises Refused where the
    certificate cannot be read, or does not name exactly one gateway.
    """
    from cryptography import x509

    try:
        certificate = x509.load_der_x509_certificate(der)
        subject = certificate.subject.rfc4514_string() or "nobody"
        extensions = [e.value for e in certificate.extensions if isinstance(e.value, x509.SubjectAlternativeName)]
        uris = [uri for names in extensions for uri in names.get_values_for_type(x509.UniformResourceIdentifier)]
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise Refused(f"the certificate cannot be read: {error}") from error
    gateways = [uri.removeprefix(GATEWAY_URN) for uri in uris if uri.startswith(GATEWAY_URN)]
    if len(gateways) != 1:
        count = "no" if not gateways else "more than one"
        raise Refused(
            f"the certificate of {subject} names {count} gateway: it needs one subject alternative name "
            f"URI:{GATEWAY_URN}ID (waybill cloud gateway issue ID makes such a certificate)"
        )
    try:
        return check_gateway_id(gateways[0])
    except ConfigError as error:
        raise Refused(f"the certificate's URI {GATEWAY_URN}{gateways[0]}: {error}") from error


def common_name(der: bytes) -> str:
    """Return the common name (CN) of a certificate's subject; as with ``gateway_of``, the handshake verified it.

    For devices, whose certificates come from anywhere. Raises Refused where it cannot be read or has not just one.
    """
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        subject = x509.load_der_x509_certificate(der).subject
        names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError as error:
        raise Refused(f"the certificate cannot be read: {error}") from error
    if len(names) != 1:
        subject_name = subject.rfc4514_string() or "nobody"
        raise Refused(f"the certificate of {subject_name} has {len(names)} common names; it needs one")
    return str(names[0].value)


def ca_init(directory: Path, *, now: dt.datetime, name: str = "Waybill CA", days: int = CA_DAYS) -> Identity:
    """Make a certificate authority: ``ca.pem`` and ``ca.key`` in ``directory``.

    It may sign leaves only (path length 0). ``now``: aware. Raises ConfigError where one of the files exists or the
    directory cannot be written.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    paths = Identity(directory / "ca.pem", directory / "ca.pem", directory / "ca.key")
    key = ec.generate_private_key(ec.SECP256R1())
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    certificate = _certificate(
        key,
        issuer=None,
        name=name,
        now=now,
        days=days,
        extensions=[(x509.BasicConstraints(True, 0), True), (usage, True)],
    )
    _write({paths.key: _pem(key), paths.certificate: _pem(certificate)})
    return paths


def issue_server(
    ca_directory: Path, directory: Path, hosts: Sequence[str], *, now: dt.datetime, days: int = LEAF_DAYS
) -> Identity:
    """Issue the certificate of an ingest node: ``ca.pem``, ``server.pem``, ``server.key`` in ``directory``.

    ``hosts``: DNS names and IP addresses by which gateways reach it, at least one. Raises ConfigError where a host is
    neither, the CA cannot be used, or a file exists.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    if not hosts:
        raise ConfigError("a server certificate needs at least one DNS name or IP address that gateways connect to")
    names = x509.SubjectAlternativeName([_host_name(host) for host in hosts])
    return _issue(ca_directory, directory, "server", hosts[0][:64], names, ExtendedKeyUsageOID.SERVER_AUTH, now, days)


def issue_gateway(
    ca_directory: Path, directory: Path, gateway: str, *, now: dt.datetime, days: int = LEAF_DAYS
) -> Identity:
    """Issue a gateway's bundle: ``ca.pem``, ``gateway.pem``, ``gateway.key`` in ``directory``.

    Raises ConfigError where ``gateway`` cannot name one, the CA cannot be used, or a file exists.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    uri = x509.UniformResourceIdentifier(GATEWAY_URN + check_gateway_id(gateway))
    names = x509.SubjectAlternativeName([uri])
    return _issue(ca_directory, directory, "gateway", gateway, names, ExtendedKeyUsageOID.CLIENT_AUTH, now, days)


FloorMs = Callable[[], int | None]
"""A time that has surely passed where the wall clock is behind it, milliseconds since 1970 UTC; else None."""

NO_CHECK_TIME: Final = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME (x509_vfy.h), which Python's ssl has no name for."""


def server_context(
    certificate: Path, key: Path, client_ca: Path | None = None, *, floor_ms: FloorMs | None = None
) -> ssl.SSLContext:
    """Return the context of a listener. With ``client_ca`` a client must show a certificate that this CA signed.

    ``floor_ms``: asked at each handshake; None: the wall clock is always right.
    Raises ConfigError for a file that is missing, is no PEM, or whose key does not belong to its certificate.
    """
    context = _Context(ssl.PROTOCOL_TLS_SERVER)
    context.floor_ms = floor_ms
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load_chain(context, certificate, key)
    if client_ca is not None:
        _load_ca(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(
    ca: Path | None, certificate: Path | None = None, key: Path | None = None, *, floor_ms: FloorMs | None = None
) -> ssl.SSLContext:
    """Return the context of a client: it verifies the server's chain and host name, and shows ``certificate``.

    ``ca``: whom to believe; None for the system's CAs. ``floor_ms``: as for ``server_context``, which names the errors,
    too.
    """
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)
    context.floor_ms = floor_ms
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if ca is None:
        context.load_default_certs()
    else:
        _load_ca(context, ca)
    if certificate is not None and key is not None:
        _load_chain(context, certificate, key)
    elif certificate is not None or key is not None:
        raise ConfigError(
            f"a client certificate needs its key and the other way round: only {certificate or key} is given"
        )
    return context


class _Socket(ssl.SSLSocket):
    """A connection whose peer's certificate is held against the floor, before anything is sent over it."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - as the base class has it
        try:
            super().do_handshake(block)
            _check_end(self)
        except ssl.SSLCertVerificationError:
            self.close()  # paho, which wrapped it, has no other hold of it
            raise


class _Object(ssl.SSLObject):
    """The same without a socket: asyncio's."""

    def do_handshake(self) -> None:
        super().do_handshake()
        _check_end(self)


class _Context(ssl.SSLContext):
    """A context that compares no dates with a wall clock that is behind."""

    sslsocket_class = _Socket
    sslobject_class = _Object
    floor_ms: FloorMs | None = None

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:  # noqa: ANN401 - passed on
        self._heed_the_clock()
        return super().wrap_socket(*args, **kwargs)

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:  # noqa: ANN401 - passed on
        self._heed_the_clock()
        return super().wrap_bio(*args, **kwargs)

    def _heed_the_clock(self) -> None:
        behind = self.floor_ms is not None and self.floor_ms() is not None
        flags = self.verify_flags & ~NO_CHECK_TIME | (NO_CHECK_TIME if behind else 0)
        self.verify_flags = ssl.VerifyFlags(flags)


def _check_end(connection: ssl.SSLSocket | ssl.SSLObject) -> None:
    """Raise SSLCertVerificationError where the peer's certificate had expired before the floor."""
    context = connection.context
    floor_ms = context.floor_ms() if isinstance(context, _Context) and context.floor_ms is not None else None
    shown = connection.getpeercert() if floor_ms is not None else None
    if floor_ms is None or not shown:
        return
    end = str(shown["notAfter"])
    if ssl.cert_time_to_seconds(end) * 1000 < floor_ms:
        text = f"[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired: {end}"
        raise ssl.SSLCertVerificationError(1, text)


def _load_chain(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    for path in (certificate, key):
        _check_readable(path)
    try:
        # An encrypted key would otherwise make OpenSSL ask on the terminal, and wait.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        raise ConfigError(
            f"{certificate} and {key} are not a PEM certificate and its own unencrypted key: {error}"
        ) from error


def _load_ca(context: ssl.SSLContext, ca: Path) -> None:
    _check_readable(ca)
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise ConfigError(f"{ca} holds no PEM certificates: {error}") from error


def _check_readable(path: Path) -> None:
    # OpenSSL's own errors do not name the file.
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _host_name(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    label = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
    if len(host) > 253 or not re.fullmatch(rf"(\*\.)?{label}(\.{label})*", host):  # noqa: PLR2004 - RFC 1035 section 2.3.4
        raise ConfigError(f"{host!r} is neither a DNS name nor an IP address (no port, no scheme, IDNs as xn--)")
    return x509.DNSName(host)


def _issue(
    ca_directory: Path,
    directory: Path,
    role: str,
    name: str,
    names: x509.SubjectAlternativeName,
    purpose: x509.ObjectIdentifier,
    now: dt.datetime,
    days: int,
) -> Identity:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    ca = _load_authority(ca_directory)
    paths = Identity(directory / "ca.pem", directory / f"{role}.pem", directory / f"{role}.key")
    key = ec.generate_private_key(ec.SECP256R1())
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(False, None), True),
        (_key_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([purpose]), False),
        (names, False),
    ]
    certificate = _certificate(key, issuer=ca, name=name, now=now, days=days, extensions=extensions)
    _write({paths.key: _pem(key), paths.certificate: _pem(certificate), paths.ca: _pem(ca[0])})
    return paths


def _load_authority(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        certificate = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
        key = load_pem_private_key((directory / "ca.key").read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(
            f"{error.filename} cannot be read: {error.strerror} (waybill cloud ca init makes a CA)"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{directory} holds no usable CA (ca.pem and ca.key, PEM, key not encrypted): {error}"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(f"{directory / 'ca.key'} is not the elliptic-curve key of {directory / 'ca.pem'}")
    return certificate, key


def _certificate(
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
    name: str,
    now: dt.datetime,
    days: int,
    extensions: Iterable[tuple[x509.ExtensionType, bool]],
) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    if days < 1:
        raise ConfigError(f"a certificate has to be valid for at least one day, not {days}")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(
        issuer_name=issuer[0].subject if issuer else subject,
        subject_name=subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - BACKDATED,
        not_valid_after=now + dt.timedelta(days=days),
    )
    signer = issuer[1] if issuer else key
    # RFC 5280 sections 4.2.1.1 and 4.2.1.2; Python 3.13 verifies strictly and refuses chains without them.
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer, hashes.SHA256())


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(item: x509.Certificate | ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    if isinstance(item, x509.Certificate):
        return item.public_bytes(Encoding.PEM)
    return item.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(files: Mapping[Path, bytes]) -> None:
    """Write all files or none, none over another; ``*.key`` with mode 0600 from its first byte."""
    # A node and a gateway on one machine may share a directory, and with it their CA's certificate.
    files = {path: content for path, content in files.items() if not (path.exists() and path.read_bytes() == content)}
    for path in files:
        if path.exists():
            raise ConfigError(f"{path} exists and is not overwritten: move it away, or name another directory")
    written: list[Path] = []
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if path.suffix == ".key" else 0o644)
            written.append(path)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
