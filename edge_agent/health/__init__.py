"""What the agent says of itself to those who watch it: on its socket now, to the cloud once in a while."""
