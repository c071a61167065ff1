"""A transformer that reads words: random weights, and a token for each word of a vocabulary."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sae_lightning.transformers.base import Transformer

EMBEDDED = "model.embed_tokens"
"""A hook point where a row depends on its token alone."""
BOS = 0


class Words(Transformer):
    """d 16, two layers; the token of the i-th word is i + 2. `marker` stands before a word, as the space before it."""

    name = "words"

    def __init__(self, words: Sequence[str], marker: str = "▁"):
        super().__init__([EMBEDDED])
        self.tokens, self.marker = ["<s>", "<unk>", *(marker + word for word in words)], marker

    def identity(self):
        return {"name": self.name}

    def config(self):
        from transformers import LlamaConfig

        return LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=len(self.tokens),
                           max_position_embeddings=32, bos_token_id=BOS, eos_token_id=None, initializer_range=0.5)  # fmt: skip

    def tokenizer(self):
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(self.tokens)}, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=self.marker, prepend_scheme="always")
        return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", unk_token="<unk>")

    def load(self, device="cpu") -> nn.Module:
        from transformers import LlamaForCausalLM

        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = LlamaForCausalLM(self.config())
        return nn.Module.to(model, device).eval().requires_grad_(False)

    def embeddings(self) -> Tensor:
        """What stands at `EMBEDDED`: a row for each token, [vocabulary, 16]."""
        return self.load().get_parameter("model.embed_tokens.weight")
