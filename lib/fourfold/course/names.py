"""Which names a piece of code takes from outside and which it binds."""

from __future__ import annotations

import ast
import builtins
import symtable
from collections.abc import Iterator

__all__ = ["bound_names", "free_names", "needed"]


def free_names(source: str) -> set[str]:
    """The names that the code reads from its module or its builtins, less the builtins."""

    def read(table: symtable.SymbolTable) -> Iterator[str]:
        is_module = table.get_type() == "module"
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (is_module or symbol.is_global()):
                yield symbol.get_name()
        for child in table.get_children():
            yield from read(child)

    names = set(read(symtable.symtable(source, "cell", "exec")))
    return (names | _updated_names(source)) - set(dir(builtins))


def bound_names(source: str) -> set[str]:
    """The names that the code binds at its top level, or changes through `x[…] =` or `x.y =`."""
    table = symtable.symtable(source, "cell", "exec")
    bound = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    return bound | _updated_names(source)


def _updated_names(source: str) -> set[str]:
    """The names that the top level changes rather than replaces: `x += 1`, `x[0] = 1`, `x.y = 1`.

    What a function changes is its own or was read from outside, and is found as such.
    """
    names = set()
    for node in _top_level(ast.parse(source)):
        if isinstance(node, ast.AugAssign):
            names.add(_base(node.target))
        elif isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(_base(node))
    return names - {None}


def _top_level(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from _top_level(node)


def _base(node: ast.expr) -> str | None:
    while isinstance(node, ast.Subscript | ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def needed(sources: list[str], last: str) -> list[int]:
    """The positions in `sources` that `last` depends on, through the names it reads, in order."""
    wanted, found = free_names(last), []
    for position in reversed(range(len(sources))):
        bound = bound_names(sources[position])
        if bound & wanted:
            found.append(position)
            wanted = (wanted - bound) | free_names(sources[position])
    return found[::-1]
