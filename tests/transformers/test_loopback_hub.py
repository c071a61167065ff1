"""The hub's own clients against a hub on this machine: a transformer and two data sets, fetched as from the real one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sae_lightning.data.text import HubText
from sae_lightning.transformers.huggingface import HuggingFace
from tests.transformers.loopback_hub import COMMIT, LoopbackHub
from tests.transformers.tiny_gpt2 import SENTENCES, save_parquet, save_tiny_gpt2

# The endpoint is read when the clients are imported, hence another process.
USER = """
import json, torch
from sae_lightning.data.text import HubText
from sae_lightning.transformers.huggingface import HuggingFace
transformer = HuggingFace("someone/tiny-gpt2")
texts = HubText("someone/stories"), HubText("someone/tokens", column="input_ids", is_tokenized=True, streaming=False)
for text in texts:
    text.check()
model = transformer.load()
print(json.dumps({
    "identity": transformer.identity(), "hooks": transformer.hooks, "widths": transformer.widths(transformer.hooks),
    "logits": model(input_ids=torch.arange(8)[None]).logits[0, -1, :4].tolist(),
    "sequences": [list(text.sequences(transformer, 16, 0, 0)) for text in texts],
}))
"""


# Slow: a process that imports transformers and datasets.
@pytest.mark.slow
def test_a_transformer_and_its_texts_come_from_a_hub(tmp_path: Path):
    here = HuggingFace(str(tmp_path / "models/someone/tiny-gpt2"))
    save_tiny_gpt2(Path(here.path))
    save_parquet(tmp_path / "datasets/someone/stories/data/train-00000-of-00001.parquet", text=SENTENCES)
    ids = [[i % 300 for i in range(start, start + 16)] for start in range(0, 80, 16)]
    save_parquet(tmp_path / "datasets/someone/tokens/data/train-00000-of-00001.parquet", input_ids=ids)
    with LoopbackHub(tmp_path) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        environment.pop("HF_HUB_OFFLINE", None)
        done = subprocess.run([sys.executable, "-c", USER], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, "\n".join([done.stderr, *hub.asked])
    fetched = json.loads(done.stdout.splitlines()[-1])
    assert fetched["identity"] == {"loader": "huggingface", "name": "someone/tiny-gpt2", "commit": COMMIT, "dtype": "float32"}
    assert fetched["hooks"] == ["transformer.h.0"]
    assert fetched["widths"] == {"transformer.h.0": 16}
    local = HubText(str(tmp_path / "datasets/someone/stories"))
    assert fetched["sequences"] == [list(local.sequences(here, 16, 0, 0)), ids]
    assert len(fetched["sequences"][0]) > 3
