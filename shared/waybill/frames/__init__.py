"""Frames: what a gateway sends and the journal keeps.

``header`` reads without decompressing; ``plain`` is the first body.
"""

from waybill.frames.header import Clock, Durability, FrameHeader, Order, read_header
from waybill.frames.plain import Frame, Row, decode, encode_plain

__all__ = [
    "Clock",
    "Durability",
    "Frame",
    "FrameHeader",
    "Order",
    "Row",
    "decode",
    "encode_plain",
    "read_header",
]
