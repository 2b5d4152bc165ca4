"""Problems small enough for a table, whose values are known without any of the losses' code."""
