"""Compiles and drives any experiment, one round of runs at a time.

Nothing here may know an agent, a folder on disk, or how a sweep is laid out.
"""
