"""The retraining that the tests of the loop share."""

import pytest


@pytest.fixture(scope="session")
def first(stack):
    """A retraining from nothing that nobody disturbs."""
    from flows.retrain import retrain

    return retrain(reason="test")
