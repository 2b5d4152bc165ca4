"""Environments that step on the host, called from inside of the compiled program."""
