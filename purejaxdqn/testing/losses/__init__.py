"""Is a loss sound? `check_loss` and its parts: interface, gradients, target, penalty, values."""
