"""What uses a trained SAE needs torch and safetensors, and nothing else that is installed here."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sae_lightning.inference import InferenceSAE

ALONE = """
import sys

OF_TORCH = {"torchgen", "functorch", "typing_extensions", "filelock", "fsspec", "jinja2", "markupsafe", "networkx", "sympy", "mpmath"}
ALLOWED = sys.stdlib_module_names | OF_TORCH | {"torch", "safetensors", "sae_lightning"}
refused = set()


class OnlyThese:
    others = list(sys.meta_path)

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if (top := name.partition(".")[0]) not in ALLOWED and not top.startswith("_sysconfigdata"):
            refused.add(top)
            return None
        return next((spec for other in cls.others if (spec := other.find_spec(name, path, target)) is not None), None)


sys.meta_path[:] = [OnlyThese]
import warnings

warnings.filterwarnings("ignore", "Failed to initialize NumPy")
import torch

from sae_lightning.errors import InputError
from sae_lightning.load import load_sae
from sae_lightning.transformers.hooks import read

x = torch.load(sys.argv[1], weights_only=True)
model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
for folder in sys.argv[2:]:
    sae = load_sae(folder)
    f = sae.encode(x)
    assert torch.allclose(sae.decode(f), sae(x)) and f.dense().shape == (2, 5, sae.d_sae)
    with sae.splice(model, "0"):
        assert torch.allclose(model(x), sae(x))
    with sae.splice(model, "0", ablate=[1], steer={2: 3.0}, error=True) as spliced:
        changed = (3.0 - f.dense()[..., 2:3]) * sae.W_dec[2] - f.dense()[..., 1:2] * sae.W_dec[1]
        assert torch.allclose(model(x), x + changed, atol=1e-5)
        assert torch.equal(spliced.latents.dense(), f.dense())

    # Here, where no type checker stands in the way of the compiler.
    torch.compiler.reset()
    compiled, rows = torch.compile(sae, backend="aot_eager"), x.clone().requires_grad_()
    gradients = [torch.autograd.grad(y_hat.square().sum(), rows)[0] for y_hat in (compiled(rows), sae(rows))]
    assert torch.allclose(compiled(rows), sae(rows), atol=1e-5) and torch.allclose(*gradients, atol=1e-4)
    assert not torch._dynamo.utils.counters["graph_break"], "several graphs"
    torch.save(sae(x), folder + "/y.pt")
try:
    load_sae("nowhere")
except InputError:
    print("alone", "jaxtyping" in refused)
assert not {"jaxtyping", "lightning", "hydra", "transformers", "numba"} & set(sys.modules)
"""


@pytest.mark.slow  # a process that imports torch and its compiler, which traces two SAEs
def test_with_torch_and_safetensors_alone(tmp_path: Path) -> None:
    """Loads, encodes, decodes, splices, ablates, steers, and compiles to one graph, with gradients."""
    g = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (9, 4), "W_dec": (9, 4), "b_enc": (9,), "b_dec": (4,)}
    weights = {name: torch.randn(*shape, generator=g) for name, shape in shapes.items()}
    saes = {
        "k": InferenceSAE(weights, subtract=True, k=3),
        "threshold": InferenceSAE(weights | {"threshold": torch.rand(9)}, subtract=False),
    }
    x, folders = torch.randn(2, 5, 4, generator=g), [str(sae.save(tmp_path / name)) for name, sae in saes.items()]
    torch.save(x, tmp_path / "x.pt")
    command = [sys.executable, "-c", ALONE, str(tmp_path / "x.pt"), *folders]
    ran = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "alone True\n"
    for name, sae in saes.items():
        torch.testing.assert_close(torch.load(tmp_path / name / "y.pt"), sae(x))
