"""What is made of results: statistics, tables, figures, films."""
