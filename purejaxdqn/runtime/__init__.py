"""The machine: devices, processes, interrupts."""
