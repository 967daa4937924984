"""An MQTT server core: codec, session, topics and resend memory without I/O, and a thin asyncio shell (``server``).

It serves the agent's local broker and the cloud's listener; what differs is the :class:`waybill.mqtt.state.Sink`
whose commit every acknowledgement waits for (B1).
"""
