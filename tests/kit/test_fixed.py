import copy
import pickle

import pytest

from fourfold.kit.fixed import FixedDict


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.__setitem__("a", 2),
        lambda d: d.__delitem__("a"),
        lambda d: d.__ior__({"b": 2}),
        lambda d: d.update(b=2),
        lambda d: d.setdefault("b", 2),
        lambda d: d.pop("a"),
        lambda d: d.popitem(),
        lambda d: d.clear(),
    ],
)
def test_nothing_changes_it(change):
    fixed = FixedDict(a=1)
    with pytest.raises(TypeError, match="this dictionary is fixed"):
        change(fixed)
    assert fixed == {"a": 1}


def test_equal_ones_have_one_hash_and_copies_are_equal():
    fixed = FixedDict(a=1, b=2)
    assert hash(fixed) == hash(FixedDict(b=2, a=1))
    assert fixed == {"b": 2, "a": 1} and fixed | {"c": 3} == {"a": 1, "b": 2, "c": 3}
    for other in (copy.copy(fixed), copy.deepcopy(fixed), pickle.loads(pickle.dumps(fixed))):
        assert other == fixed and type(other) is FixedDict
