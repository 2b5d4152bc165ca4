"""DQN and its extensions: `settings.py` declares them, `dqn.py` trains with them."""
