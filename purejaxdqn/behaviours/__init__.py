"""Behaviours as pure functions `(act, init)` of ONE environment: how an agent acts as it trains.

In the prefill every one of them acts uniformly at random, among the legal actions. Nothing here may
know an agent or its settings.
"""

from purejaxdqn.behaviours.epsilon import epsilon_greedy as epsilon_greedy
from purejaxdqn.behaviours.epsilon import epsilon_greedy_behaviour as epsilon_greedy_behaviour
from purejaxdqn.behaviours.epsilon import epsilon_z_behaviour as epsilon_z_behaviour
from purejaxdqn.behaviours.epsilon import head_behaviour as head_behaviour
from purejaxdqn.behaviours.softmax import boltzmann_behaviour as boltzmann_behaviour
from purejaxdqn.behaviours.written import write_extras as write_extras
