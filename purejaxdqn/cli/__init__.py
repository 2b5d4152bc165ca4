"""The command `purejaxdqn`: `main.py` knows the commands, `flags.py` reads what they are told."""
