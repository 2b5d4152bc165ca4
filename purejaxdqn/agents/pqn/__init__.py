"""PQN, Q-learning on rollouts: `settings.py` declares it, `pqn.py` trains with it."""
