import pytest
import torch
from torch import Tensor, nn

from sae_lightning.errors import InputError
from sae_lightning.transformers.hooks import read, splice


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, vocab_size=40)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.arange(24).reshape(2, 12) % 40


def test_outputs_and_inputs_are_those_of_a_plain_forward(llama: nn.Module, ids: Tensor):
    plain = llama(input_ids=ids, output_hidden_states=True).hidden_states  # after the embedding, after layer 0, after layer 1, …
    found = read(llama, ["model.layers.1", "model.layers.1:in", "model.embed_tokens", "model.layers.0.input_layernorm:in"], ids)
    for hook, expected in zip(found, (plain[2], plain[1], plain[0], plain[0]), strict=True):
        torch.testing.assert_close(found[hook], expected, rtol=0, atol=0)


def test_an_input_given_by_keyword_and_the_first_of_several_outputs(llama: nn.Module, ids: Tensor):
    # LlamaAttention is called with hidden_states=… and returns (output, weights)
    found = read(
        llama, ["model.layers.0.self_attn:in", "model.layers.0.self_attn", "model.layers.0.input_layernorm", "model.layers.0"], ids
    )
    torch.testing.assert_close(found["model.layers.0.self_attn:in"], found["model.layers.0.input_layernorm"], rtol=0, atol=0)
    part = llama.get_submodule
    after_attention = part("model.embed_tokens")(ids) + found["model.layers.0.self_attn"]
    expected = after_attention + part("model.layers.0.mlp")(part("model.layers.0.post_attention_layernorm")(after_attention))
    torch.testing.assert_close(found["model.layers.0"], expected)


def test_the_forward_stops_after_the_deepest_hook_point(llama: nn.Module, ids: Tensor):
    ran: list[int] = []
    handles = [layer.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, layer in enumerate(llama.model.layers)]
    read(llama, ["model.layers.1", "model.embed_tokens"], ids)
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]


def test_the_identity_spliced_in_changes_nothing_and_hooks_are_taken_off(llama: nn.Module, ids: Tensor):
    plain = llama(input_ids=ids).logits
    for hook in ("model.layers.1", "model.layers.1.mlp:in", "model.layers.0.self_attn", "model.layers.0.self_attn:in"):
        with splice(llama, hook, lambda rows: rows):
            torch.testing.assert_close(llama(input_ids=ids).logits, plain, rtol=0, atol=0)
        with splice(llama, hook, torch.zeros_like):
            assert not torch.allclose(llama(input_ids=ids).logits, plain)
        torch.testing.assert_close(llama(input_ids=ids).logits, plain, rtol=0, atol=0)
    with pytest.raises(ZeroDivisionError), splice(llama, "model.layers.1", lambda rows: rows / (1 // 0)):
        llama(input_ids=ids)
    torch.testing.assert_close(llama(input_ids=ids).logits, plain, rtol=0, atol=0)


def test_special_positions_are_neither_given_nor_changed(llama: nn.Module, ids: Tensor):
    special = torch.zeros(2, 12, dtype=torch.bool)
    special[0, 0] = special[1, 3:5] = True
    given: list[Tensor] = []

    def double(rows: Tensor) -> Tensor:
        given.append(rows)
        return 2 * rows

    plain = read(llama, ["model.layers.1"], ids)["model.layers.1"]
    with splice(llama, "model.layers.1", double, special):
        spliced = read(llama, ["model.layers.2:in"], ids)["model.layers.2:in"]
    torch.testing.assert_close(spliced, torch.where(special[..., None], plain, 2 * plain), rtol=0, atol=0)
    torch.testing.assert_close(given[0], plain[~special], rtol=0, atol=0)
    assert len(given[0]) == 24 - 3


def test_a_bfloat16_transformer_hands_out_float32_rows_and_stays_bfloat16(llama: nn.Module, ids: Tensor):
    from transformers import LlamaForCausalLM

    low = LlamaForCausalLM(llama.config).eval().to(torch.bfloat16)
    plain = low(input_ids=ids).logits
    kinds: list[torch.dtype] = []

    def identity(rows: Tensor) -> Tensor:
        kinds.append(rows.dtype)
        return rows

    with splice(low, "model.layers.1", identity):
        torch.testing.assert_close(low(input_ids=ids).logits, plain, rtol=0, atol=0)
    assert kinds == [torch.float32]
    assert read(low, ["model.layers.1"], ids)["model.layers.1"].dtype == torch.bfloat16


@pytest.mark.parametrize("hook", ["model.layer.1", "model.layers.1.ml:in", "", ":in"])
def test_an_unknown_hook_point_names_the_nearest(llama: nn.Module, ids: Tensor, hook: str):
    with pytest.raises(InputError, match="not in this transformer: the nearest modules are ") as error:
        read(llama, ["model.layers.0", hook], ids)
    assert "\n" not in str(error.value)
    if hook == "model.layer.1":
        assert "model.layers.1" in str(error.value)


def test_a_hook_point_without_a_row_for_each_token_is_refused(llama: nn.Module, ids: Tensor):
    with pytest.raises(InputError, match="not a row for each token"):
        read(llama, ["model.rotary_emb"], ids)
