"""Turns results into what people look at: statistics, tables, figures, pages and films.

A new figure is one function in `figures.py` (a picture) or `pages.py` (a page to look into), and
one line in the report that shows it: `training.py` (the seeds of one setting), `sweep.py` (all
settings of a sweep) or `ablation.py` (what each component adds).
"""
