"""Frames: what a gateway sends and the journal keeps.

``header`` reads without decompressing; ``plain`` and ``columns`` are the two bodies; ``body`` decodes either; ``zstd``
compresses them, with a dictionary where both sides have one.
"""

from waybill.frames.body import Frame, decode, in_columns
from waybill.frames.header import Clock, Durability, FrameHeader, Order, read_header
from waybill.frames.plain import Row, encode_plain
from waybill.frames.zstd import Dictionary

__all__ = [
    "Clock",
    "Dictionary",
    "Durability",
    "Frame",
    "FrameHeader",
    "Order",
    "Row",
    "decode",
    "encode_plain",
    "in_columns",
    "read_header",
]
