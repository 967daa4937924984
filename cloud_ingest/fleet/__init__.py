"""The state of the fleet, the same at every node, and those who are told of it."""
