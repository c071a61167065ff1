"""Any transformer of the Hugging Face hub that TransformerLens knows, as TransformerLens runs it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sae_lightning.errors import InputError
from sae_lightning.transformers.huggingface import HuggingFace

RESIDUAL = ".hook_resid_post"


class TransformerLens(HuggingFace):
    """The model in TransformerLens's TransformerBridge: hook points are its names, all of them ("blocks.8.hook_resid_mid").

    `processed`: with the weights of norms folded into what follows them and, where norms centre, with what writes to the residual stream
    centred, as HookedTransformer.from_pretrained does it and as many published SAEs of GPT-2 have it: predicted probabilities are the
    same, activations are not. Otherwise both are those of the Hugging Face model. The rest: `HuggingFace`. A text that the transformer
    writes itself is written by the Hugging Face model. Errors: InputError where TransformerLens is not installed.
    """

    def __init__(self, name: str, hooks: list[str] | None = None, revision: str | None = None, dtype: str = "float32",
                 trust_remote_code: bool = False, random_weights: int | None = None, processed: bool = False):  # fmt: skip
        super().__init__(name, hooks, revision, dtype, trust_remote_code, random_weights)
        self.processed = processed

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"loader": "transformer_lens", "processed": self.processed}

    def trained(self) -> HuggingFace:
        return HuggingFace(self.path, None, self.revision, self.dtype, self.trust_remote_code)

    def skeleton(self) -> nn.Module:
        """With its weights: TransformerLens makes no modules without."""
        return self.load()

    def mlp(self) -> list[str]:
        block = self._layers(self.skeleton(), [1 / 2])[0].removesuffix(RESIDUAL)
        return [f"{block}.mlp.hook_in", f"{block}.hook_mlp_out"]

    def _layers(self, skeleton: nn.Module, depths: Sequence[float]) -> list[str]:
        return [block + RESIDUAL for block in super()._layers(skeleton, depths)]

    def _wanted(self) -> tuple[Any, ...]:
        return (*super()._wanted(), "transformer_lens", self.processed)

    def _load(self) -> nn.Module:
        try:
            from transformer_lens.model_bridge import TransformerBridge
        except ImportError as error:
            raise InputError(f"data/transformer=transformer_lens needs transformer-lens ({error}): pip install transformer-lens") from None
        loaded = super()._load()
        with self._one_line("modules"), torch.no_grad():
            model = TransformerBridge.boot_transformers(self.path, hf_model=loaded, tokenizer=self.tokenizer(), device="cpu")
            model.enable_compatibility_mode(no_processing=not self.processed)
        return model.eval().requires_grad_(False)
