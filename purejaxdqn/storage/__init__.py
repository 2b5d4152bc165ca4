"""Writes and reads files: checkpoints with checksums, results, and how results were made."""
