"""A GPT-2 of two layers with random weights and a tokenizer of its own, as a folder; and a small data set."""

from pathlib import Path

import pyarrow as pa
import torch
from pyarrow import parquet

SENTENCES = [f"The {animal} and the {other} went to sea" for animal in ("owl", "pig", "cat") for other in ("hen", "fox", "dog")]
CONTEXT = 32


def save_tiny_gpt2(folder: Path, seed: int = 0) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    )
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=CONTEXT, vocab_size=300, bos_token_id=0, eos_token_id=0)
        GPT2LMHeadModel(config).save_pretrained(folder)


def save_parquet(file: Path, **columns: list) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), file)
