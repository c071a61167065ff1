"""Curves, pictures, tables and artifacts at Weights & Biases."""

import functools
import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from lightning.fabric.loggers.logger import _DummyExperiment as DummyExperiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

import sae_lightning
from sae_lightning.errors import InputError
from sae_lightning.files import write_text
from sae_lightning.run.folder import of_agent

Watch = Literal["gradients", "parameters", "all"]
T = TypeVar("T")
log = logging.getLogger(__name__)


def _guarded(method: Callable[..., T]) -> Callable[..., T | None]:
    """On rank 0 alone; what W&B raises ends the logging, not the training."""

    @functools.wraps(method)
    @rank_zero_only
    def guarded(self: "WandB", *args: Any, **kwargs: Any) -> T | None:
        if self.is_broken:
            return None
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # whatever it is: a run outlives its curves at W&B
            self.is_broken = True
            log.warning("W&B failed (%s: %s): this run goes on without it; its other logs are whole", type(error).__name__, error)
            return None

    return guarded


class WandB(WandbLogger):
    """Lightning's logger, with what a run has: its configuration, run.json, code, pictures, tables, checkpoints and exports.

    A run that is resumed is the same run there, too: its id stands in <save_dir>/wandb_id, and is kept where there is one; where a W&B
    agent started the run it is the agent's. The runs of a sweep are a group of its name.

    `project`, `entity`, `group`, `tags`, `notes`, `mode` (online, offline, disabled): None is what the environment says (WANDB_PROJECT,
    WANDB_ENTITY, WANDB_RUN_GROUP, WANDB_TAGS, WANDB_NOTES, WANDB_MODE, WANDB_DISABLED). `log_code`: the Python files of this package and
    the yaml files of conf as an artifact, unless WANDB_DISABLE_CODE is true. `watch`: histograms of gradients, parameters or all, every
    `watch_every_n_steps` batches. `artifacts`: `exports` (the SAE at the end, and the best so far), `all` (checkpoints too), `none`; each a
    version with the aliases latest and best.

    Without a key or a network a warning is given after `init_timeout` seconds and files are written below <save_dir>/wandb, for
    `wandb sync`. What W&B raises later is said once, and the run goes on without it; at its end at most `finish_timeout` seconds are
    spent on what has not been sent. Errors: InputError where wandb is not installed.
    """

    def __init__(self, save_dir: str, project: str | None = None, entity: str | None = None, name: str | None = None,
                 group: str | None = None, tags: Sequence[str] | None = None, notes: str | None = None,
                 mode: Literal["online", "offline", "disabled"] | None = None, log_code: bool = True, watch: Watch | None = None,
                 watch_every_n_steps: int = 100, artifacts: Literal["exports", "all", "none"] = "exports", init_timeout: float = 60.0,
                 finish_timeout: float = 600.0):  # fmt: skip
        try:
            import wandb
        except ModuleNotFoundError:
            raise InputError("logger=wandb needs wandb: pip install 'sae_lightning[wandb]'") from None
        if watch_every_n_steps < 1:
            raise InputError(f"logger.wandb.watch_every_n_steps is {watch_every_n_steps}: give a positive number of batches")
        super().__init__(
            name=name,
            save_dir=save_dir,
            id=_id(Path(save_dir) / "wandb_id"),
            project=project or os.environ.get("WANDB_PROJECT") or "sae_lightning",
            entity=entity,
            group=group or os.environ.get("WANDB_RUN_GROUP") or _sweep(Path(save_dir).absolute()),
            tags=tags,
            notes=notes,
            mode=mode or ("disabled" if _is_set("WANDB_DISABLED") else None),
            settings=wandb.Settings(init_timeout=init_timeout, login_timeout=init_timeout, finish_timeout=finish_timeout),
        )
        self.code, self.watched, self.watch_period, self.artifacts = log_code, watch, watch_every_n_steps, artifacts
        self.is_broken = False
        self.row: dict[str, Any] = {}
        self.step: int | None = None

    @property
    def experiment(self) -> Any:
        """The run of W&B, begun where it is not; a stand-in on other ranks."""
        if rank_zero_only.rank != 0 or self.is_broken:
            return DummyExperiment()
        if self._experiment is None:
            import wandb
            from wandb.errors import Error

            try:
                return super().experiment
            except (Error, TimeoutError) as error:
                log.warning("W&B cannot be reached (%s): files are written offline, for `wandb sync %s`",
                            str(error).splitlines()[0], Path(str(self.save_dir)) / "wandb")  # fmt: skip
                self._wandb_init["mode"] = "offline"
                wandb.teardown()  # it still holds the run's id
        return super().experiment

    @_guarded
    def begin(self, config: dict[str, Any], module: nn.Module) -> None:
        """Once the run is about to train: its configuration and run.json, code, and what is watched."""
        self.experiment.config.update(config, allow_val_change=True)
        self._know_record()
        if self.code and not _is_set("WANDB_DISABLE_CODE"):
            package = Path(sae_lightning.__file__).parent
            self.experiment.log_code(str(package.parent), include_fn=functools.partial(_is_code, package))
        if self.watched in ("gradients", "all"):
            self.experiment.watch(module, log="gradients", log_freq=self.watch_period)
        if self.watched in ("parameters", "all"):
            self._watch_parameters(module)

    @_guarded
    def keep(self, path: Path, kind: str, alias: str, about: dict[str, Any]) -> None:
        """A new version of this run's SAE or checkpoint: a folder or a file, with what is known of it."""
        import wandb

        if self.artifacts == "none" or (kind == "checkpoint" and self.artifacts != "all"):
            return
        artifact = wandb.Artifact(f"{kind}-{self.version}", type="model" if kind == "sae" else kind, metadata=about)
        artifact.add_dir(str(path)) if path.is_dir() else artifact.add_file(str(path))
        self.experiment.log_artifact(artifact, aliases=[alias])

    @_guarded
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """What is logged at one step, by whomever, is one row there: it is sent when the next step begins, or with `save`."""
        if step != self.step:
            self._send()
        self.step = step
        self.row |= metrics

    @_guarded
    def save(self) -> None:
        self._send()

    def _send(self) -> None:
        if self.row:
            self.experiment.log({**self.row, "trainer/global_step": self.step})
        self.row = {}

    log_hyperparams = _guarded(WandbLogger.log_hyperparams)
    log_table = _guarded(WandbLogger.log_table)
    log_image = _guarded(WandbLogger.log_image)

    def finalize(self, status: str) -> None:
        """Nothing: scores are still to come. `end` ends the run."""

    @_guarded
    def summarise(self, values: Mapping[str, float]) -> None:
        """Numbers of the run as a whole."""
        self.experiment.summary.update(dict(values))

    @_guarded
    def end(self, status: str) -> None:
        """Sends what is left. The next run of this process is another one there."""
        self._send()
        self._know_record()
        self.experiment.finish(exit_code=1 if status == "failed" else 0)
        self._experiment = None

    def _watch_parameters(self, module: nn.Module) -> None:
        """As `watch` does, which waits for a forward pass that training steps of Lightning do not make."""
        import wandb

        def look(name: str, parameter: nn.Parameter) -> None:
            batches[name] = batches.get(name, 0) + 1
            if batches[name] % self.watch_period == 0:
                self._add_to_row({f"parameters/{name}": wandb.Histogram(np_histogram=_histogram(parameter))})

        batches: dict[str, int] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(functools.partial(look, name))

    @_guarded
    def _add_to_row(self, values: dict[str, Any]) -> None:
        self.experiment.log(values, commit=False)

    def _know_record(self) -> None:
        record = Path(str(self.save_dir)) / "run.json"
        if record.is_file():
            self.experiment.config.update({"run": json.loads(record.read_text(encoding="utf-8"))}, allow_val_change=True)


def _is_set(variable: str) -> bool:
    """Whether the environment says so."""
    return os.environ.get(variable, "").lower() in ("true", "1", "yes", "on")


def _is_code(package: Path, path: str) -> bool:
    """Python files of the package, and the configuration and scripts beside it."""
    file = Path(path)
    beside = file.parent == package.parent and file.name in ("train.py", "evaluate.py", "pyproject.toml", "constraints.txt")
    return (
        beside or (file.suffix == ".py" and package in file.parents) or (file.suffix == ".yaml" and package.parent / "conf" in file.parents)
    )


def _sweep(folder: Path) -> str | None:
    """The name of the sweep that a run's folder is in."""
    return folder.parent.name if (folder.parent / "multirun.yaml").is_file() else None


def _id(path: Path) -> str:
    """The recorded id, or a new one, which rank 0 records."""
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    made = of_agent(os.environ) or secrets.token_hex(4)
    if rank_zero_only.rank == 0:
        write_text(path, made + "\n")
    return made


def _histogram(tensor: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Counts and edges of 64 bins."""
    counts, edges = torch.histogram(tensor.detach().float().cpu(), 64)
    return counts.numpy(), edges.numpy()
