"""The probe environments, and what is learned of them with each mistake."""

import jax
import numpy as np
import pytest

from purejaxdqn.testing import check_environment
from purejaxdqn.testing.tabular.probes import (
    MISTAKES,
    check_probes,
    compute_known_values,
    find_values,
    make_probe_environment,
    name_mistake,
)


class TestProbes:
    def test_the_environment_keeps_its_contract(self):
        check_environment(make_probe_environment(), jax.random.key(0))

    @pytest.mark.parametrize("n_step", [1, 3])
    def test_right_transitions_give_the_known_values(self, n_step):
        np.testing.assert_allclose(find_values("", n_step), compute_known_values(), rtol=1e-9)

    def test_the_known_values_obey_bellman(self):
        values = compute_known_values()
        assert values[5, 0] == pytest.approx(1 / (1 - 0.9))
        assert values[3, 0] == pytest.approx(0.9 * values[4].max())
        assert values[4, 0] == pytest.approx(1 + 0.9 * values[3].max())

    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_each_mistake_has_a_name(self, mistake):
        learned = find_values(mistake, 3)
        assert name_mistake(learned, 3) == MISTAKES[mistake]
        assert not all(check.passed for check in check_probes(learned, 3))
