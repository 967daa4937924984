"""The ways to the cloud: ``uplinks`` chooses one and returns to the better one, ``link`` is one connection over it.

``dial`` makes the connection, through ``proxy`` and ``web_socket`` where that is asked for; ``traffic`` counts bytes.
"""
