"""Compiles and drives any experiment; it knows no agent, no folder on disk and no sweep."""
