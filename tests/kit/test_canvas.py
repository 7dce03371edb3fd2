import io

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from fourfold.kit import canvas as canvas_module
from fourfold.kit.canvas import COLOURS, canvas, figure_texts, show
from fourfold.kit.drawing import image_grid


def _lightness(colour):
    """CIE L*, from 0 black to 100 white."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in matplotlib.colors.to_rgb(colour)
    ]
    return 116 * np.dot([0.2126, 0.7152, 0.0722], linear) ** (1 / 3) - 16


@pytest.mark.parametrize(
    "names", [("n00", "n10", "n01", "n11"), ("first", "second"), ("good", "bad")]
)
def test_colours_of_one_figure_differ_in_print(names):
    levels = sorted(_lightness(COLOURS[name]) for name in names)
    # Ten steps of lightness are seen apart side by side without effort.
    assert np.diff(levels).min() > 10


def test_drawing_changes_no_setting_of_matplotlib():
    before = dict(matplotlib.rcParams)
    image_grid([torch.zeros(3, 4, 4)], ["a"])
    figure, _ = canvas()
    show(figure, alt="empty axes")
    assert dict(matplotlib.rcParams) == before


class _Shell:
    """Stands in for a running IPython and keeps what is displayed."""

    def __init__(self, monkeypatch):
        self.shown = []
        monkeypatch.setattr(canvas_module, "_inside_ipython", lambda: True)
        monkeypatch.setattr("IPython.display.display", self.shown.append)


@pytest.mark.parametrize(("photo", "kind"), [(False, "png"), (True, "jpeg")])
def test_show_displays_with_alternative_text_and_closes(monkeypatch, photo, kind):
    shell = _Shell(monkeypatch)
    figure = pyplot.figure(figsize=(3, 2))
    axes = figure.add_subplot(xlabel="time (s)", title="first")
    axes.plot([0, 1])
    show(figure, alt="a rising line", photo=photo)
    (shown,) = shell.shown
    data, metadata = shown._repr_mimebundle_()
    assert set(data) == {f"image/{kind}"}
    assert metadata[f"image/{kind}"]["alt"] == "a rising line"
    assert {"first", "time (s)", "1.0"} <= set(metadata[f"image/{kind}"]["labels"])
    assert not pyplot.fignum_exists(figure.number)
    assert Image.open(io.BytesIO(shown.data)).format == kind.upper()


def test_show_gives_the_same_bytes_for_the_same_figure(monkeypatch):
    shell = _Shell(monkeypatch)
    for _ in range(2):
        figure, axes = canvas(width=3.0, height=2.0)
        axes.set_title("twice")
        show(figure, alt="empty axes")
    first, second = shell.shown
    assert first.data == second.data


def test_show_outside_ipython_draws_and_returns_nothing(capsys):
    figure, axes = canvas()
    axes.set_title("$x^2$")
    assert show(figure, alt="a formula above empty axes") is None
    assert capsys.readouterr().out == ""


def test_show_outside_ipython_still_meets_a_figure_that_cannot_be_drawn():
    figure, axes = canvas()
    axes.set_title("$\\nosuchcommand$")
    with pytest.raises(ValueError, match="nosuchcommand"):
        show(figure, alt="a broken formula")


def test_show_needs_alternative_text():
    figure, _ = canvas()
    with pytest.raises(ValueError, match="alt is blank"):
        show(figure, alt="  ")


def test_show_needs_words(without_shape_checks):
    figure, _ = canvas()
    with pytest.raises(TypeError, match="alt is None; expected a sentence"):
        show(figure, alt=None)


def test_the_texts_of_a_figure_are_those_that_it_shows():
    figure, axes = canvas()
    axes.plot([0, 1], label="rising")
    axes.set(title="two $x$", xticks=[], yticks=[])
    axes.text(0, 0, "hidden", visible=False)
    axes.legend()
    axes.annotate("note", (0, 1))
    axes.annotate("note", (1, 1))
    assert sorted(figure_texts(figure)) == ["note", "rising", "two $x$"]
