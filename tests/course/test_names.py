"""Which cells a check needs: the names that code reads and binds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.course.names import bound_names, free_names, needed


@pytest.mark.parametrize(
    ("source", "free", "bound"),
    [
        ("x = y + 1", {"y"}, {"x"}),
        ("import a.b as c", set(), {"c"}),
        ("from m import n", set(), {"n"}),
        ("def f(x, y=z):\n    return x + w", {"z", "w"}, {"f"}),
        ("x += 1", {"x"}, {"x"}),
        ("x[0] = y", {"x", "y"}, {"x"}),
        ("x.a.b[1] = y", {"x", "y"}, {"x"}),
        ("def f(x):\n    y = x\n    y[0] = z\n    y += 1\n    return y", {"z"}, {"f"}),
        ("[x for x in z]", {"z"}, set()),
        ("print(len(x))", {"x", "print", "len"}, set()),
        ("x.append(y)", {"x", "y"}, {"x"}),
        ('def f(x: "A", y: B["C D"]) -> "E":\n    return x', set("ABE"), {"f"}),
        ("class A(B):\n    c: D = e\n    def m(self):\n        self.x = g", set("BDeg"), {"A"}),
        ("with open(p) as f:\n    t = f.read()", {"p", "open"}, {"f", "t"}),
    ],
)
def test_free_and_bound_names(source, free, bound):
    assert free_names(source) - bound == free - bound
    assert bound_names(source) == bound


def test_only_the_cells_in_the_chain_are_taken():
    cells = ["a = 1", "b = 2", "c = a", "a = 3", "d = c"]
    assert needed(cells, "print(d)") == [0, 2, 4]
    assert needed(cells, "print(a)") == [3]


def test_a_cell_that_changes_a_value_needs_the_one_that_made_it():
    assert needed(["x = [0]", "x[0] = 1", "y = 2"], "assert x") == [0, 1]


def test_a_call_that_may_change_a_value_is_taken_along():
    assert needed(["x = []", "x.append(1)", "y.append(2)"], "assert x") == [0, 1]


def test_nothing_is_needed_by_code_that_reads_nothing():
    assert needed(["a = 1"], "print(1)") == []


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), max_size=12))
def test_the_chosen_cells_run_alone_and_give_the_same_value(pairs):
    cells = [f"{x} = ({y}, {i})" for i, (x, y) in enumerate(pairs)]
    start = [f"{name} = 0" for name in "abcd"]
    whole, alone = {}, {}
    exec("\n".join(start + cells), whole)
    taken = needed(start + cells, "a")
    exec("\n".join((start + cells)[i] for i in taken), alone)
    assert alone["a"] == whole["a"]
