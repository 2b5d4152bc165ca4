"""Turns results into what people look at: statistics, tables, figures, pages and films."""
