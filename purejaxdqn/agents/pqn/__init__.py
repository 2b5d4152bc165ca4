"""PQN, Q-learning on rollouts."""
