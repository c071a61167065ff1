"""What holds for every test: types and shapes are checked, warnings are errors, one thread, nothing is written into a home folder."""

import atexit
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator

import jaxtyping
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Before the first import of the package. An int is welcome where a float is asked for (PEP 484); `Self` cannot be checked by a
# decorator of functions.
_OVERRIDES = "beartype.FrozenDict({__import__('typing').Self: object})"
install_import_hook("sae_lightning", f"beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True, hint_overrides={_OVERRIDES}))")

settings.register_profile("suite", deadline=None, derandomize=True, database=None, max_examples=30)
settings.load_profile("suite")


def _shared_folder() -> str:
    """One folder for caches that all workers of this run share, and their subprocesses; removed at the end."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = tempfile.mkdtemp(prefix="sae-lightning-tests-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["SAE_LIGHTNING_TEST_SHARED"] = folder
    return os.environ["SAE_LIGHTNING_TEST_SHARED"]


_SHARED = _shared_folder()
os.environ["OMP_NUM_THREADS"] = "1"  # Two OpenMP threads beside a second worker are slower than one.
os.environ["MPLBACKEND"] = "Agg"
os.environ["WANDB_MODE"] = "offline"
for _name in ("HF_HOME", "MPLCONFIGDIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
    os.environ[_name] = os.path.join(_SHARED, _name.lower())
os.environ.setdefault("SAE_LIGHTNING_TEST_CACHE", os.path.join(_SHARED, "transformers"))
# Ranks of a surrounding job would make every Trainer of this suite one of them.
for _name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
    del os.environ[_name]


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without checks of types and shapes, which are half of a small step: for long trainings whose calls short ones have had checked."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, the most of them at the beginning, so that no worker is left alone with one of them at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Under CI=true a skipped test is a failure, unless it is marked as needing a GPU."""
    report = yield
    expected = item.get_closest_marker("gpu") is not None or hasattr(report, "wasxfail")
    return report if expected else _failed_if_skipped(report, item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    report = yield
    return _failed_if_skipped(report, collector.nodeid)


def _failed_if_skipped(report, name: str):
    if report.skipped and os.environ.get("CI") == "true":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{name} was skipped ({reason}); under CI=true only a test marked `gpu` may be"
    return report
