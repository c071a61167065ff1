"""Small transformers with random weights, one of each family that hook_names.py knows, and others."""

from torch import nn

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
GROUPED = SMALL | {"num_key_value_heads": 1, "head_dim": 6}
GPT = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32}

CONFIGS = {
    "gpt2": GPT,
    "gpt_neo": {"hidden_size": 16, "num_layers": 3, "num_heads": 2, "attention_types": [[["global"], 3]], "max_position_embeddings": 32},
    "gptj": GPT | {"rotary_dim": 4},
    "gpt_neox": SMALL,
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": SMALL | {"num_key_value_heads": 1},
    "qwen3": GROUPED,
    "phi3": SMALL | {"pad_token_id": 0},
    "gemma": GROUPED,
    "gemma2": GROUPED,
    "gemma3_text": GROUPED,
}
UNKNOWN = {
    "olmo2": SMALL,
    "opt": {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 16},
}


def tiny(kind: str) -> nn.Module:
    """With norms whose weights are not all one, so that before and after a norm are different tensors."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, vocab_size=40, **(CONFIGS | UNKNOWN)[kind])
        config._attn_implementation = "eager"
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        for name, weight in model.named_parameters():
            if "norm" in name or "ln_" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    model.config.architectures = [type(model).__name__]  # which TransformerLens goes by
    return model
