"""Small worlds of cells, whose decision processes and optimal values are known exactly."""
