"""The command line: one command, its parts loaded when they are asked for."""
