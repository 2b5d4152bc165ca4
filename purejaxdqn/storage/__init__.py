"""Writes and reads checkpoints, results, and how they were made; may not know what a sweep is."""
