"""Networks as functions of their arguments: what a link does to bytes, and when what happens to it."""
