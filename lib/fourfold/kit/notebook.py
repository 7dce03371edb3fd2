"""What a lesson's cells need besides figures: an error shown on purpose, and a progress bar."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["progress_bar", "shows_error"]


@contextmanager
def shows_error(expected: type[BaseException]) -> Iterator[None]:
    """Print the error that the block raises, and fail on any other outcome.

    A block that raises nothing, or an error of another type, fails with AssertionError.
    A subclass of `expected` counts as `expected`.

    >>> with shows_error(ZeroDivisionError):
    ...     1 / 0
    ZeroDivisionError: division by zero
    """
    try:
        yield
    except expected as error:
        print(f"{type(error).__name__}: {error}")
        return
    except Exception as error:
        raise AssertionError(
            f"expected {expected.__name__}, but {type(error).__name__} was raised: {error}"
        ) from error
    raise AssertionError(f"expected {expected.__name__}, but the block raised nothing")


def progress_bar(total: int, done: int, *, unit: str, shown: bool):
    """The bar of the course, of `tqdm`, with `done` of `total` done at its start."""
    from tqdm import tqdm

    return tqdm(total=total, initial=done, disable=not shown, unit=unit, dynamic_ncols=True)
