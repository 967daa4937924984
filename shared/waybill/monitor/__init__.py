"""``waybill monitor``: gateways, commands, topics and the log, live on a terminal.

::

    agent's socket ──┐  sources            views                widgets
    HTTP API ────────┴─▶ frozen structs ─▶ lines of bits ──────▶ Board ─▶ terminal
                                             └─ plain ─────────────────▶ --once, --json

What is drawn is a function of frozen structs, a width and a time; only ``app`` and ``widgets`` know textual.
"""
