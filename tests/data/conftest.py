import shutil

import pytest

from tests.data.tiny import harvest


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of 4 shards with 240 rows each; not to be changed."""
    return harvest(tmp_path_factory.mktemp("stores")).ensure()


@pytest.fixture
def copy(made, tmp_path):
    """A copy that may be spoilt. Its times are those of the original, so that its stamps hold."""
    return shutil.copytree(made.path, tmp_path / "store")
