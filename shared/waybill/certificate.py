"""When a certificate ends, read from its file without a library of X.509: an agent has better use for the memory."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_UTC_TIME: Final = 0x17
_VERSION: Final = 0xA0
_LONG: Final = 0x80
_END: Final = "-----END CERTIFICATE-----"


def ends_ms(path: Path) -> int:
    """Return when the first certificate of a PEM file ends, milliseconds since 1970 UTC.

    Raises OSError (cannot be read) and ValueError (no certificate).
    """
    text = path.read_text(encoding="ascii", errors="replace")
    begin = text.find("-----BEGIN CERTIFICATE-----")
    end = text.find(_END)
    if begin < 0 or end < begin:
        raise ValueError(f"{path}: no certificate")
    return not_after_ms(ssl.PEM_cert_to_DER_cert(text[begin : end + len(_END)]))


def not_after_ms(der: bytes) -> int:
    """Return ``notAfter`` of a certificate (RFC 5280, 4.1.2.5). Raises ValueError where it is none."""
    try:
        _, whole = next(_items(der))
        _, signed = next(_items(whole))
        fields = [item for item in _items(signed) if item[0] != _VERSION]  # serial, algorithm, issuer, validity, …
        tag, ends = list(_items(fields[3][1]))[1]
        text = ends.decode("ascii")
        if tag == _UTC_TIME:  # two digits of the year: 1950 to 2049
            text = ("19" if int(text[:2]) >= 50 else "20") + text  # noqa: PLR2004 - as the standard has it
        moment = dt.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=dt.UTC)
    except (StopIteration, IndexError, UnicodeDecodeError) as error:
        raise ValueError("not a certificate") from error
    return int(moment.timestamp() * 1000)


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each item of DER (X.690, 8.1). Raises IndexError where one is cut short."""
    at = 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length >= _LONG:
            size = length - _LONG
            length, at = int.from_bytes(data[at : at + size]), at + size
        if at + length > len(data):
            raise IndexError
        yield tag, data[at : at + length]
        at += length
