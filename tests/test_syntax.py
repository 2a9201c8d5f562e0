"""Changes that are located by syntax, on a small program."""

import ast

import pytest
from syntax import In

PROGRAM = """
TABLE = {"a": first}

def outer(a, b):
    def inner(x):
        return x + a  # a comment

    c, d = a, b
    total = 0
    total += f(a, 'text', key=(
        a * b), other=2)
    return inner(total)

class Thing:
    def size(self, x):
        if self.x and x:
            x = g(x)
        return x
"""


def changed(change):
    return ast.unparse(change.edited(change.path(ast.parse(PROGRAM))[-1])).splitlines()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (In("m.outer").assign("c", "0"), "    c, d = (0, b)"),
        (In("m.outer").assign("total", "_ + 1"), "    total = 0 + 1"),
        (In("m.outer").replace("(a, b)", "_[::-1]"), "    c, d = (a, b)[::-1]"),
        (In("m.outer").replace("f(..., other=_)", "0"), "    total += 0"),
        (In("m.outer").replace("f(a, 'text', other=2, key=_)", "0"), "    total += 0"),
        (In("m.outer").replace("total += ...", "total -= 1"), "    total -= 1"),
        (In("m.outer").keyword("key", "b", of="f"), "    total += f(a, 'text', key=b, other=2)"),
        (In("m.outer").drop("key"), "    total += f(a, 'text', other=2)"),
        (In("m.outer").drop("key").drop("other"), "    total += f(a, 'text')"),
        (In("m.outer").replace("a", "e", every=True), "    c, d = (e, b)"),
        (In("m.outer.inner").replace("_ + _", "x"), "    return x"),
        (In("m.outer.inner").returns("a"), "    return a"),
        (In("m.Thing.size").replace("self.x", "True"), "    if True and x:"),
        (In("m.Thing.size").replace("if self.x and ...: ...", "pass"), "    pass"),
        (In("m.Thing.size").delete("x = g(...)"), "        pass"),
        (In("m.Thing").replace("g", "h"), "            x = h(x)"),
        (In("m.TABLE").replace("first", "second"), "TABLE = {'a': second}"),
        (In("m").assign("TABLE", "{}"), "TABLE = {}"),
    ],
)
def test_what_is_found_is_changed(change, line):
    assert line in changed(change)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (In("m.outer").replace("a", "0"), "m.outer: 'a' occurs 4 times"),
        (In("m.outer").replace("f(a, 'text', key=_)", "0"), "occurs 0 times"),
        (In("m.outer").delete("g(...)"), "occurs 0 times"),
        (In("m.outer").assign("b", "0"), "'b = ...' occurs 0 times"),
        (In("m.outer").keyword("key", "b", of="g"), r"'g\(key=...\)' occurs 0 times"),
        (In("m.outer").drop("key").drop("key"), "occurs 0 times"),
        (In("m.Thing.outer").returns("0"), "m.Thing.outer: 'outer' is defined 0 times"),
        (In("m.inner").returns("0"), "m.inner: 'inner' is defined 0 times"),
    ],
)
def test_what_is_not_there_once_is_refused(change, why):
    with pytest.raises(ValueError, match=why):
        changed(change)


def test_a_change_leaves_the_program_alone():
    tree = ast.parse(PROGRAM)
    before = ast.dump(tree, include_attributes=True)
    change = In("m.outer").assign("total", "a").replace("f(...)", "_ + 1")
    change.edited(change.path(tree)[-1])
    assert ast.dump(tree, include_attributes=True) == before
