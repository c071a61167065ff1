"""What harvest, sampling and evaluation need of a transformer."""

import abc
import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from sae_lightning.errors import InputError
from sae_lightning.transformers.hook_names import is_name
from sae_lightning.transformers.hooks import INPUT, called_with, place, read_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Inputs(NamedTuple):
    """Of one forward pass. `ids`: what stands at each position, of which a hook point has a row; `named`: what the model is called with."""

    ids: Int64[Tensor, "batch context"]
    named: dict[str, Any]

    def to(self, device: torch.device) -> "Inputs":
        named = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in self.named.items()}
        return Inputs(self.ids.to(device), named)


class Network(abc.ABC):
    """What rows are harvested from, described: nothing is loaded or fetched before a method asks for it.

    `name` is short, for folder names ("glassllm"). `hooks` are its default hook points, None meaning the output of its middle
    layer. `dtype` is what it computes in: "float32" or "bfloat16". `random_weights`: the same architecture with weights drawn anew
    with this seed, as its own code starts a training: a null for what SAEs of it are said to find.
    """

    name: str
    dtype: str
    trust_remote_code: bool = False

    def __init__(self, hooks: list[str] | None = None, dtype: str = "float32", random_weights: int | None = None):
        if dtype not in DTYPES:
            raise InputError(f"data.transformer.dtype is '{dtype}': choose one of {', '.join(DTYPES)}")
        self._hooks = None if hooks is None else list(hooks)
        self.dtype = dtype
        self.random_weights = random_weights

    @property
    def hooks(self) -> list[str]:
        """Its default hook points. Errors: InputError, as `config`, where they have to be looked up."""
        if self._hooks is None:
            self._hooks = self._layers(self.skeleton(), [1 / 2])
        self._hooks = self.paths(self._hooks)
        return self._hooks

    def paths(self, hooks: Sequence[str]) -> list[str]:
        """The hook points by their module paths: names of TransformerLens are looked up in its modules.

        Errors: InputError for a name that means none of them (with the nearest names), and as `config`.
        """
        if not any(is_name(hook) for hook in hooks):
            return list(hooks)
        skeleton = self.skeleton()
        return [place(skeleton, hook).path if is_name(hook) else hook for hook in hooks]

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """JSON-able: all that determines its activations (where from, which version, compute dtype), and nothing else."""

    @abc.abstractmethod
    def config(self) -> "PreTrainedConfig":
        """Its configuration, without loading weights. Errors: InputError (no network, unreadable folder, package not to be had)."""

    @abc.abstractmethod
    def inputs(self, sequences: Sequence[Any]) -> Inputs:
        """Of some sequences of a text, or of some images."""

    @abc.abstractmethod
    def shapes_of_inputs(self, device: torch.device) -> Inputs:
        """Of a small batch, of zeros. Errors: InputError, as `config`."""

    @staticmethod
    @abc.abstractmethod
    def made_by() -> Any:
        """The class of transformers that makes its modules."""

    @abc.abstractmethod
    def load(self, device: str | torch.device = "cpu") -> nn.Module:
        """The transformer with its weights, in eval mode, without gradients, in `dtype`. Errors: InputError, as `config`."""

    def skeleton(self) -> nn.Module:
        """The transformer's modules without weights, on the meta device, in bfloat16 (which every operation knows)."""
        config = self.config()  # may be fetched and converted for this
        with torch.device("meta"):
            return self.made_by().from_config(config, dtype=torch.bfloat16, trust_remote_code=self.trust_remote_code).eval()

    def trained(self) -> Self:
        """It with the weights that it was trained to."""
        made = copy.copy(self)
        made.random_weights = None
        return made

    def widths(self, hooks: Sequence[str]) -> dict[str, int]:
        """Width d at each hook point, by a forward pass without weights.

        Errors: InputError for a hook point that the transformer does not have (with the nearest module paths), and as `config`.
        """
        model = self.skeleton()
        device = next(model.parameters()).device
        inputs = self.shapes_of_inputs(device)
        with device:
            activations = read_inputs(model, hooks, inputs.ids.shape, inputs.named)
        return {hook: activation.shape[-1] for hook, activation in activations.items()}

    def mlp(self) -> list[str]:
        """Input and output of the MLP of the middle layer: what a transcoder goes from and to.

        Errors: InputError where its layers have no module of the name `mlp`, and as `config`.
        """
        skeleton = self.skeleton()
        layer = self._layers(skeleton, [1 / 2])[0]
        if f"{layer}.mlp" not in dict(skeleton.named_modules()):
            raise InputError(f"cannot tell which module of '{layer}' of '{self.name}' is its MLP: set data.hook and data.hook_out")
        return [f"{layer}.mlp{INPUT}", f"{layer}.mlp"]

    def layers(self) -> list[str]:
        """Outputs of the layers at a quarter, a half and three quarters of its depth: what a crosscoder reads. Errors: as `mlp`."""
        return list(dict.fromkeys(self._layers(self.skeleton(), [1 / 4, 1 / 2, 3 / 4])))

    def _layers(self, skeleton: nn.Module, depths: Sequence[float]) -> list[str]:
        layers = self.config().get_text_config().num_hidden_layers
        for path, module in skeleton.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == layers:
                return [f"{path}.{max(int(layers * depth) - 1, 0)}" for depth in depths]
        raise InputError(f"cannot tell which modules of '{self.name}' are its layers: name a hook point in data.transformer.hooks")


class Transformer(Network):
    """A causal language model."""

    @abc.abstractmethod
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Errors: InputError, as `config`."""

    @staticmethod
    def made_by() -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def inputs(self, sequences: Sequence[list[int]]) -> Inputs:
        ids = torch.tensor(sequences, dtype=torch.int64)
        return Inputs(ids, called_with(ids))

    def shapes_of_inputs(self, device: torch.device) -> Inputs:
        ids = torch.zeros(2, 3, dtype=torch.int64, device=device)
        return Inputs(ids, called_with(ids))

    def special_ids(self) -> set[int]:
        """Token ids of BOS, EOS and padding: positions that are neither trained on nor spliced. Unknown tokens are ordinary ones."""
        tokenizer = self.tokenizer()
        ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        return {i for i in ids if isinstance(i, int)}

    def max_context(self) -> int | None:
        """The longest sequence that its position embeddings are made for, in tokens, where the configuration says so."""
        return getattr(self.config().get_text_config(), "max_position_embeddings", None)
