"""Deals with the machine: its devices, other processes, and signals such as SIGTERM.

Nothing here may know what is trained.
"""
