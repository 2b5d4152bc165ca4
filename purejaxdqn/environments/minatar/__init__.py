"""MinAtar's five games, a file each; `common.py` has what they share."""
