"""Writes and reads files: checkpoints with checksums, results, and how results were made.

Nothing here may know what a sweep is; `sweep/folder.py` says which files a sweep keeps.
"""
