"""Talks to another library in a process and an environment of its own."""

import json
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).parents[2]
LIBRARIES = ("dictionary_learning", "overcomplete", "sae_lens", "sparsify")


class Peer:
    """One library, one of LIBRARIES; worker.py says what it can be asked. Use it with `with`.

    Errors: RuntimeError where its environment was not made (`make peers`), or with what went wrong there.
    """

    def __init__(self, library: str, threads: int = 1):
        python = ROOT / ".peers" / library / "bin" / "python"
        if not python.exists():
            raise RuntimeError(f"there is no {python.relative_to(ROOT)}: run `make peers`")
        self.library, self.folder = library, tempfile.TemporaryDirectory()
        self.log = (Path(self.folder.name) / "log").open("w+")
        command = [str(python), "-m", "benchmarks.peers.worker", library]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.ask("threads", n=threads)
        about = self.ask("architectures")
        self.architectures, self.version = about["architectures"], about["version"]

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it ended"}
        if "error" in answer:
            self.log.seek(0)
            raise RuntimeError(f"{self.library} at {do}: {answer['error']}\n{self.log.read()[-2000:]}")
        return answer

    def put(self, name: str, tensors: dict[str, Tensor]) -> str:
        """Writes tensors where the other side can read them; returns the path."""
        path = Path(self.folder.name) / f"{name}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
        return str(path)

    def losses(self, name: str, x: Tensor) -> dict[str, Tensor]:
        """Terms, loss and gradients of the SAE `name` on a batch."""
        out = str(Path(self.folder.name) / "losses.safetensors")
        self.ask("losses", name=name, rows=self.put("x", {"x": x.float()}), out=out)
        return load_file(out)

    def export(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The trained SAE `name` by our names, for rows of E‖x‖² = 1; whether it subtracts b_dec, and its k or None."""
        out = str(Path(self.folder.name) / "exported.safetensors")
        about = self.ask("export", name=name, out=out)
        return load_file(out), about

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.log.close()
        self.folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def batches_of(tensors: list[Tensor]) -> dict[str, Tensor]:
    """Batches by names that sort in their order."""
    return {f"{i:06d}": torch.as_tensor(tensor) for i, tensor in enumerate(tensors)}
