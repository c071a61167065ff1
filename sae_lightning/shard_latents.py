"""`strategy=shard_latents`: Lightning's side of a dictionary whose latents are divided among processes (how: `shards`)."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from sae_lightning import ranks
from sae_lightning.callbacks.in_transformer import InTransformer
from sae_lightning.callbacks.resample import Resample
from sae_lightning.errors import InputError
from sae_lightning.models.base import SAE
from sae_lightning.models.parts import cut_
from sae_lightning.module import SAEModule
from sae_lightning.shards import Shards


class ShardLatents(DDPStrategy):
    """One process per device, each with d_sae/R of the latents and all rows: for a dictionary that no device holds with its optimizer.

    The same training as in one process, to rounding. `data.batch_size` is what each process works on: rows are not divided, so that more
    processes hold a larger dictionary and share its products, and read as many rows each as one alone. Processes are started, and talk,
    as with strategy=ddp; no module is wrapped and no gradient averaged. Checkpoints are of a whole SAE with its optimizer: a run goes on
    with another number of processes, with strategy=ddp, or in one process. `process_group_backend`: nccl, gloo, …; None: the device's.
    """

    def __init__(self, process_group_backend: str | None = None):
        super().__init__(process_group_backend=process_group_backend)

    # -- before anything is moved to a device -------------------------------------------------------------------------

    def check(self, module: SAEModule, callbacks: list[Any], starts: bool) -> None:
        """Errors: InputError for what needs a whole dictionary in a process. `starts`: the run begins from an exported SAE."""
        hint = "leave it out, or train in one process"
        if not module.sae.is_divisible:
            raise InputError(
                f"{module.sae.architecture} sums over its latents in ways that processes which divide them cannot (its `is_divisible` is "
                "false): leave strategy=shard_latents out"
            )
        if module.finetune is not None:
            raise InputError(f"model.loss=kl needs a whole dictionary in each process, and strategy=shard_latents divides it: {hint}")
        if starts:
            raise InputError(f"model.init_from needs a whole dictionary in each process, and strategy=shard_latents divides it: {hint}")
        for callback in callbacks:
            if isinstance(callback, Resample):
                raise InputError(
                    "callbacks.resample needs a whole dictionary in each process, and strategy=shard_latents divides it: leave it out; "
                    "model/revival=auxk works"
                )
            if isinstance(callback, InTransformer):
                raise InputError(
                    f"callbacks.{callback.name} needs a whole dictionary in each process, and strategy=shard_latents divides it: {hint}"
                )

    def setup_environment(self) -> None:
        super().setup_environment()
        ranks.divide_latents_(True)
        if self._shards.parts == 1 < self.world_size:
            cut_(self._sae, self.global_rank, self.world_size)
        for metric in self._module.modules():
            if isinstance(metric, Metric):
                metric.distributed_available_fn = _never  # each has seen all rows, and the active latents of all processes

    def setup(self, trainer: L.Trainer) -> None:
        """Without what DDP does to a module: it would give every process the tensors of the first."""
        super(DDPStrategy, self).setup(trainer)

    def _setup_model(self, model: nn.Module) -> nn.Module:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Nothing is wrapped. What all processes have is made equal, whatever their devices round."""
        cut = self._cut
        for tensor in [*self._sae.parameters(), *self._sae.buffers()]:
            if id(tensor) not in cut and ranks.processes() > 1:
                dist.broadcast(tensor.detach(), 0)
        return model

    def teardown(self) -> None:
        super().teardown()
        ranks.divide_latents_(False)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole, on process 0; what it cannot hold at once on its device is in its main memory."""
        return self._module.state_dict() | {f"sae.{name}": self._whole(tensor) for name, tensor in self._sae.of_latents().items()}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        state = dict(checkpoint["state_dict"])
        for name in self._sae.of_latents():
            state[f"sae.{name}"] = self._shards.cut(state[f"sae.{name}"])
        super().load_model_state_dict({**checkpoint, "state_dict": state}, strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state = optimizer.state_dict()
        for number, parameter in enumerate(_parameters(optimizer)):
            if number in state["state"] and id(parameter) in self._cut:
                moments = state["state"][number]
                state["state"][number] = {
                    name: self._whole(value) if _is_like(value, parameter.shape) else value for name, value in moments.items()
                }
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = []
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            moments = dict(state["state"])
            for number, parameter in enumerate(_parameters(optimizer)):
                if number in moments and id(parameter) in self._cut:
                    whole = torch.Size([self._shards.d_sae, *parameter.shape[1:]])
                    moments[number] = {
                        name: self._shards.cut(value) if _is_like(value, whole) else value for name, value in moments[number].items()
                    }
            states.append({**state, "state": moments})
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})

    @property
    def _module(self) -> SAEModule:
        assert isinstance(self.lightning_module, SAEModule)
        return self.lightning_module

    @property
    def _sae(self) -> SAE:
        return self._module.sae

    @property
    def _shards(self) -> Shards:
        return self._sae.dictionary.shards

    @property
    def _cut(self) -> set[int]:
        return {id(tensor) for tensor in self._sae.of_latents().values()}

    def _whole(self, here: Tensor) -> Tensor:
        """On process 0, which alone writes; the others keep what they have."""
        whole = self._shards.collected(here)
        return here if whole is None else whole


def _never() -> bool:
    return False


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    """In the order of its state's numbers."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _is_like(value: Any, shape: torch.Size) -> bool:
    return isinstance(value, Tensor) and value.shape == shape
