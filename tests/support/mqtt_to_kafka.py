"""A collector as others have them: from an MQTT broker to Kafka, each message acknowledged once Kafka has it.

``python -P mqtt_to_kafka.py HOST:PORT BOOTSTRAP TOPIC``: QoS 1, a session that stays, manual acks, ``acks=all``; the
key is the second level of the topic.
"""

from __future__ import annotations

import asyncio
import sys

import paho.mqtt.client as paho
from aiokafka import AIOKafkaProducer
from paho.mqtt.enums import CallbackAPIVersion

from waybill.config import address


async def main(broker: str, bootstrap: str, topic: str) -> None:
    """Run until killed."""
    loop = asyncio.get_running_loop()
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, linger_ms=5)
    await producer.start()
    coming: asyncio.Queue[paho.MQTTMessage] = asyncio.Queue()
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="collector", clean_session=False, manual_ack=True)

    def on_connect(*_: object) -> None:
        client.subscribe("vehicles/#", 1)

    def on_message(_client: object, _data: object, message: paho.MQTTMessage) -> None:
        loop.call_soon_threadsafe(coming.put_nowait, message)

    client.on_connect = on_connect
    client.on_subscribe = lambda *_: print("subscribed", flush=True)  # noqa: T201 - who started it waits for that
    client.on_message = on_message
    client.reconnect_delay_set(1, 1)
    client.connect(*address(broker))
    client.loop_start()
    while True:
        message = await coming.get()
        key = message.topic.split("/")[1].encode()
        sent = await producer.send(topic, message.payload, key=key)
        sent.add_done_callback(lambda _, message=message: client.ack(message.mid, message.qos))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
