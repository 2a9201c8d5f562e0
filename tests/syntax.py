"""Changes to a program that are located by its syntax, whatever its layout.

A change names the function (class, or assignment) that it is about, and what becomes of it:

    In("arithmetic.add").assign("met", "0")                      met = 0
    In("choices.compare").replace("a.shift != b.shift", "False") an expression, or a statement
    In("control.custom").delete("a = settle(...)")               a statement does nothing
    In("arithmetic.exp").keyword("cons", "a.cons")               f(..., cons=a.cons)
    In("choices.select").drop("varies")                          f(...) without varies=
    In("ledger.Ledger.hardened").returns("0")                    the function does nothing else

In a pattern `_` is any expression, and `...` is any number of arguments, elements or statements, or
any one expression.  The order of keywords does not matter, nor do comments, brackets and lines.  In
a replacement `_` is what was found.  What is changed must occur exactly once in the function, or
once at least with `every=True`.
"""

import ast
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

_DEFINITIONS = ast.FunctionDef, ast.ClassDef
_ASSIGNMENTS = ast.Assign, ast.AnnAssign
_IGNORED = {"ctx", "kind", "type_comment"}


class Edit(NamedTuple):
    """Every node that `fits` becomes `change(node)`; `what` it is, in words."""

    what: str
    fits: Callable[[Any], bool]
    change: Callable[[Any], ast.AST]
    every: bool = False


class In(NamedTuple):
    """Changes in one place of a package, "module.function", "module.Class.method" or "module"."""

    place: str
    edits: tuple[Edit, ...] = ()

    @property
    def module(self) -> str:
        return self.place.partition(".")[0]

    @property
    def names(self) -> list[str]:
        """The names that lead from the module to the place."""
        return self.place.split(".")[1:]

    def replace(self, pattern: str, new: str, every: bool = False) -> "In":
        wanted, made = _parsed(pattern), _parsed(new)
        if isinstance(wanted, ast.stmt) and isinstance(made, ast.expr):
            made = ast.Expr(made)
        return self._with(
            pattern, lambda node: _fits(wanted, node), lambda node: _filled(made, node), every
        )

    def delete(self, pattern: str) -> "In":
        wanted = ast.parse(pattern).body[0]
        return self._with(pattern, lambda node: _fits(wanted, node), lambda _: ast.Pass())

    def assign(self, target: str, value: str) -> "In":
        """Give another value to what is assigned once, alone or among others: `a, b = c, d`."""
        wanted, made = _parsed(target), _parsed(value)

        def fits(node: ast.AST) -> bool:
            return any(_alike(wanted, left) for left, _ in _assigned(node))

        def change(node: Any) -> ast.AST:
            values = [
                _filled(made, right) if _alike(wanted, left) else right
                for left, right in _assigned(node)
            ]
            new = values[0] if len(values) == 1 else ast.Tuple(values, ast.Load())
            return copied(node, value=new)

        return self._with(f"{target} = ...", fits, change)

    def keyword(self, name: str, value: str, of: str = "") -> "In":
        """Give another value to an argument of the only call (of a function so called) that has it.

        What is called `of` may be a function, a method or a class.
        """
        made = _parsed(value)

        def change(node: ast.Call) -> ast.AST:
            keywords = [
                copied(k, value=_filled(made, k.value)) if k.arg == name else k
                for k in node.keywords
            ]
            return copied(node, keywords=keywords)

        return self._with(f"{of or 'f'}({name}=...)", _call_with(name, of), change)

    def drop(self, name: str, of: str = "") -> "In":
        """Leave out an argument of the only call (of a function so called) that has it."""

        def change(node: ast.Call) -> ast.AST:
            return copied(node, keywords=[k for k in node.keywords if k.arg != name])

        return self._with(f"{of or 'f'}({name}=...)", _call_with(name, of), change)

    def returns(self, value: str) -> "In":
        """Let the whole function be `return value`."""
        name, body = self.names[-1], [ast.Return(_parsed(value))]
        return self._with(
            f"def {name}",
            lambda node: isinstance(node, ast.FunctionDef) and node.name == name,
            lambda node: copied(node, body=body),
        )

    def _with(self, what: str, fits: Any, change: Any, every: bool = False) -> "In":
        return self._replace(edits=(*self.edits, Edit(what, fits, change, every)))

    def path(self, tree: ast.Module) -> list[Any]:
        """The nodes of a module that lead to the place, from the module on."""
        path: list[Any] = [tree]
        for name in self.names:
            found = [node for node in _statements(path[-1]) if name in _named(node)]
            if len(found) != 1:
                raise ValueError(f"{self.place}: '{name}' is defined {len(found)} times")
            path += found
        return path

    def edited(self, node: ast.AST) -> Any:
        """The definition that is the place, changed."""
        for edit in self.edits:
            found = sum(map(edit.fits, ast.walk(node)))
            if found == 0 or (found > 1 and not edit.every):
                raise ValueError(f"{self.place}: '{edit.what}' occurs {found} times")
            node = rebuilt(node, edit.fits, edit.change)
        return node


def rebuilt(node: Any, fits: Callable[[Any], bool], change: Callable[[Any], ast.AST]) -> Any:
    """A copy of a tree in which the outermost nodes that fit are changed."""
    if isinstance(node, list):
        return [rebuilt(item, fits, change) for item in node]
    if not isinstance(node, ast.AST):
        return node
    if fits(node):
        return ast.fix_missing_locations(ast.copy_location(change(node), node))
    return copied(
        node, **{name: rebuilt(value, fits, change) for name, value in ast.iter_fields(node)}
    )


def copied(node: ast.AST, **changes: Any) -> Any:
    """A copy of a node with other children."""
    return ast.copy_location(type(node)(**{**dict(ast.iter_fields(node)), **changes}), node)


# --- names


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """The statements of a definition, without those of the definitions in it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
            if not isinstance(child, _DEFINITIONS):
                yield from _statements(child)


def _named(node: Any) -> list[str]:
    """What a statement defines."""
    if isinstance(node, _DEFINITIONS):
        return [node.name]
    return [left.id for left, _ in _assigned(node) if isinstance(left, ast.Name)]


def _assigned(node: Any) -> list[tuple[Any, Any]]:
    """Targets and values of an assignment; those of `a, b = c, d` one by one."""
    if not isinstance(node, _ASSIGNMENTS) or node.value is None:
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    if len(targets) > 1:
        return []
    left, right = targets[0], node.value
    both = isinstance(left, ast.Tuple) and isinstance(right, ast.Tuple)
    if both and len(left.elts) == len(right.elts):
        return list(zip(left.elts, right.elts, strict=True))
    return [(left, right)]


def _call_with(name: str, of: str) -> Callable[[Any], bool]:
    def fits(node: Any) -> bool:
        if not isinstance(node, ast.Call) or name not in [k.arg for k in node.keywords]:
            return False
        return not of or of == getattr(node.func, "attr", getattr(node.func, "id", None))

    return fits


# --- patterns


def _parsed(text: str) -> ast.stmt | ast.expr:
    """One expression or statement."""
    (statement,) = ast.parse(text.strip()).body
    return statement.value if isinstance(statement, ast.Expr) else statement


def _filled(new: ast.AST, found: ast.AST) -> ast.AST:
    """The replacement, with what was found in place of `_`."""
    return rebuilt(new, _is_any, lambda _: found)


def _is_any(pattern: Any) -> bool:
    return isinstance(pattern, ast.Name) and pattern.id == "_"


def _is_rest(pattern: Any) -> bool:
    if isinstance(pattern, ast.Expr):
        return _is_rest(pattern.value)
    return isinstance(pattern, ast.Constant) and pattern.value is ...


def _fits(pattern: ast.AST, node: Any) -> bool:
    """Whether a node that is not assigned to is of a pattern."""
    return not isinstance(getattr(node, "ctx", None), ast.Store) and _alike(pattern, node)


def _alike(pattern: Any, node: Any) -> bool:
    if isinstance(pattern, list):
        return isinstance(node, list) and _all_alike(pattern, node)
    if not isinstance(pattern, ast.AST):
        return type(pattern) is type(node) and pattern == node
    if isinstance(pattern, ast.expr) and (_is_any(pattern) or _is_rest(pattern)):
        return isinstance(node, ast.expr)
    if type(pattern) is not type(node):
        return False
    parts = {name for name in pattern._fields if name not in _IGNORED}
    if isinstance(pattern, ast.Call):
        parts.discard("keywords")
        if not _keywords_alike(pattern, node):
            return False
    return all(_alike(getattr(pattern, name), getattr(node, name)) for name in parts)


def _all_alike(patterns: list, nodes: list) -> bool:
    """Whether a list is of these patterns, one by one; `...` is any number of nodes."""
    if not patterns:
        return not nodes
    first, rest = patterns[0], patterns[1:]
    if _is_rest(first):
        return any(_all_alike(rest, nodes[i:]) for i in range(len(nodes) + 1))
    return bool(nodes) and _alike(first, nodes[0]) and _all_alike(rest, nodes[1:])


def _keywords_alike(pattern: ast.Call, node: ast.Call) -> bool:
    """Whether a call has the keywords of a pattern, in any order; with `...` it may have more."""
    wanted = {k.arg: k.value for k in pattern.keywords}
    given = {k.arg: k.value for k in node.keywords}
    more = any(map(_is_rest, pattern.args))
    return (wanted.keys() <= given.keys() if more else wanted.keys() == given.keys()) and all(
        _alike(value, given[name]) for name, value in wanted.items()
    )
