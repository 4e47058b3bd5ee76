"""The corpus tests have an object store of their own: what they take in is in nobody else's releases."""

import pytest

from tests.conftest import object_store


@pytest.fixture(scope="package")
def s3(tmp_path_factory):
    """Settings with a real object store behind them."""
    with object_store(tmp_path_factory.mktemp("corpus-state")) as settings:
        yield settings
