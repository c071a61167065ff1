"""SAEBench's core evaluation (Apache-2.0) of one SAE in SAELens' format, in SAEBench's own environment; scores_of_sae_bench.py runs it.

    .peers/sae_bench/bin/python -m tests.oracles.with_sae_bench JOB.json

JOB.json: `transformer` (a Llama's folder), `sae` (a folder that SAELens reads), `ours` (the same as we
export it), `tokens` (a dataset's folder, one column `tokens` of equally long
sequences), `ignore` (token ids), `out` (a json file for the numbers).
"""
# pyright: reportMissingImports=false

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import load_from_disk
from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.core.main import run_evals
from sae_bench.sae_bench_utils.general_utils import _standardize_sae_cfg
from sae_lens import SAE
from sae_lens.training.activations_store import ActivationsStore
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_lightning.inference import InferenceSAE
from sae_lightning.load import load_sae
from sae_lightning.transformers.hooks import logits, read

lens: Any = importlib.import_module("transformer_lens")  # version 3: what it no longer has in version 4, which may be installed here
conversions: Any = importlib.import_module("transformer_lens.pretrained.weight_conversions")


def hooked(folder: str) -> Any:
    """A Llama as TransformerLens has it, nothing folded or centred."""
    llama: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    given = llama.config
    config = lens.HookedTransformerConfig(
        n_layers=given.num_hidden_layers, d_model=given.hidden_size, n_ctx=given.max_position_embeddings, d_vocab=given.vocab_size,
        d_head=given.hidden_size // given.num_attention_heads, n_heads=given.num_attention_heads, d_mlp=given.intermediate_size,
        n_key_value_heads=given.num_key_value_heads, act_fn="silu", gated_mlp=True, normalization_type="RMS", final_rms=True,
        eps=given.rms_norm_eps, positional_embedding_type="rotary", rotary_adjacent_pairs=False,
        rotary_dim=given.hidden_size // given.num_attention_heads, rotary_base=given.rope_parameters["rope_theta"],
        original_architecture="LlamaForCausalLM", device="cpu", default_prepend_bos=False,
    )  # fmt: skip
    model = lens.HookedTransformer(config, AutoTokenizer.from_pretrained(folder), move_to_device=False)
    model.load_and_process_state_dict(
        conversions.convert_llama_weights(llama, config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model.eval()


@torch.no_grad()
def check_hooks(model: Any, sae: InferenceSAE, ids: Tensor) -> None:
    """A HookedTransformer is read and written at its hook points by us as by itself."""
    plain, cache = model.run_with_cache(ids)
    for name, found in read(model, [point := "blocks.1.hook_resid_mid", "blocks.0.hook_mlp_out"], ids).items():
        assert torch.equal(found, cache[name]), name
    with sae.splice(model, point):
        spliced = model(ids)
    torch.testing.assert_close(spliced, model.run_with_hooks(ids, fwd_hooks=[(point, lambda x, hook: sae(x))]))
    torch.testing.assert_close(logits(model, ids), plain)
    assert not torch.allclose(spliced, plain)


def main(job: dict[str, Any]) -> dict[str, Any]:
    model = hooked(job["transformer"])
    tokens: Any = load_from_disk(job["tokens"])
    check_hooks(model, load_sae(job["ours"]), torch.as_tensor(tokens[0]["tokens"])[None])
    sae = SAE.load_from_disk(job["sae"], device="cpu")
    sae.cfg.metadata.model_name = job["transformer"]
    _standardize_sae_cfg(sae.cfg)
    context = len(tokens[0]["tokens"])
    store = ActivationsStore(
        model, tokens, streaming=False, hook_name=sae.cfg.hook_name, hook_head_index=None, context_size=context, d_in=sae.cfg.d_in,
        n_batches_in_buffer=1, total_training_tokens=1, store_batch_size_prompts=len(tokens), train_batch_size_tokens=1, prepend_bos=False,
        normalize_activations="none", device=torch.device("cpu"), dtype="float32", disable_concat_sequences=True,
    )  # fmt: skip
    served = store.get_batch_tokens(len(tokens))
    assert torch.equal(served, torch.stack([torch.as_tensor(one["tokens"]) for one in tokens])), "SAELens' store changed the sequences"
    store.reset_input_dataset()
    store.iterable_sequences = store._iterate_tokenized_sequences()
    config = CoreEvalConfig(
        batch_size_prompts=len(tokens), n_eval_reconstruction_batches=1, n_eval_sparsity_variance_batches=1, context_size=context, compute_kl=True,
        compute_ce_loss=True, compute_l2_norms=True, compute_sparsity_metrics=True, compute_variance_metrics=True,
        exclude_special_tokens_from_reconstruction=True,
    )  # fmt: skip
    found, _ = run_evals(sae, store, model, config, ignore_tokens=set(job["ignore"]))
    return {name: value for group in found.values() for name, value in group.items()}


if __name__ == "__main__":
    task = json.loads(Path(sys.argv[1]).read_text())
    Path(task["out"]).write_text(json.dumps(main(task)))
