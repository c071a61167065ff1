"""What Hydra finds by itself: the sweepers and the launcher of sae_lightning, which are written in sae_lightning/sweeps."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class _Ours(Sweeper):
    def __init__(self, params: Any = None):
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        logging.getLogger("hydra").setLevel(logging.WARNING)  # a launcher would print the words of each job, which are long
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context=hydra_context, task_function=task_function, config=config)

    def hand_over(self, sweep: Callable[[DictConfig, ConfigLoader, Launcher, Sequence[str]], None], arguments: Sequence[str]) -> None:
        assert self.config is not None and self.hydra_context is not None and self.launcher is not None
        sweep(self.config, self.hydra_context.config_loader, self.launcher, arguments)


class GridSweeper(_Ours):
    """hydra/sweeper=grid"""

    def sweep(self, arguments: list[str]) -> None:
        from sae_lightning.sweeps.grid import sweep

        self.hand_over(sweep, arguments)


class PartsSweeper(_Ours):
    """hydra/sweeper=parts, of python -m sae_lightning.data.harvest"""

    def sweep(self, arguments: list[str]) -> None:
        from sae_lightning.sweeps.parts import sweep

        self.hand_over(sweep, arguments)


class OptunaSweeper(_Ours):
    """hydra/sweeper=optuna"""

    def sweep(self, arguments: Sequence[str]) -> None:
        try:
            from sae_lightning.sweeps.search import sweep
        except ModuleNotFoundError as error:
            raise HydraException(f"hydra/sweeper=optuna needs {error.name}: pip install 'sae_lightning[sweep]'") from error

        self.hand_over(sweep, arguments)


class ProcessLauncher(Launcher):
    """hydra/launcher=processes"""

    def __init__(self, n_jobs: int | None = None, gpus_per_job: int | None = None):
        self.n_jobs, self.gpus_per_job = n_jobs, gpus_per_job

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from sae_lightning.sweeps.processes import Processes

        self.processes = Processes(config, hydra_context.config_loader, self.n_jobs, self.gpus_per_job)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        return self.processes.launch(job_overrides)


@dataclass
class GridConf:
    _target_: str = "hydra_plugins.sae_lightning_sweeps.GridSweeper"
    params: Any = "${sweep.params}"


@dataclass
class PartsConf:
    _target_: str = "hydra_plugins.sae_lightning_sweeps.PartsSweeper"


@dataclass
class OptunaConf:
    _target_: str = "hydra_plugins.sae_lightning_sweeps.OptunaSweeper"
    params: Any = "${sweep.space}"


@dataclass
class ProcessesConf:
    _target_: str = "hydra_plugins.sae_lightning_sweeps.ProcessLauncher"
    n_jobs: int | None = None
    gpus_per_job: int | None = None


class Register(SearchPathPlugin):
    """Hydra asks it after it has read all plugins, so that `optuna` is ours, and not that of hydra-optuna-sweeper."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        store = ConfigStore.instance()
        store.store(group="hydra/sweeper", name="grid", node=GridConf, provider="sae_lightning")
        store.store(group="hydra/sweeper", name="parts", node=PartsConf, provider="sae_lightning")
        store.store(group="hydra/launcher", name="processes", node=ProcessesConf, provider="sae_lightning")
        store.store(group="hydra/sweeper", name="optuna", node=OptunaConf, provider="sae_lightning")
