"""Text of devices and gateways on its way to a terminal, which it must not be able to command."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return ``text`` with what cannot be printed (escape sequences, line ends) written as Python would."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
