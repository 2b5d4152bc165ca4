"""Deep Q-learning research in pure JAX: many seeds at once, one readable file per algorithm."""
