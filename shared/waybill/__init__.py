"""What both ends of the wire share: the MQTT core, frames, identity, configuration and the one command."""
