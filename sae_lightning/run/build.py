"""From a configuration to the parts of a run: the one place that calls `instantiate`."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from hydra.errors import InstantiationException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf, open_dict
from torchmetrics import MetricCollection

from sae_lightning.callbacks.in_transformer import InTransformer
from sae_lightning.callbacks.log_hardware import TABLE, is_out_of_memory
from sae_lightning.callbacks.monitored import check_logged
from sae_lightning.callbacks.schedule import Schedule
from sae_lightning.callbacks.trial import ReportToTrial
from sae_lightning.checkpoint_io import AtomicCheckpointIO
from sae_lightning.data.rows import RowsDataModule
from sae_lightning.errors import GivenUp, InputError, in_a_line
from sae_lightning.evaluation.run import Evaluation
from sae_lightning.evaluation.scores import Scores
from sae_lightning.finetune import FineTune
from sae_lightning.inference import InferenceSAE
from sae_lightning.load import load_sae
from sae_lightning.loggers.csv import CSV
from sae_lightning.loggers.names import add_names_, check_names
from sae_lightning.models.base import SAE
from sae_lightning.models.start import check_start, check_views
from sae_lightning.module import SAEModule
from sae_lightning.report.run_page import Page
from sae_lightning.run.check import OF_BUILD, OF_HARVEST, PARTS_ARE_HARVESTED
from sae_lightning.run.checkpoints import newest
from sae_lightning.run.instantiate import instantiate
from sae_lightning.run.quiet import quiet
from sae_lightning.run.record import Following, Progress, recording, warn_of_versions
from sae_lightning.shard_latents import ShardLatents
from sae_lightning.sweeps.trial import of_environment

PRECISIONS = ("32-true", "32", "64-true", "64", "bf16-mixed")


class Run(NamedTuple):
    """The parts of one training."""

    trainer: L.Trainer
    module: SAEModule
    data: RowsDataModule
    folder: Path
    checkpoint: Path | None = None
    """What a resumed run goes on from; None for a run from its beginning."""

    def fit(self) -> None:
        """Trains, and validates what there is nothing to train of.

        Errors: GivenUp where a search ended it; InputError for a run that is out of memory, with what to change.
        """
        try:
            self.trainer.fit(self.module, self.data, ckpt_path=self.checkpoint, weights_only=True)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise InputError(self._out_of_memory()) from error
            raise
        if self.trainer.max_steps == 0:
            self.trainer.validate(self.module, self.data, verbose=False)
        if any(isinstance(callback, ReportToTrial) and callback.is_given_up for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
            raise GivenUp(f"given up at step {self.trainer.global_step}")

    def _out_of_memory(self) -> str:
        table = self.folder / TABLE
        where = f", {table} says what holds how much" if table.exists() else ""
        return (
            f"out of memory at step {self.trainer.global_step}{where}: lower data.batch_size (with trainer.accumulate_grad_batches, the step "
            "stays as large) or dictionary.expansion_factor, or add trainer.precision=bf16-mixed"
        )

    def recording(self, cfg: DictConfig) -> AbstractContextManager[None]:
        """run.json, and what loggers are told of the run `cfg`: around all that is done in it."""
        own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        return recording(
            self.folder, seed=cfg.seed, module=self.module, progress=self.progress, data=self.data.about, loggers=self.trainer.loggers,
            config={str(key): value for key, value in dict(OmegaConf.to_container(own, resolve=True)).items()},  # type: ignore[arg-type]
        )  # fmt: skip

    def tell(self, scores: Scores) -> None:
        """Hands the scores of the run to loggers that keep numbers of a run as a whole."""
        values = {f"scores/{row}/{name}": value for row, named in scores.items() for name, value in named.items()}
        for logger in self.trainer.loggers:
            if isinstance(logger, Following):
                logger.summarise(values)

    def progress(self) -> Progress:
        """How far it is now."""
        validated = {name: float(value) for name, value in self.trainer.callback_metrics.items() if name.startswith("val/")}
        return Progress(self.trainer.global_step, self.trainer.max_steps, self.data.rows_trained, validated)

    def objective(self, metric: str | Sequence[str]) -> float | tuple[float, ...] | None:
        """What its last validation says; outside a search None for what it does not log. Errors: InputError for that in a search."""
        names = [metric] if isinstance(metric, str) else metric
        if of_environment() is None and not set(names) <= set(self.trainer.callback_metrics):
            return None
        for name in names:
            check_logged(self.trainer, name, "optimized_metric")
        values = tuple(float(self.trainer.callback_metrics[name]) for name in names)
        return values[0] if isinstance(metric, str) else values


def build(cfg: DictConfig) -> Run:
    """Every part of the run that `cfg` describes, seeded; nothing heavy is done yet. Errors: InputError for what cannot be."""
    quiet()
    _check_precision(cfg)
    folder, point = Path(cfg.paths.run), None
    if cfg.resume is not None:
        warn_of_versions(folder)
        point = newest(folder)
    build_evaluations(cfg)  # what they cannot do is said now, and not after the training
    L.seed_everything(cfg.seed, verbose=False)
    data = build_data(cfg)
    sae = build_sae(cfg, data)
    start = None if point is not None or cfg.model.init_from is None else _start(cfg.model.init_from, sae, data)
    metrics = MetricCollection(build_all(cfg.metrics))
    module = SAEModule(sae, instantiate(cfg.optimizer), metrics, instantiate(cfg.scheduler), cfg.compile, start, _finetune(cfg, data))
    trainer = _trainer(cfg, is_trained=any(parameter.requires_grad for parameter in sae.parameters()))
    if trainer.world_size != trainer.num_devices * trainer.num_nodes:
        raise InputError(
            f"{trainer.world_size} processes are started for {trainer.num_devices} devices on each of {trainer.num_nodes} machines: "
            "a Slurm job needs a task for each device, --ntasks-per-node"
        )
    if trainer.max_steps == 0 and trainer.world_size > 1:
        raise InputError(f"{sae.architecture} has nothing to train, so several processes have nothing to share: add trainer.devices=1")
    if isinstance(trainer.strategy, ShardLatents):
        trainer.strategy.check(module, trainer.callbacks, starts=start is not None)  # type: ignore[attr-defined]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Schedule):
            callback.check(sae, trainer.max_steps)
        if isinstance(callback, InTransformer):
            callback.check(sae, data)
    for logger in trainer.loggers:
        if point is not None and isinstance(logger, CSV):
            logger.go_on_after_(point.step)
    return Run(trainer, module, data, folder, None if point is None else point.path)


def build_sae(cfg: DictConfig, data: RowsDataModule) -> SAE:
    """The architecture, with a dictionary as wide as the rows. Errors: InputError, theirs, and for rows of other hook points."""
    views = cfg.dictionary.get("views", "one")
    if data.views != views:
        raise InputError(
            f"this dictionary needs data.views={views}, and data gives {data.views}: write `views: ${{dictionary.views}}` into the data's yaml"
        )
    return instantiate(own(cfg, "model"))(dictionary=partial(instantiate(own(cfg, "dictionary")), data.shape))


def own(cfg: DictConfig, group: str) -> DictConfig:
    """A node without the keys that are not its object's."""
    node = copy.copy(cfg[group])
    with open_dict(node):
        for key in [key for key in node if f"{group}.{key}" in OF_BUILD]:
            del node[key]
    return node


def _start(path: str, sae: SAE, data: RowsDataModule) -> InferenceSAE:
    """The exported SAE that a run starts from. Errors: InputError for one of another size or kind."""
    try:
        start = load_sae(path)
        check_views(start, data.views)
        check_start(sae, start)
    except InputError as error:
        raise InputError(f"model.init_from={path}: {error}") from None
    return start


def _finetune(cfg: DictConfig, data: RowsDataModule) -> FineTune | None:
    """Errors: InputError for rows without a transformer."""
    if cfg.model.loss != "kl":
        return None
    finetune: FineTune = instantiate(cfg.finetune)
    finetune.check(data)
    return finetune


def build_data(cfg: DictConfig) -> RowsDataModule:
    """The source of rows alone. Errors: InputError for a part of one."""
    if any(OmegaConf.select(cfg, key) is not None for key in OF_HARVEST):
        raise InputError(PARTS_ARE_HARVESTED)
    data: RowsDataModule = instantiate(own(cfg, "data"))
    data.repeat_batches = cfg.repeat_batches
    return data


def build_evaluations(cfg: DictConfig) -> dict[str, Evaluation]:
    """By name, in the order of the configuration."""
    return build_all(cfg.get("evaluate"))


def build_held_out(recorded: DictConfig) -> RowsDataModule:
    """The data of a run that has ended, ready to give its held-out rows."""
    data = build_data(recorded)
    data.prepare_data()
    data.setup("validate")
    return data


def build_page(cfg: DictConfig) -> Page | None:
    """Of a run; None where none is wanted."""
    return None if cfg.report is None else instantiate(cfg.report)


def build_all(group: DictConfig | None) -> dict[str, Any]:
    """Every entry of a group of several options, by name; an entry that was set to null is left out."""
    return {str(name): instantiate(node) for name, node in (group or {}).items() if node is not None}


def _trainer(cfg: DictConfig, is_trained: bool) -> L.Trainer:
    """What has no parameter to train is fitted when it is set up, and does no steps. Errors: InputError for what Lightning refuses."""
    callbacks = list(build_all(cfg.callbacks).values())
    with open_dict(cfg):
        loggers = _loggers(cfg)
    length = {} if is_trained else {"max_steps": 0, "limit_train_batches": 0}
    try:
        return instantiate(
            cfg.trainer,
            **length,
            callbacks=callbacks,
            logger=loggers or False,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=cfg.paths.run,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            enable_model_summary=False,
            max_epochs=1,
            num_sanity_val_steps=0,
            check_val_every_n_epoch=None,
            use_distributed_sampler=False,
        )
    except InstantiationException as error:
        if isinstance(error.__cause__, MisconfigurationException | RuntimeError | ValueError) and not isinstance(
            error.__cause__, InputError
        ):
            raise InputError(f"trainer: {str(error.__cause__).splitlines()[0]}") from error
        raise


def _loggers(cfg: DictConfig) -> list[Logger]:
    """Errors: InputError for names that no guide has, and for what a logger does not find on this machine."""
    check_names(cfg.logger.names)
    loggers = []
    for name, node in cfg.logger.items():
        if name == "names" or node is None:
            continue
        try:
            loggers.append(instantiate(node))
        except InstantiationException as error:
            if isinstance(error.__cause__, InputError):
                raise
            raise InputError(f"logger={name}: {in_a_line(error.__cause__ or error)}") from error
        add_names_(loggers[-1], cfg.logger.names)
    return loggers


def _check_precision(cfg: DictConfig) -> None:
    precision = str(cfg.trainer.precision)
    if precision not in PRECISIONS:
        raise InputError(
            f"trainer.precision={precision} is refused, since thresholds, averages and counters are float32: choose 32-true or bf16-mixed"
        )
