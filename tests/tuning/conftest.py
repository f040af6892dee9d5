import pytest

from .root import Root


@pytest.fixture
def root(tmp_path):
    return Root(tmp_path / "root")
