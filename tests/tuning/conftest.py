import shutil
import tempfile
from pathlib import Path

import pytest

from .root import Root


@pytest.fixture
def root(tmp_path):
    return Root(tmp_path / "root")


@pytest.fixture
def public():
    """A directory that other users can read; pytest's own are private."""
    path = Path(tempfile.mkdtemp(prefix="ringgate-tune-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)
