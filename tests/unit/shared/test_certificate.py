"""When a certificate ends, read without a library, is what the library reads."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from waybill import certificate, pki

NOW = dt.datetime(2026, 11, 21, 10, tzinfo=dt.UTC)


@pytest.mark.parametrize("days", [1, 3650, 9000, 36_500])  # beyond 2049 the time is written another way
def test_the_end_of_a_certificate(tmp_path: Path, days: int) -> None:
    made = pki.ca_init(tmp_path, now=NOW, days=days)
    known = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    assert certificate.ends_ms(made.certificate) == int(known.not_valid_after_utc.timestamp() * 1000)


@pytest.mark.parametrize(
    "text", ["", "-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n", "-----END CERTIFICATE-----"]
)
def test_what_is_no_certificate_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cert.pem"
    path.write_text(text)
    with pytest.raises(ValueError, match="certificate"):
        certificate.ends_ms(path)


def test_a_certificate_that_is_cut_short_is_none(tmp_path: Path) -> None:
    made = pki.ca_init(tmp_path, now=NOW)
    der = x509.load_pem_x509_certificate(made.certificate.read_bytes()).public_bytes(Encoding.DER)
    for length in range(0, 200, 7):
        with pytest.raises(ValueError, match="certificate"):
            certificate.not_after_ms(der[:length])
