"""Signatures read from source agree with Python's own, and fitting a value agrees with what the annotation means."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module

import pytest

from sae_lightning.run.kinds import fits, kind, like, words
from sae_lightning.run.signature import locate, signature, source_file

SOURCE = """
import abc
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Dtype = Literal["float32", "bfloat16"]
Half = Dtype | None

class Base(abc.ABC):
    def __init__(self, size: int, name: str = ""):
        pass

class Inherits(Base):
    pass

class HandsOn(Base):
    def __init__(self, own: float, **kwargs):
        super().__init__(**kwargs)

class TakesAll(Base):
    def __init__(self, own: float, **kwargs):
        super().__init__(size=1)

@dataclass
class Settings:
    rows: int = 1

@dataclass
class More(Settings):
    columns: int | None = None

class Pair(NamedTuple):
    x: int
    y: int

class Made:
    def __init__(self, path):
        pass

    @classmethod
    def of(cls, number: int):
        pass

def function(a: "int", *, b: Sequence[str] = ()):
    pass

if True:
    def inside(c: bool):
        pass
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A package whose every import would fail."""
    root = tmp_path_factory.mktemp("packages")
    folder = root / "heavy_package"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("from heavy_package.inner.parts import Inherits as Public\nraise RuntimeError('imported')\n")
    (folder / "inner" / "__init__.py").write_text("from .parts import function\nraise RuntimeError('imported')\n")
    (folder / "inner" / "parts.py").write_text(SOURCE + "\nraise RuntimeError('imported')\n")
    sys.path.insert(0, str(root))
    yield "heavy_package.inner.parts"
    sys.path.remove(str(root))


@pytest.mark.parametrize(
    ("name", "parameters", "is_open"),
    [
        ("Base", ["size", "name"], False),
        ("Inherits", ["size", "name"], False),
        ("HandsOn", ["size", "name", "own"], False),
        ("TakesAll", ["own"], True),
        ("Settings", ["rows"], False),
        ("More", ["rows", "columns"], False),
        ("Pair", ["x", "y"], False),
        ("Made.of", ["number"], False),
        ("function", ["a", "b"], False),
        ("inside", ["c"], False),
    ],
)
def test_parameters(package, name, parameters, is_open):
    found = signature(f"{package}.{name}")
    assert found is not None
    assert (list(found.parameters), found.is_open) == (parameters, is_open)


def test_a_public_face_is_followed_and_foreign_imports_are_not(package):
    assert list(signature("heavy_package.Public").parameters) == ["size", "name"]
    assert list(signature("heavy_package.inner.function").parameters) == ["a", "b"]
    assert signature(f"{package}.os.remove") is None
    assert signature(f"{package}.Sequence") is None
    assert signature(f"{package}.nothing") is None
    assert signature("no_such_package.x") is None
    assert source_file("heavy_package.in ner") is None


def test_a_module_of_another_folder_that_a_package_was_widened_by(tmp_path, monkeypatch):
    import sae_lightning.models

    (tmp_path / "dummy.py").write_text("class Dummy:\n    def __init__(self, size: int):\n        pass\n")
    assert signature("sae_lightning.models.dummy.Dummy") is None
    monkeypatch.setattr(sae_lightning.models, "__path__", [*sae_lightning.models.__path__, str(tmp_path)])
    assert list(signature("sae_lightning.models.dummy.Dummy").parameters) == ["size"]


@pytest.mark.parametrize(
    "target",
    [
        "lightning.Trainer",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "lightning.pytorch.loggers.TensorBoardLogger",
        "lightning.pytorch.loggers.WandbLogger",
        "lightning.pytorch.strategies.DDPStrategy",
        "torch.optim.AdamW",
        "torch.optim.SGD",
        "torch.optim.lr_scheduler.LambdaLR",
    ],
)
def test_it_is_the_signature_that_python_sees(target):
    module, _, name = target.rpartition(".")
    real = inspect.signature(getattr(import_module(module), name)).parameters.values()
    found = signature(target)
    assert found is not None
    assert set(found.parameters) == {p.name for p in real if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    assert found.is_open == any(p.kind == p.VAR_KEYWORD for p in real)


def test_reading_signatures_imports_nothing():
    code = "import sys; from sae_lightning.run.signature import signature; assert signature('lightning.Trainer')"
    subprocess.run([sys.executable, "-c", code + "; assert not {'torch', 'lightning'} & set(sys.modules)"], check=True)


@pytest.mark.parametrize(
    ("annotation", "right", "wrong", "text"),
    [
        ("int", [3], [True, 3.0, "3", None, [3]], "an integer"),
        ("float", [3, 3.5], [True, "3"], "a number"),
        ("bool", [True], [1, "true"], "true or false"),
        ("str", ["a"], [1, None, True], "text"),
        ("int | None", [3, None], ["a", 2.0], "an integer or null"),
        ("Optional[float]", [1, None], ["a"], "a number or null"),
        ("'int'", [3], ["a"], "an integer"),
        ("Literal['a', 2]", ["a", 2], ["b", 2.0, True], "one of 'a', 2"),
        ("list[str]", [["a"], []], ["a", [1]], "a list, each text"),
        ("tuple[float, ...]", [[1, 2.5]], [["a"]], "a list, each a number"),
        ("str | list[str]", ["a", ["a"]], [1, [1]], "text or a list, each text"),
        ("Mapping[str, int]", [{"a": 1}], [1, []], "a mapping"),
        ("Dtype", ["bfloat16"], ["float16", 1], "one of 'float32', 'bfloat16'"),
        ("Half", ["float32", None], ["int8"], "one of 'float32', 'bfloat16' or null"),
        ("Any", [1, "a", None], [], ""),
    ],
)
def test_values_fit(package, annotation, right, wrong, text):
    tree = ast.parse(annotation, mode="eval").body
    assert [fits(tree, value, package) for value in right] == [True] * len(right)
    assert [fits(tree, value, package) for value in wrong] == [False] * len(wrong)
    assert words(tree, package) == text


def test_a_class_says_nothing_about_plain_values(package):
    tree = ast.parse("Base", mode="eval").body
    assert fits(tree, 3, package) is None
    assert fits(ast.parse("Base | int", mode="eval").body, "a", package) is None
    assert locate(f"{package}.Base") is not None


def test_like_its_default():
    alike = [(3, 4), (3.0, 4), ("a", "b"), (None, "x"), ([1], []), (True, False)]
    assert [like(*pair) for pair in alike] == [True] * len(alike)
    unlike = [(3, 4.0), (3, True), (True, 1), ("a", 1), ([1], 1), (3, None)]
    assert [like(*pair) for pair in unlike] == [False] * len(unlike)
    assert (kind(3), kind("a"), kind({}), kind(True)) == ("an integer", "text", "a group of settings", "true or false")
