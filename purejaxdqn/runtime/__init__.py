"""Deals with the machine: devices, processes, signals; may not know what is trained."""
