"""The cloud side: a listener that journals frames, and a router that writes each message once to its topic."""
