"""DQN and its extensions."""
