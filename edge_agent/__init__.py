"""The gateway's agent: a local MQTT broker over a durable buffer, and the forwarder that empties it to the cloud."""
