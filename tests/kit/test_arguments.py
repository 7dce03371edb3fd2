"""What arguments have to be, and the sentences for those that are not."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.kit.arguments import json_value, listed

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
finite = scalars.filter(lambda v: not isinstance(v, float) or math.isfinite(v))
values = st.recursive(
    finite, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


@given(values)
def test_a_json_value_is_what_json_gives_back(value):
    found = json_value("x", value)
    assert found == value and json.loads(json.dumps(found)) == found


def test_scalars_of_numpy_and_tuples_become_what_json_knows():
    found = json_value("x", {"a": (np.float64(0.5), np.int32(3)), "b": np.bool_(True)})
    assert found == {"a": [0.5, 3], "b": True}
    assert [type(v) for v in found["a"]] == [float, int] and found["b"] is True


@pytest.mark.parametrize("bad", [math.nan, math.inf, {1, 2}, {1: 2}, [object()], np.zeros(2)])
def test_what_json_cannot_hold_is_refused_by_name(bad):
    with pytest.raises(ValueError, match=r"setting a is .*; expected what JSON holds"):
        json_value("setting a", bad)


def test_a_list_is_a_copy_of_any_iterable():
    given_list = [1, 2]
    assert listed("seeds", given_list, "range(5)") is not given_list
    assert listed("seeds", iter(given_list), "range(5)") == given_list


@pytest.mark.parametrize("bad, came", [("abc", "'abc'"), (5, "5"), ([], "empty")])
def test_what_is_no_list_is_refused_with_an_example(bad, came):
    with pytest.raises(ValueError, match=rf"seeds is {came}; expected .*, such as range\(5\)"):
        listed("seeds", bad, "range(5)")
