"""Simulated and replayed vehicles, and the verdict over what they had acknowledged and what was read back."""
