"""What an argument has to be, and the sentence for one that is not."""

import operator
from typing import Any

from torch import Tensor

__all__ = ["check_tensor", "whole_number"]


def whole_number(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """`value`, of any type of whole numbers, as an int from `least` to `most`, both inclusive.

    Raises ValueError for anything else, in a sentence that begins with `name`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    too_low = number is not None and least is not None and number < least
    too_high = number is not None and most is not None and number > most
    if number is None or too_low or too_high:
        limits = {
            (True, True): "",
            (False, True): f", {least} or more",
            (False, False): f" from {least} to {most}",
        }[least is None, most is None]
        raise ValueError(f"{name} is {value!r}; expected a whole number{limits}")
    return number


def check_tensor(name: str, value: Any) -> None:
    """Raises TypeError for a `value` that is no tensor, in a sentence that begins with `name`."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} is a {type(value).__name__}; "
            "expected a tensor (torch.from_numpy makes one of an array)"
        )
