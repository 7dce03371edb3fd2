"""A dictionary that stays as it was made, for values that must not change."""

from typing import Any, NoReturn

__all__ = ["FixedDict"]


class FixedDict(dict):
    """A dictionary that cannot be changed and, its values being hashable, has a hash.

    It equals a plain dictionary of the same pairs, and can be copied and pickled. Whatever would
    change it raises TypeError.

    >>> FixedDict(task="flow")["task"]
    'flow'
    """

    def __hash__(self) -> int:
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            "this dictionary is fixed; expected a new one, such as {**old, name: value}"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse
