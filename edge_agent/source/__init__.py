"""Brokers that are already there: their messages are acknowledged to them when the agent's disk has them."""
