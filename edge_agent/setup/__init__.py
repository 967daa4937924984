"""From a blank gateway to a running agent: write its file, check what it needs, install it, size it."""
