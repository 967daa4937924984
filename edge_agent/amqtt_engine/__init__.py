"""The second engine: amqtt 0.12 as local broker, its acks held until the commit (docs/amqtt.md).

Imported only where agent.toml says ``engine = "amqtt"``: nothing else needs amqtt to be installed.
"""

from edge_agent.amqtt_engine.engine import AmqttEngine as AmqttEngine
