import pytest

from fourfold.kit.notebook import shows_error


def test_the_message_is_printed(capsys):
    with shows_error(ValueError):
        raise ValueError("radius is -1; expected 0 or more")
    assert capsys.readouterr().out == "ValueError: radius is -1; expected 0 or more\n"


def test_a_subclass_counts(capsys):
    with shows_error(ArithmeticError):
        1 / 0  # noqa: B018
    assert capsys.readouterr().out == "ZeroDivisionError: division by zero\n"


def test_no_error_fails():
    with (
        pytest.raises(AssertionError, match="expected ValueError, but the block raised nothing"),
        shows_error(ValueError),
    ):
        pass


def test_another_error_fails_and_is_named():
    with (
        pytest.raises(AssertionError, match="expected ValueError, but TypeError was raised: no"),
        shows_error(ValueError),
    ):
        raise TypeError("no")


def test_no_error_fails_even_where_an_assertion_is_expected():
    with pytest.raises(AssertionError, match="raised nothing"), shows_error(AssertionError):
        pass


def test_an_interrupt_passes_through():
    with pytest.raises(KeyboardInterrupt), shows_error(ValueError):
        raise KeyboardInterrupt
