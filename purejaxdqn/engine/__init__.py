"""Compiles and drives any experiment, one round of runs at a time."""
