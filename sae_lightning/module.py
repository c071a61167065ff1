"""The one LightningModule. It knows the interface `SAE`, and no architecture."""

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MetricCollection

from sae_lightning.curves import log_values, of_step
from sae_lightning.data.batch import Batch
from sae_lightning.data.rows import RowsDataModule
from sae_lightning.errors import InputError
from sae_lightning.finetune import FineTune
from sae_lightning.inference import InferenceSAE
from sae_lightning.kernels import memory
from sae_lightning.kernels.graph import compiled_step
from sae_lightning.latents import of_all_parts
from sae_lightning.models.base import SAE, Step
from sae_lightning.models.parts import clip_norm_, collected
from sae_lightning.models.start import start_from_
from sae_lightning.optimizers import with_beta1
from sae_lightning.ranks import sum_over_ranks_

SAMPLE_ROWS = 65536
"""Rows that the decoder's bias starts from, and at least what calibration sees."""


class SAEModule(L.LightningModule):
    """Trains any SAE: scales rows, sums the named losses, and adds up what `after_step_` needs.

    Inside, rows are divided by the scale that the data gives (so that E‖x‖² = 1); the batches, Steps and SAEs that leave it are raw.
    `optimizer`: parameter groups → Optimizer; `scheduler`: (optimizer, steps of the run) → LambdaLR; `metrics`: update(batch, step);
    `compile`: the architecture's step through torch.compile; `start`: an SAE in raw space whose weights training starts from;
    `finetune`: adds what a transformer makes of the reconstructions to the loss.

    For callbacks: `sums` is empty exactly between optimizer steps; `step_sums` holds those of the last finished one (over all ranks;
    `fires` of the latents of this process);
    `last` is (batch, Step) of the last training batch of a step that is logged, None after any other; `before_clipping` is called when
    the gradients are what the optimizer would step on without clipping. In validation the `outputs` of a batch are its Step, raw.
    """

    s_in: Tensor
    s_out: Tensor

    def __init__(self, sae: SAE, optimizer: Callable[..., Optimizer], metrics: MetricCollection,
                 scheduler: Callable[[Optimizer, int], LambdaLR] | None = None, compile: bool = False,
                 start: InferenceSAE | None = None, finetune: FineTune | None = None):  # fmt: skip
        super().__init__()
        self.sae, self.make_optimizer, self.make_scheduler = sae, optimizer, scheduler
        self.metrics, self.train_metrics = metrics, metrics.clone()
        self.compiled: Callable[..., Step] = compiled_step(sae.step) if compile else sae.step
        self.register_buffer("s_in", torch.ones(sae.dictionary.shape.d_in))
        self.register_buffer("s_out", torch.ones(sae.dictionary.shape.d_out))
        self.start = () if start is None else (start,)  # not a part of this module
        self.finetune = finetune
        self.sums: dict[str, Tensor] = {}
        self.step_sums: dict[str, Tensor] = {}
        self.validation_sums: dict[str, Tensor] = {}
        self.last: tuple[Batch, Step] | None = None
        self.custom: dict[str, tuple[float | Tensor, int]] = {}
        self.before_clipping: list[Callable[[], None]] = []
        self.steps_of_checkpoint: int | None = None

    @property
    def rows(self) -> RowsDataModule:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def rows_per_step(self) -> int:
        """Of an optimizer step, over all ranks."""
        return self.rows.batch_size * self.trainer.accumulate_grad_batches

    def setup(self, stage: str) -> None:
        """Starts from the data. A checkpoint, where there is one, is read after this and overwrites all of it."""
        if stage != "fit":
            return
        self.to(self.trainer.strategy.root_device)
        for own, scale in zip((self.s_in, self.s_out), self.rows.scale, strict=True):
            own.copy_(scale)
        self._begin()
        if self.finetune is not None:
            self.finetune.begin(self.rows, self.device)
        sample = self.rows.sample(max(SAMPLE_ROWS, self.sae.calibration_rows()), seed=0)
        x, y = self.scaled(sample.to(self.device))
        self.sae.dictionary.initialise_(y[:SAMPLE_ROWS])
        for start in self.start:
            start_from_(self.sae, start.to(self.device).rescaled(1 / self.s_in, 1 / self.s_out, 1 / self.unit), x)
        if not self.start:
            self.sae.calibrate_(x)
        del sample, x, y
        memory.give_back()

    def _begin(self) -> None:
        """Tells everything how long the run is."""
        steps = self.trainer.max_steps
        self.sae.dictionary.begin_(steps * self.rows_per_step, self.rows_per_step)
        self.sae.begin_(steps)

    def on_train_start(self) -> None:
        """A run that was resumed to become longer is from here on what it would be at this step of a run of the new length."""
        if not self.is_longer:
            return
        self._begin()
        for config in self.trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            assert isinstance(scheduler, LambdaLR)
            rates = [base * factor(scheduler.last_epoch) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
            for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["sae"] = self.kind
        checkpoint["max_steps"] = self.trainer.max_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Errors: InputError for a checkpoint of another architecture or size."""
        self.steps_of_checkpoint = checkpoint.get("max_steps")
        found = checkpoint.get("sae")
        if found != self.kind:
            raise InputError(
                f"the checkpoint is of {_said(found)}, this run trains {_said(self.kind)}: resume with the settings of the run that wrote it"
            )
        if self.is_longer:
            loops = checkpoint["loops"]["fit_loop"]
            loops["epoch_loop.batch_progress"]["is_last_batch"] = False
            for count in loops["epoch_progress"].values():  # the one epoch is not over
                count.update(processed=0, completed=0)

    @property
    def is_longer(self) -> bool:
        """Whether this run goes on where one of another length was stopped, or ended."""
        return self.steps_of_checkpoint not in (None, self.trainer.max_steps)

    @property
    def kind(self) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        d = self.sae.dictionary
        return {"architecture": type(self.sae).__name__, "d_sae": d.d_sae, "d_in": d.shape.d_in, "d_out": d.shape.d_out}

    def configure_optimizers(self) -> Any:
        decayed = self.sae.dictionary.decayed()
        ids = {id(parameter) for parameter in decayed}
        others = [parameter for parameter in self.sae.parameters() if id(parameter) not in ids]
        optimizer = with_beta1(self.make_optimizer, self.sae.beta1)([{"params": decayed}, {"params": others, "weight_decay": 0.0}])
        if self.make_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_scheduler(optimizer, self.trainer.max_steps), "interval": "step"},
        }

    # -- training ---------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, index: int) -> Tensor:
        self.rows.batches_trained += 1
        step = self.compiled(*self.scaled(batch))
        self._add(step)
        if self.finetune is not None and self.finetune.is_on(self.trainer.global_step, self.trainer.max_steps, self.rows_per_step):
            losses = self.finetune.losses(step.losses, self.reconstruct, self.rows.batches_trained - 1)
            step = step._replace(losses=losses)
        self.last = (batch, self.raw(_detached(step))) if self.is_log_step else None
        return step.loss

    @property
    def is_log_step(self) -> bool:
        """Whether the optimizer step at work (or, in hooks after it, the one just done) is one that is logged."""
        done = self.trainer.global_step + (1 if self.sums else 0)
        return done % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.sae.dictionary.before_step_()

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Lightning refuses to clip what a fused optimizer steps on under autocast; without a loss scaler there is no reason to."""
        for look in self.before_clipping:
            look()
        if gradient_clip_val is None:
            return
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.sae.parameters(), gradient_clip_val)
        else:
            clip_norm_(self.sae, gradient_clip_val)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.step_sums, self.sums = sum_over_ranks_(self.sums), {}
        self.sae.dictionary.after_step_(self.step_sums["fires"], self.step_sums["rows"])
        self.sae.after_step_(self.step_sums)
        if self.last is not None:
            self._log_training(*self.last, done=self.trainer.global_step + 1)  # Lightning counts this step when it has returned

    def _log_training(self, batch: Batch, step: Step, done: int) -> None:
        values = of_step(self, batch, step) | {name: float(total) / n for name, (total, n) in self.custom.items()}
        self.custom = {}
        log_values(self.trainer, values, done)
        if not math.isfinite(values["train/loss"]):
            raise InputError(
                f"the loss is {values['train/loss']} at step {done}: lower optimizer.lr, or look for NaN and infinity in the rows"
            )

    def log_custom(self, name: str, value: float | Tensor) -> None:
        """A number of yours, from anywhere in a training step: the next logged step has the mean of what came since the last one.

        Nothing waits for the accelerator until then. Of this rank alone; loggers are those of rank 0.
        """
        value = value.detach() if isinstance(value, Tensor) else value
        total, n = self.custom.get(name, (0.0, 0))
        self.custom[name] = total + value, n + 1

    # -- validation -------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, index: int) -> Step:
        step = self.sae.step(*self.scaled(batch))
        rows = torch.tensor(float(len(batch.y)), dtype=torch.float64, device=self.device)
        terms = {f"loss/{name}": term.weight * term.value for name, term in step.losses.items()} | {"loss": step.loss}
        terms |= {name: term.value for name, term in step.losses.items()}
        for name, value in terms.items():
            self.validation_sums[name] = self.validation_sums.get(name, 0) + value.detach() * rows
        self.validation_sums["rows"] = self.validation_sums.get("rows", 0) + rows
        step = self.raw(step)
        self.metrics.update(batch, step)
        return step

    def on_validation_epoch_end(self) -> None:
        sums, self.validation_sums = sum_over_ranks_(self.validation_sums), {}
        rows = sums.pop("rows")
        values = {f"val/{name}": total / rows for name, total in sums.items()}
        values |= {f"val/{name}": value for name, value in self.metrics.compute().items()}
        self.metrics.reset()
        log_values(self.trainer, {name: float(value) for name, value in values.items()})

    # -- scales -----------------------------------------------------------------------------------------------------

    def inference(self) -> InferenceSAE:
        """The SAE as it would be exported now: raw space, no gradient."""
        return self.sae.to_inference().rescale_(self.s_in, self.s_out, self.unit)

    @torch.no_grad()
    def export(self) -> InferenceSAE:
        """What is written to disk: as `inference`, set on held-out rows where the architecture asks for them.

        Where processes divide the latents: whole, in the main memory of process 0; the others get what they have.
        """
        sae = collected(self.sae)
        if sae is None:
            return self.inference()
        rows, found = sae.export_rows(), []
        for batch in self.rows.held_out() if rows else ():
            found.append(self.scaled(batch.to(self.device)).x[:rows])
            rows -= len(found[-1])
            if rows == 0:
                break
        x = torch.cat(found) if found else self.s_in.new_zeros(0, len(self.s_in))
        device = sae.dictionary.b_dec.device
        return sae.to_export(x.to(device)).rescale_(self.s_in.to(device), self.s_out.to(device), self.unit.to(device))

    @property
    def unit(self) -> Tensor:
        """What raw latents are measured in: the scale of x; 1 for hook points side by side, of which each has its own."""
        return self.s_in[0] if len(self.sae.dictionary.shape.x) == 1 else torch.ones_like(self.s_in[0])

    def scaled(self, batch: Batch) -> Batch:
        x = batch.x / self.s_in
        return Batch(x, x if batch.y is batch.x else batch.y / self.s_out)

    def raw(self, step: Step) -> Step:
        """In raw space; where processes divide the latents, with those of all of them that are active."""
        step = step._replace(latents=of_all_parts(step.latents, self.sae.dictionary.shards))
        latents = step.latents.with_values(step.latents.values * self.unit)
        return step._replace(latents=latents, reconstruction=step.reconstruction * self.s_out)

    def reconstruct(self, batch: Batch) -> Tensor:
        """Raw reconstructions of raw rows, with gradients, by the step that trains."""
        return self.compiled(*self.scaled(batch)).reconstruction * self.s_out

    @torch.no_grad()
    def _add(self, step: Step) -> None:
        rows = torch.tensor(len(step.reconstruction), device=self.device)
        for name, value in {"rows": rows, "fires": step.latents.fires(), **step.sums}.items():
            self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach().clone()


def _said(kind: dict[str, Any] | None) -> str:
    return "no SAE" if kind is None else "{architecture} with {d_sae} latents on rows of width {d_in}".format(**kind)


def _detached(step: Step) -> Step:
    losses = {name: term._replace(value=term.value.detach()) for name, term in step.losses.items()}
    return step._replace(
        latents=step.latents.with_values(step.latents.values.detach()), reconstruction=step.reconstruction.detach(), losses=losses
    )
