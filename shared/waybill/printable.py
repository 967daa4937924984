"""Text for people: what devices say, which must not be able to command a terminal, and bytes of data plans."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return ``text`` with what cannot be printed (escape sequences, line ends) written as Python would."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def say_bytes(count: int) -> str:
    """Return a count of bytes as data plans say it: in kB, MB and GB of a thousand each."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:  # noqa: PLR2004 - plans count in thousands
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
