"""TransformerLens's names of hook points, and the hook points that they are in Hugging Face's transformers.

"blocks.8.hook_resid_pre" of a Llama is the input of its layer 8, "model.layers.8:in". A name stands here when the tensor there is the one
that TransformerLens gives without processing weights, and when writing there does what writing at the name does. Hence no
hook_resid_mid: the input of a norm holds it, but the residual stream goes around that norm. Nor hook_normalized, which comes before the
weights of a norm.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import nn

from sae_lightning.errors import InputError

NAME = re.compile(r"(?:blocks\.(\d+)\.)?((?:\w+\.)*hook_\w+)")


class Family(NamedTuple):
    """Transformers whose modules have the same names."""

    layers: str
    embedding: str
    parts: frozenset[str]
    """The modules of a layer, dropout aside."""
    below: dict[str, str]
    """Name below "blocks.N." → what follows the path of layer N."""

    def is_of(self, modules: Mapping[str, nn.Module]) -> bool:
        first = f"{self.layers}.0"
        parts = modules[first].named_children() if first in modules else ()
        if {name for name, part in parts if not isinstance(part, nn.Dropout)} != self.parts:
            return False
        return all(first + path.removesuffix(":in") in modules for path in self.below.values())


def _family(layers: str, embedding: str, norms: str, attention: str, z: str, mlp: str, post: str,
            attention_out: str | None = None, mlp_out: str | None = None) -> Family:  # fmt: skip
    """`norms`: of a layer. `z`, `post`: what reads the heads' outputs, and the neurons. What is added to the residual stream is the output
    of attention and MLP, or of a norm after each.
    """
    below = {
        "hook_resid_pre": ":in",
        "hook_resid_post": "",
        "hook_attn_out": f".{attention_out or attention}",
        "hook_mlp_out": f".{mlp_out or mlp}",
        "attn.hook_z": f".{attention}.{z}:in",
        "mlp.hook_post": f".{mlp}.{post}:in",
    }
    return Family(layers, embedding, frozenset([*norms.split(), attention, mlp]), below)


FAMILIES = (
    # GPT-2; GPT-Neo; GPT-J; GPT-NeoX and Pythia
    _family("transformer.h", "transformer.wte", "ln_1 ln_2", "attn", "c_proj", "mlp", "c_proj"),
    _family("transformer.h", "transformer.wte", "ln_1 ln_2", "attn", "attention.out_proj", "mlp", "c_proj"),
    _family("transformer.h", "transformer.wte", "ln_1", "attn", "out_proj", "mlp", "fc_out"),
    _family(
        "gpt_neox.layers", "gpt_neox.embed_in", "input_layernorm post_attention_layernorm", "attention", "dense", "mlp", "dense_4h_to_h"
    ),
    # Llama, Mistral, Qwen 2 and 3, SmolLM 2, Phi 3, Gemma 1; Gemma 2 and 3
    _family("model.layers", "model.embed_tokens", "input_layernorm post_attention_layernorm", "self_attn", "o_proj", "mlp", "down_proj"),
    _family(
        "model.layers",
        "model.embed_tokens",
        "input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm",
        "self_attn",
        "o_proj",
        "mlp",
        "down_proj",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
)


def is_name(hook: str) -> bool:
    """Whether it looks like one of TransformerLens's names."""
    return NAME.fullmatch(hook) is not None


def to_path(name: str, modules: Mapping[str, nn.Module]) -> str:
    """The hook point that has this name, in a transformer of these modules (by path).

    Errors: InputError for a transformer of another family, and with the nearest names for one that is no hook point here.
    """
    family = _family_of(modules)
    if family is None:
        raise InputError(
            f"hook point '{name}' is a name of TransformerLens, and what it means in a transformer with these modules is not known: "
            "give the path of a module"
        )
    paths = dict(_names(family, modules))
    if name in paths:
        return paths[name]
    nearest = difflib.get_close_matches(name, paths, n=3, cutoff=0.0)
    raise InputError(
        f"hook point '{name}' is neither output nor input of a module of this transformer: the nearest are {', '.join(nearest)}"
    )


def to_name(path: str, modules: Mapping[str, nn.Module] | None = None) -> str | None:
    """The name of a hook point; None where it has none. Without the transformer's modules: what all families agree on."""
    if is_name(path):
        return path
    families = FAMILIES if modules is None else [family for family in [_family_of(modules)] if family is not None]
    names: set[str | None] = set()
    for family in families:
        if path == family.embedding:
            names.add("hook_embed")
        elif found := re.fullmatch(rf"{re.escape(family.layers)}\.(\d+)([.:].*)?", path):
            number, rest = found[1], found[2] or ""
            names.add(next((f"blocks.{number}.{name}" for name, below in family.below.items() if below == rest), None))
    return names.pop() if len(names) == 1 else None


def _family_of(modules: Mapping[str, nn.Module]) -> Family | None:
    return next((family for family in FAMILIES if family.is_of(modules)), None)


def _names(family: Family, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str]]:
    yield "hook_embed", family.embedding
    for name, path in family.below.items():
        number = 0
        while (layer := f"{family.layers}.{number}") in modules:
            yield f"blocks.{number}.{name}", layer + path
            number += 1
