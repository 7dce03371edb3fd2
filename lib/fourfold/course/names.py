"""Which names a piece of code takes from outside, which it binds, and what it needs to run."""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterator

__all__ = ["bound_names", "defined_names", "free_names", "immediate_names", "needed"]

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def free_names(source: str) -> set[str]:
    """The names that the code reads from its module or from the builtins.

    An annotation that is itself a string counts as the code in it. (A shape such as "B C H W"
    stands inside a subscript and does not.)
    """

    def read(table: symtable.SymbolTable) -> Iterator[str]:
        is_module = table.get_type() == "module"
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (is_module or symbol.is_global()):
                yield symbol.get_name()
        for child in table.get_children():
            yield from read(child)

    names = set(read(symtable.symtable(source, "cell", "exec")))
    return names | _updated_names(source) | set(_names_in_string_annotations(ast.parse(source)))


def _names_in_string_annotations(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
                inner = ast.parse(annotation.value, mode="eval")
                yield from (n.id for n in ast.walk(inner) if isinstance(n, ast.Name))


def bound_names(source: str) -> set[str]:
    """The names that the top level binds or changes: `x = …`, `import x`, `x[0] = …`, `x.f()`."""
    table = symtable.symtable(source, "cell", "exec")
    bound = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    return bound | _updated_names(source)


def defined_names(source: str) -> set[str]:
    """The names that the top level assigns or defines; imports and changes do not count."""
    table = symtable.symtable(source, "cell", "exec")
    return {s.get_name() for s in table.get_symbols() if s.is_assigned() and not s.is_imported()}


def _updated_names(source: str) -> set[str]:
    """The names whose value the top level changes, or may: `x += 1`, `x[0] = 1`, `x.append(1)`.

    What a function changes is its own or was read from outside, and is found as such.
    """
    names = set()
    for node in _outside_functions(ast.parse(source)):
        if isinstance(node, ast.AugAssign):
            names.add(_base(node.target))
        elif isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(_base(node))
        elif isinstance(node, ast.Expr) and isinstance(
            getattr(node.value, "func", None), ast.Attribute
        ):
            names.add(_base(node.value.func))
    return names - {None}


def _outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, FUNCTION):
            yield node
            yield from _outside_functions(node)


def _base(node: ast.expr) -> str | None:
    while isinstance(node, ast.Subscript | ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def immediate_names(statement: ast.stmt) -> set[str]:
    """The names that must have a value when the statement is reached, not only when called."""
    return {n.id for n in _evaluated(statement) if isinstance(n, ast.Name)}


def _evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run with it: of a function only defaults, decorators and annotations."""
    yield node
    children = ast.iter_child_nodes(node)
    if isinstance(node, FUNCTION):
        children = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
        if not isinstance(node, ast.Lambda):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            every += filter(None, (node.args.vararg, node.args.kwarg))
            annotations = [a.annotation for a in every] + [node.returns]
            children += [*node.decorator_list, *filter(None, annotations)]
    for child in children:
        yield from _evaluated(child)


def needed(sources: list[str], last: str) -> list[int]:
    """The positions in `sources` that `last` depends on, through the names it reads, in order."""
    wanted, found = free_names(last), []
    for position in reversed(range(len(sources))):
        bound = bound_names(sources[position])
        if bound & wanted:
            found.append(position)
            wanted = (wanted - bound) | free_names(sources[position])
    return found[::-1]
