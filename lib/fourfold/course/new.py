"""A new lesson from a template that already builds, runs and passes the checks of form."""

from __future__ import annotations

from pathlib import Path

from fourfold.course.errors import CourseError
from fourfold.course.files import House, write_whole
from fourfold.course.lesson import NAME

__all__ = ["new_lesson"]


def new_lesson(house: House, key: str, title: str) -> Path:
    """Write `chapters/<key>.py` from the template and return its path.

    Raises:
        CourseError: the key is not `CHAPTER/LESSON` with numbered names, the title is not one line,
            or the file exists.
    """
    parts = key.split("/")
    if len(parts) != 2 or not all(NAME.fullmatch(name) for name in parts):
        raise CourseError(
            f"name: got {key!r}, expected CHAPTER/LESSON with a number each, such as "
            "6_bilinear_sampling/4_splines"
        )
    if len(title.strip().splitlines()) != 1:
        raise CourseError(f"title: got {title!r}, expected one line of text")
    chapter, lesson = parts
    path = house.chapters / chapter / f"{lesson}.py"
    if path.exists():
        raise CourseError(f"name: {house.name(path)} exists already")
    write_whole(path, TEMPLATE.replace("TITLE", title.strip()))
    return path


TEMPLATE = '''\
# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: beginner
#     minutes: 40
#     needs: []
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # TITLE
#
# **After this lesson you can** say in one sentence what you can do now and could not do before.
#
# *Before this:* nothing. About 40 minutes.

# %% [markdown]
# ## Words
#
# The idea in one short paragraph that would survive if all else were deleted. This template tells
# a small idea, so that every part has something in it: the mean $m$ of numbers $x$ is their sum
# divided by their count $n$.

# %%
import matplotlib.pyplot as plt
import torch
from jaxtyping import Float
from torch import Tensor

from fourfold.kit.drawing import show
from fourfold.kit.notebook import shows_error

# %% [markdown]
# ## Figure


# %% tags=["figure"]
def draw_mean(x):
    m, n = x.mean(), len(x)
    figure, axes = plt.subplots(figsize=(6.5, 2))
    axes.plot(x, torch.zeros(n), "o", label=f"x, n = {n}")
    axes.axvline(m, label=f"m = {m:.2f}")
    axes.set(xlabel="value", yticks=[])
    axes.legend()
    return figure


x = torch.tensor([1.0, 2.0, 2.5, 4.5])
show(draw_mean(x), alt="Four numbers as dots on a line, and their mean as a vertical line.")

# %% [markdown]
# One sentence says what to see: the mean $m$ balances the dots.

# %% [markdown]
# ## Formula
#
# $$ m = \\frac{1}{n} \\sum_{k=1}^{n} x_k \\tag{1} $$
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $x$ | the numbers | `N` | `x` | dots, x |
# | $n$ | how many they are | count | `n` | n |
# | $m$ | their mean | number | `m` | line, m |

# %% [markdown]
# ## Code
#
# The naive version first: a loop.


# %%
def mean_loop(x):
    total = 0.0
    for value in x:
        total = total + value
    return total / len(x)


mean_loop(x)

# %% [markdown]
# The final version goes to the library, its check directly below.


# %% tags=["promote", "exercise"]
def mean(x: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """The mean of the numbers, Equation 1 of the lesson.

    Raises:
        ValueError: there are no numbers.
    """
    n = len(x)
    if n == 0:
        raise ValueError("x: got no numbers, expected at least one")
    m = x.sum() / n
    return m


# %% tags=["check"]
numbers = torch.tensor([1.0, 2.0, 6.0])
assert mean(numbers) == 3.0, "the mean of 1, 2 and 6 is 3"

# %% [markdown]
# A second one, since a lesson leaves two to four definitions to the reader.


# %% tags=["promote", "exercise"]
def spread(x: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """The mean distance from the mean."""
    return mean((x - mean(x)).abs())


# %% tags=["check"]
assert spread(torch.tensor([1.0, 3.0])) == 1.0, "1 and 3 both lie 1 away from their mean"

# %% [markdown]
# ## On real input
#
# Something that a person wants to look at.

# %%
from fourfold.kit.images import photograph

mean(photograph("coffee", height=64).flatten())

# %% [markdown]
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `mean` | 5 | ●○○ |
# | `spread` | 5 | ●○○ |
#
# **Predict.** What happens to $m$ when every $x$ grows by 1?
#
# <details><summary>Hint</summary>
#
# Put $x_k + 1$ into Equation 1.
#
# </details>
#
# <details><summary>Answer</summary>
#
# It grows by 1 too.
#
# </details>

# %% [markdown]
# ## What breaks

# %%
with shows_error(ValueError):
    mean(torch.zeros(0))

# %% [markdown]
# ## Recap
#
# Three lines, and where the line goes on.
'''
