"""What the two callbacks share that look at an SAE inside its transformer."""

import abc
from typing import Any

import lightning as L

from sae_lightning.data.rows import RowsDataModule
from sae_lightning.errors import InputError
from sae_lightning.models.base import SAE
from sae_lightning.module import SAEModule


class InTransformer(L.Callback, abc.ABC):
    """Looks at every n-th validation of a run, which a resumed run counts on. `name`: its key in the configuration.

    Errors: InputError for a period below 1, and for rows that come from no transformer.
    """

    name: str

    def __init__(self, every_n_validations: int):
        if every_n_validations < 1:
            raise InputError(
                f"callbacks.{self.name}.every_n_validations is {every_n_validations}: give a positive number, or callbacks.{self.name}=null"
            )
        self.period, self.validations = every_n_validations, 0

    def check(self, sae: SAE, data: RowsDataModule) -> None:
        """Errors: InputError for what cannot be, before anything heavy is done."""
        if data.transformer is None:
            raise InputError(
                f"callbacks.{self.name} needs a transformer, and these rows come from none: choose data=sampled_text or another text, "
                f"name the one that made the store, data/transformer=…, or leave callbacks.{self.name} out"
            )

    @abc.abstractmethod
    def begin(self, trainer: L.Trainer, data: RowsDataModule) -> None:
        """Before training, on every rank, when the rows are there: loads the transformer."""

    @abc.abstractmethod
    def look(self, trainer: L.Trainer, module: SAEModule) -> None:
        """At a validation that is due, on every rank."""

    def setup(self, trainer: L.Trainer, pl_module: SAEModule, stage: str) -> None:
        if stage == "fit":
            data: RowsDataModule = trainer.datamodule  # type: ignore[attr-defined]
            self.check(pl_module.sae, data)
            self.begin(trainer, data)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        # Before anything that saves a checkpoint after this validation, or monitors a number of it.
        self.validations += 1
        if self.validations % self.period == 0:
            self.look(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = state_dict["validations"]
