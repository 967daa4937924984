"""A run of a scenario: everything that it needs is started, driven, disturbed, drained, read back and judged.

::

    scenario ─▶ schedule ─▶ story ──▶ links, faults, commands
                              ▲             │
                            pace            ▼
                              │           world: agents, ingest and Kafka, or somebody else's broker
                              ▼             ▲
                           traffic ── MQTT ─┘
                              └──▶ ledger ──▶ verdict, report
"""
