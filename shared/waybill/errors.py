"""Every error of Waybill. The type says what the caller must do, the text what the person must do.

::

    WaybillError
    ├── ConfigError    stop: the person must change a file, a flag or a certificate (exit code 2)
    │   └── Locked     stop: another process owns this data directory (exit code 2)
    ├── Unavailable    wait and try again: disk full, Kafka away, link down; nothing was acknowledged
    ├── Refused        never try the same again: dead-letter it, cut it smaller, or close that connection
    ├── Fenced         let go: the partition or the session belongs to somebody else by now
    └── Corrupt        bytes that do not mean what they should (checksum, magic, structure)
        └── UnknownVersion   a format newer than this program; ``spoken`` lists what it speaks
"""

from __future__ import annotations


class WaybillError(Exception):
    """Base of all errors that Waybill raises on purpose."""


class ConfigError(WaybillError):
    """A configuration that cannot be used; the text names file, line or key, and the mend."""


class Locked(ConfigError):
    """The data directory is in use by another process."""


class Unavailable(WaybillError):
    """The other side (disk, Kafka, link) cannot take it now; nothing was acknowledged, try again later."""


class Refused(WaybillError):
    """The other side will never take it as it is."""


class Fenced(WaybillError):
    """Somebody else owns this now; drop it and never fight back."""


class Corrupt(WaybillError):
    """Bytes that fail their checksum or their structure."""


class UnknownVersion(Corrupt):
    """A format version that this program does not speak."""

    def __init__(self, what: str, version: int, spoken: tuple[int, ...]) -> None:
        """Name what was read, the version found and the versions spoken."""
        super().__init__(f"{what} has version {version}; this program speaks {', '.join(map(str, spoken))}")
        self.version = version
        self.spoken = spoken


class RecordRefused(Refused):
    """A log refused at least one record of a step for good; nothing of the step was written (R5: bisect)."""


class TopicRefused(Refused):
    """A log refused a whole topic (unknown, unauthorized).

    ``topic`` names it (R5: its records go to their dead letters).
    """

    def __init__(self, topic: str, reason: str) -> None:
        """Name the topic and the reason."""
        super().__init__(f"{topic}: {reason}")
        self.topic = topic
