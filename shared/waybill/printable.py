"""Text for people: what devices say, which must not be able to command a terminal; bytes of data plans; durations."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return ``text`` with what cannot be printed (escape sequences, line ends) written as Python would."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def say_span(seconds: float) -> str:
    """Return a duration in its largest unit and, where that is below ten, the next smaller one: ``3 h 12 min``."""
    rest = int(max(0.0, seconds))
    for unit, size, smaller, less in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if rest >= size:
            more = rest % size // less
            return f"{rest // size} {unit} {more} {smaller}" if rest < 10 * size and more else f"{rest // size} {unit}"
    return f"{rest} s"


def say_bytes(count: int) -> str:
    """Return a count of bytes as data plans say it: in kB, MB and GB of a thousand each."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:  # noqa: PLR2004 - plans count in thousands
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
