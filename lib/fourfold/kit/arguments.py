"""What an argument has to be, and the sentence for one that is not."""

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["check_tensor", "json_value", "listed", "whole_number"]


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


def listed(name: str, values: Any, such_as: str) -> list:
    """The values as a list. Raises ValueError for a text, for what is no iterable, for none."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name} is {values!r}; expected a list, such as {such_as}")
    values = list(values)
    if not values:
        raise ValueError(f"{name} is empty; expected one or more, such as {such_as}")
    return values


def json_value(name: str, value: Any) -> Any:
    """A copy of the value that JSON gives back as it is: NumPy's scalars and tuples become its own.

    Raises ValueError for anything else, numbers that are not finite among it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return [json_value(name, inner) for inner in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: json_value(name, inner) for key, inner in value.items()}
    finite = isinstance(value, float) and math.isfinite(value)
    if value is None or isinstance(value, str | int) or finite:
        return value
    raise ValueError(
        f"{name} is {value!r}; expected what JSON holds: text, finite numbers, "
        "True, False, None, lists and dictionaries of these"
    )
