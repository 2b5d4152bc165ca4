"""What the tests of `check_loss` share."""

import re

import pytest

from purejaxdqn.testing import loss_report


@pytest.fixture(scope="session")
def assert_named():
    """Checks that a failure's message, with the name of its row, matches a pattern."""

    def check(loss, pattern, **options):
        report = loss_report(loss, **options)
        assert not report.passed
        text = "\n".join(f"{check.name}: {check.message}" for check in report.failures)
        assert re.search(pattern, text), text

    return check
