"""Checks a loss: its interface, gradients, target, penalty and the values that it learns."""
