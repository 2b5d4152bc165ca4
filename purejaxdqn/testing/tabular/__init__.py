"""Problems small enough for a table, whose values are known apart from the losses' own code."""
