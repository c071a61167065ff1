"""What Hydra finds by itself."""

import sys

import pytest
from hydra.errors import HydraException

from hydra_plugins.sae_lightning_sweeps import OptunaSweeper


def test_a_search_without_optuna_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "sae_lightning.sweeps.search", raising=False)
    with pytest.raises(HydraException, match=r"needs optuna: pip install 'sae_lightning\[sweep\]'"):
        OptunaSweeper().sweep([])
