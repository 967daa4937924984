"""The router: frames of the journal become records, each message once (guarantees R1 to R8).

``step`` decides and does no I/O; ``ledger``, ``order`` and ``commands`` are what it knows; ``worker`` reads and
commits.
"""
