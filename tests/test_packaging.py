"""What a user installs, and what `make` does on a bare machine."""

import ast
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(text) for text in texts] for name, texts in PROJECT["optional-dependencies"].items()}
LINES = [line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
PINS: dict[str, str] = {canonicalize_name(name): version for name, version in LINES}
PACKAGE = sorted((ROOT / "sae_lightning").rglob("*.py"))
# These take a second or more: a function that needs one imports it.
HEAVY = {"transformers", "tokenizers", "datasets", "pyarrow", "matplotlib", "gguf", "wandb", "tensorboard", "optuna", "botorch", "gpytorch"}
# What computes knows nothing of what trains, configures and logs.
PURE = tuple(f"sae_lightning.{name}" for name in ("latents", "inference", "load", "kernels", "models"))
FRAMEWORKS = {"lightning", "hydra", "omegaconf", "wandb"}


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def imports(node: ast.AST, at_once: bool = True) -> Iterator[tuple[str, bool]]:
    """Names of modules that a piece of code imports, and whether that happens as soon as the code itself is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, at_once) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            yield child.module, at_once
            yield from ((f"{child.module}.{alias.name}", at_once) for alias in child.names)
        else:
            is_for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from imports(child, at_once and not is_for_types and not isinstance(child, ast.FunctionDef | ast.Lambda))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


IMPORTS = {module_name(path): set(imports(ast.parse(path.read_text(encoding="utf-8")))) for path in PACKAGE}


@pytest.fixture(scope="module")
def distributions() -> Mapping[str, list[str]]:
    """Which distribution a module comes from: reads the metadata of all that is installed."""
    return importlib.metadata.packages_distributions()


@pytest.mark.parametrize("name", IMPORTS)
def test_imports_are_declared(name: str, distributions: Mapping[str, list[str]]):
    declared = names(CORE).union(*(names(requirements) for requirements in EXTRAS.values()))
    for module in {module.split(".")[0] for module, _ in IMPORTS[name]} - set(sys.stdlib_module_names) - {"sae_lightning"}:
        assert declared & {canonicalize_name(home) for home in distributions.get(module, [module])}, f"{name} imports {module}, undeclared"


@pytest.mark.parametrize("name", IMPORTS)
def test_importing_a_module_imports_nothing_heavy(name: str):
    """A module that has to (it derives from a class of transformers, say) is itself imported where it is used, and nowhere else."""
    heavy = HEAVY | {name for name, found in IMPORTS.items() if any(at_once and module.split(".")[0] in HEAVY for module, at_once in found)}
    if name not in heavy:
        assert not {module for module, at_once in IMPORTS[name] if at_once and (module in heavy or module.split(".")[0] in heavy)}


def test_what_computes_imports_no_framework():
    modules = [name for name in IMPORTS if name.startswith(PURE)]
    assert {pure for pure in PURE if not any(name.startswith(pure) for name in modules)} == set()
    code = f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\nprint(sorted({FRAMEWORKS} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_constraints_pin_what_is_declared_within_its_bounds():
    for requirement in [*CORE, *(requirement for requirements in EXTRAS.values() for requirement in requirements)]:
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)]), requirement


def test_constraints_pin_all_that_is_installed():
    """Down to what a dependency's dependency brings; what torch brings differs with its build."""
    waiting = [*CORE, *(requirement for requirements in EXTRAS.values() for requirement in requirements)]
    needed: set[tuple[str, str]] = {("torch", "")}
    while waiting:
        requirement = waiting.pop()
        for item in {(canonicalize_name(requirement.name), extra) for extra in ("", *requirement.extras)} - needed:
            needed.add(item)
            texts = importlib.metadata.requires(item[0]) or [] if requirement.name != PROJECT["name"] else []
            further = [Requirement(text) for text in texts]
            waiting += [other for other in further if other.marker is None or other.marker.evaluate({"extra": item[1]})]
    installed = {name: importlib.metadata.version(name).split("+")[0] for name, _ in needed if name != canonicalize_name(PROJECT["name"])}
    assert {name: PINS.get(name) for name in installed} == installed


def copy_of_the_sources(folder: Path) -> Path:
    ignored = shutil.ignore_patterns(".*", "outputs", "stores", "multirun", "build", "*.egg-info", "__pycache__")
    return Path(shutil.copytree(ROOT, folder / "sources", ignore=ignored))


@pytest.mark.slow  # pip makes an environment to build in: 7 s, more on a busy machine
def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path):
    sources = copy_of_the_sources(tmp_path)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(sources)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    parts = [
        path
        for top in ("sae_lightning", "hydra_plugins")
        for path in (sources / top).rglob("*")
        if path.suffix in (".py", ".csv", ".html", ".css", ".js", ".md")
    ]
    expected = {path.relative_to(sources).as_posix() for path in parts}
    assert held == expected
    assert any(name.endswith("licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


# -- make -------------------------------------------------------------------------------------------------------------


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    bare = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    return subprocess.run(["make", *arguments], cwd=folder, env=bare, capture_output=True, text=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_make_help_names_every_target(checkout: Path):
    text = make(checkout).stdout
    assert all(f"  {target}\t" in text for target in ("demo", "test", "lint", "bench", "install"))


@pytest.mark.parametrize("python", ["exit 1", "/no/such/python"])
def test_make_says_in_one_line_that_no_python_fits(checkout: Path, python: str):
    result = make(checkout, "install", f"PYTHON={script(checkout / 'python', python)}")
    assert result.returncode == 2
    assert result.stderr.startswith("no usable Python: install 3.11, 3.12 or 3.13")
    assert not (checkout / ".venv").exists()


def test_make_starts_a_broken_installation_again(checkout: Path):
    """The stamp comes last: a pip that fails leaves none, one that ends well leaves one, and then nothing is to do."""
    pip_fails = script(checkout / "pip_fails", 'case "$*" in *"pip check"*) exit 7;; esac')
    pip_works = script(checkout / "pip_works", ":")
    for pip, returncode in ((pip_fails, 2), (pip_works, 0)):
        python = script(checkout / "python", f'[ "$2" = venv ] && mkdir -p .venv/bin && cp {pip} .venv/bin/python; exit 0')
        result = make(checkout, "install", f"PYTHON={python}")
        assert result.returncode == returncode, result.stderr
        assert bool(list((checkout / ".venv").glob("installed-*"))) == (returncode == 0)
    assert "pip install" not in make(checkout, "--dry-run", "test", f"PYTHON={python}").stdout


@pytest.mark.parametrize(
    ("file", "old", "new", "installs"),
    [
        ("pyproject.toml", "line-length = 140", "line-length = 100", False),
        ("pyproject.toml", '"rich>=', '"rich!=1,>=', True),
        ("constraints.txt", "torch==", "torch===", True),
    ],
)
def test_make_installs_again_when_what_is_installed_changes(checkout: Path, file: str, old: str, new: str, installs: bool):
    dry = ["--dry-run", "test", f"PYTHON={sys.executable}"]
    stamp = make(checkout, *dry).stdout.split("touch ")[1].split()[0]
    (checkout / stamp).parent.mkdir()
    (checkout / stamp).touch()
    assert "pip install" not in make(checkout, *dry).stdout
    text = (checkout / file).read_text(encoding="utf-8")
    assert old in text
    (checkout / file).write_text(text.replace(old, new), encoding="utf-8")
    assert ("pip install" in make(checkout, *dry).stdout) == installs


@pytest.mark.parametrize(
    ("train", "returncode", "said"),
    [
        ("write(0.97)", 0, "recovery  0.970"),
        ("write(0.42)", 1, "recovery  0.420"),
        ("pass", 1, "left 0 scores.json"),
        ("write(0.97); sys.exit(3)", 3, ""),
    ],
)
def test_demo_ends_well_only_when_the_directions_were_found(tmp_path: Path, train: str, returncode: int, said: str):
    """`train.py` is played here: what a real one reaches is measured where it is trained."""
    code = f"""
import json, pathlib, sys
def write(recovery):
    run = pathlib.Path(sys.argv[1].removeprefix("paths.outputs=")) / "topk-k12" / "now"
    run.mkdir(parents=True)
    (run / "scores.json").write_text(json.dumps({{"scores": {{"sae": {{"recovery": recovery}}}}}}))
{train}
"""
    (tmp_path / "train.py").write_text(code, encoding="utf-8")
    old = tmp_path / "outputs" / "demo" / "earlier" / "scores.json"
    old.parent.mkdir(parents=True)
    old.write_text("{}", encoding="utf-8")
    os.utime(old, (0, 0))
    result = subprocess.run([sys.executable, str(ROOT / ".ci" / "demo.py")], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, said in result.stdout + result.stderr) == (returncode, True), result


# -- the suite's own rules ----------------------------------------------------------------------------------------------


def run_suite(folder: Path, ci: str, code: str) -> subprocess.CompletedProcess[str]:
    """pytest, in a process of its own, on one file of tests under this project's settings and conftest."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    (folder / "test_it.py").write_text(f"import pytest\n\n{code}", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(folder),
        str(folder),
    ]
    return subprocess.run(command, cwd=folder, env={**os.environ, "CI": ci}, capture_output=True, text=True)


@pytest.mark.parametrize(("ci", "outcome"), [("true", "1 failed, 1 passed, 1 skipped"), ("false", "1 passed, 2 skipped")])
def test_a_skipped_test_fails_in_ci_unless_it_needs_a_gpu(tmp_path: Path, ci: str, outcome: str):
    skipped = "def test_{}():\n    pytest.skip('not today')\n"
    result = run_suite(tmp_path, ci, f"{skipped.format('a')}\n@pytest.mark.gpu\n{skipped.format('b')}\ndef test_c():\n    pass\n")
    assert outcome in result.stdout.splitlines()[-1], result.stdout


def test_a_module_skipped_as_a_whole_fails_in_ci(tmp_path: Path):
    result = run_suite(tmp_path, "true", "pytest.importorskip('no_such_module')\n")
    assert result.returncode == pytest.ExitCode.INTERRUPTED
    assert "was skipped (Skipped: could not import 'no_such_module'" in result.stdout


def test_shapes_and_types_are_checked_in_tests():
    import jaxtyping

    from sae_lightning.files import write_text

    with pytest.raises(jaxtyping.TypeCheckError, match="write_text"):
        write_text("never written", 3)  # pyright: ignore[reportArgumentType]
