"""Does a value of the configuration fit an annotation? And in words: which values would."""

import ast
from typing import Any

from sae_lightning.run.signature import find

Annotation = ast.expr
"""An expression as it stands in a source file; nothing is evaluated."""

LISTS = {"list", "List", "Sequence", "Iterable", "tuple", "Tuple", "set", "Collection"}
DICTS = {"dict", "Dict", "Mapping", "MutableMapping"}
WORDS = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text", "Path": "a path", "None": "null"}


def fits(annotation: Annotation, value: Any, module: str, depth: int = 0) -> bool | None:
    """None: the annotation says nothing about plain values (a class, a type variable, …).

    value: what OmegaConf yields, resolved: None, bool, int, float, str, list or dict. An integer fits a float.
    """
    match _simple(annotation):
        case ast.Constant(value=None):
            return value is None
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return _any([fits(side, value, module, depth) for side in (left, right)])
        case ast.Subscript(value=of, slice=inner):
            return _fits_subscript(_last(of), _items(inner), value, module, depth)
        case ast.Name() | ast.Attribute() as name:
            return _fits_name(_last(name), value, module, depth)
    return None


def words(annotation: Annotation, module: str, depth: int = 0) -> str:
    """ "an integer or null", "one of 'a', 'b'", …; names that say nothing about plain values are left out."""
    match _simple(annotation):
        case ast.Constant(value=None):
            return "null"
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return _or([words(side, module, depth) for side in (left, right)])
        case ast.Subscript(value=of, slice=inner):
            items = _items(inner)
            match _last(of):
                case "Literal":
                    return "one of " + ", ".join(ast.unparse(item) for item in items)
                case "Optional":
                    return f"{words(items[0], module, depth) or 'an object'} or null"
                case "Union":
                    return _or([words(item, module, depth) for item in items])
                case name if name in LISTS:
                    return f"a list, each {words(items[0], module, depth)}" if words(items[0], module, depth) else "a list"
                case name if name in DICTS:
                    return "a mapping"
        case ast.Name() | ast.Attribute() as name:
            last = _last(name)
            if last in LISTS:
                return "a list"
            if last in DICTS:
                return "a mapping"
            alias = None if last in WORDS or depth > 4 else find(module, last)
            if alias is not None and isinstance(alias.node, ast.expr):
                return words(alias.node, alias.module, depth + 1)
            return WORDS.get(last, "")
    return ""


def like(default: Any, value: Any) -> bool:
    """Is the value of its default's kind? A default of null says nothing."""
    if default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, int):
        return isinstance(value, int)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


def kind(default: Any) -> str:
    """What `like` wants, in words."""
    if isinstance(default, list | dict):
        return "a list" if isinstance(default, list) else "a group of settings"
    return WORDS.get(type(default).__name__, "a value like its default")


def _or(alternatives: list[str]) -> str:
    """Joined, each once; the choices of several Literals as one list."""
    parts = dict.fromkeys(part for alternative in alternatives for part in alternative.split(" or ") if part)
    choices = [part.removeprefix("one of ") for part in parts if part.startswith("one of ")]
    others = [part for part in parts if not part.startswith("one of ")]
    return " or ".join(([f"one of {', '.join(choices)}"] if choices else []) + others)


def _simple(annotation: Annotation) -> Annotation:
    """A quoted annotation is the one inside the quotes."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        try:
            return ast.parse(annotation.value, mode="eval").body
        except SyntaxError:
            return annotation
    return annotation


def _fits_name(name: str, value: Any, module: str, depth: int) -> bool | None:
    is_bool = isinstance(value, bool)
    match name:
        case "int":
            return isinstance(value, int) and not is_bool
        case "float":
            return isinstance(value, int | float) and not is_bool
        case "bool":
            return is_bool
        case "str" | "Path" | "PathLike":
            return isinstance(value, str)
        case "Any" | "object":
            return True
        case _ if name in LISTS:
            return isinstance(value, list)
        case _ if name in DICTS:
            return isinstance(value, dict)
    alias = find(module, name) if depth < 5 else None
    return fits(alias.node, value, alias.module, depth + 1) if alias is not None and isinstance(alias.node, ast.expr) else None


def _fits_subscript(name: str, items: list[Annotation], value: Any, module: str, depth: int) -> bool | None:
    match name:
        case "Optional":
            return _any([value is None, fits(items[0], value, module, depth)])
        case "Union":
            return _any([fits(item, value, module, depth) for item in items])
        case "Literal":
            return any(isinstance(i, ast.Constant) and i.value == value and type(i.value) is type(value) for i in items)
        case "Annotated" | "Final" | "ClassVar":
            return fits(items[0], value, module, depth)
        case _ if name in LISTS:
            if not isinstance(value, list):
                return False
            kinds = [item for item in items if not (isinstance(item, ast.Constant) and item.value is ...)]
            verdicts = [_any([fits(k, element, module, depth) for k in kinds]) for element in value]
            return False if False in verdicts else None if None in verdicts else True
        case _ if name in DICTS:
            return isinstance(value, dict)
    return None


def _any(verdicts: list[bool | None]) -> bool | None:
    return True if True in verdicts else None if None in verdicts else False


def _items(inner: Annotation) -> list[Annotation]:
    return list(inner.elts) if isinstance(inner, ast.Tuple) else [inner]


def _last(name: Annotation) -> str:
    return ast.unparse(name).rpartition(".")[2]
