"""The parameters of a `_target_`, read from its source without importing it (an import of torch costs seconds)."""

import ast
import functools
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import NamedTuple


class Parameter(NamedTuple):
    """What is written after the colon, and the module in which to look its names up."""

    annotation: ast.expr | None
    module: str


class Signature(NamedTuple):
    """`is_open`: there may be parameters beyond these (a `**kwargs`, or a base class, that leads to no source)."""

    parameters: dict[str, Parameter]
    is_open: bool


class Found(NamedTuple):
    node: ast.AST
    module: str


def signature(target: str) -> Signature | None:
    """The signature of the class, function or method with this dotted name; None where no module defines it.

    A name that a module merely imports from elsewhere is followed only within the same top-level package, so that
    `package.module.os.system` names nothing.
    """
    found = locate(target)
    if found is None:
        return None
    if isinstance(found.node, ast.ClassDef):
        return _of_class(found)
    if isinstance(found.node, ast.FunctionDef):
        return _of_function(found)
    return Signature({}, True)


def locate(target: str) -> Found | None:
    """Where a dotted name is defined: a class, a function, a method, or the value of a module's name."""
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:cut])
        if source_file(module) is None:
            continue
        found = find(module, parts[cut])
        for name in parts[cut + 1 :]:
            found = _member(found, name) if found else None
        return found
    return None


def find(module: str, name: str, depth: int = 0) -> Found | None:
    """The definition of `name` in a module, through imports from the same top-level package."""
    file = source_file(module)
    if file is None or depth > 8:
        return None
    for node in _statements(_parsed(file)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return Found(node, module)
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return Found(node.value, module)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name and node.value:
            return Found(node.value, module)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    origin = _absolute(module, file, node)
                    return find(origin, alias.name, depth + 1) if origin.split(".")[0] == module.split(".")[0] else None
    return None


def source_file(module: str) -> Path | None:
    """The file of a module, found without running any package's `__init__`."""
    spec: ModuleSpec | None = None
    parts = module.split(".")
    if not all(part.isidentifier() for part in parts):
        return None
    for i in range(1, len(parts) + 1):
        name = ".".join(parts[:i])
        if i == 1:
            try:
                spec = importlib.util.find_spec(name)
            except (ImportError, ValueError):
                return None
        else:
            loaded = sys.modules.get(".".join(parts[: i - 1]))
            path = getattr(loaded, "__path__", None) or (spec.submodule_search_locations if spec else None)
            spec = PathFinder.find_spec(name, list(path)) if path else None
        if spec is None:
            return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@functools.lru_cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Those of the module's top level, also inside `if` and `try`."""
    stack = list(reversed(tree.body))
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If | ast.Try):
            stack += [*reversed(node.orelse), *reversed(node.body)]
        else:
            yield node


def _absolute(module: str, file: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    up = node.level - (1 if file.name == "__init__.py" else 0)
    return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])


def _member(found: Found, name: str) -> Found | None:
    if isinstance(found.node, ast.ClassDef):
        for node in found.node.body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return Found(node, found.module)
    return None


def _of_function(found: Found, is_method: bool = False) -> Signature:
    node = found.node
    assert isinstance(node, ast.FunctionDef)
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    decorators = {d.id for d in node.decorator_list if isinstance(d, ast.Name)}
    if is_method or "classmethod" in decorators:
        arguments = arguments[1:]
    return Signature({a.arg: Parameter(a.annotation, found.module) for a in arguments}, node.args.kwarg is not None)


def _of_class(found: Found) -> Signature:
    node = found.node
    assert isinstance(node, ast.ClassDef)
    init = _member(found, "__init__")
    if init is not None:
        own = _of_function(init, is_method=True)
        call = _handing_on(init.node) if own.is_open else None
        if call is None:
            return own
        bases = _of_bases(found)
        given = {*list(bases.parameters)[: len(call.args)], *(keyword.arg for keyword in call.keywords)}
        inherited = {name: parameter for name, parameter in bases.parameters.items() if name not in given}
        return Signature({**inherited, **own.parameters}, bases.is_open)
    annotated = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    fields = {ast.unparse(n.target): Parameter(n.annotation, found.module) for n in annotated}
    if any("dataclass" in ast.unparse(d) for d in node.decorator_list) or any("NamedTuple" in ast.unparse(b) for b in node.bases):
        bases = [_of_class(base) for base in _bases(found) if base is not None and isinstance(base.node, ast.ClassDef)]
        return Signature({**{k: v for b in bases for k, v in b.parameters.items()}, **fields}, False)
    return _of_bases(found)


def _handing_on(init: ast.AST) -> ast.Call | None:
    """The call `super().__init__(…, **kwargs)`, which makes its base's other parameters its own; None where there is none."""
    for node in ast.walk(init):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__" and None in [k.arg for k in node.keywords]:
            return node
    return None


def _of_bases(found: Found) -> Signature:
    """That of the first base class with an `__init__` of its own: it is the one that would be called."""
    for base in _bases(found):
        if base is None:
            return Signature({}, True)
        if isinstance(base.node, ast.ClassDef):
            inherited = _of_class(base)
            if inherited.parameters or inherited.is_open:
                return inherited
    return Signature({}, False)


def _bases(found: Found) -> Iterator[Found | None]:
    """None where a base class cannot be found in any source."""
    assert isinstance(found.node, ast.ClassDef)
    for base in found.node.bases:
        expression = base.value if isinstance(base, ast.Subscript) else base
        if not isinstance(expression, ast.Name | ast.Attribute):
            yield None
            continue
        name = ast.unparse(expression)
        if name in {"ABC", "abc.ABC", "object", "NamedTuple", "Protocol", "Generic"}:
            continue
        yield find(found.module, name) or _imported(found.module, name)


def _imported(module: str, dotted: str) -> Found | None:
    """A base class from another package: `from x import y` → x.y, `import x as z` → z.y = x.y."""
    file = source_file(module)
    head, _, rest = dotted.partition(".")
    for node in _statements(_parsed(file)) if file else ():
        if isinstance(node, ast.ImportFrom | ast.Import):
            for alias in node.names:
                if (alias.asname or alias.name.split(".")[0]) == head:
                    start = f"{_absolute(module, file, node)}.{alias.name}" if isinstance(node, ast.ImportFrom) and file else alias.name
                    return locate(f"{start}.{rest}" if rest else start)
    return None
