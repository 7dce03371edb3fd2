"""Pictures of clouds: lengths and hands are kept, depth is told, bad input is named."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import Circle, PathPatch

from fourfold.kit.canvas import canvas
from fourfold.kit.cloud_picture import cloud_strip, draw_cloud, face, look
from fourfold.kit.molecules import ATOM_COLOURS, BOND_COLOURS

CLOUD = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 2, 1])
SYMBOLS = ["C", "N", "O", "F", "C", "H"]
CLOSE = {"atol": 1e-5}  # float32 coordinates of a few Å


def drawn(*arguments, **options):
    axes = canvas()[1]
    return axes, draw_cloud(axes, *arguments, **options)


def circles(axes):
    return [patch for patch in axes.patches if isinstance(patch, Circle)]


def lengths(x):
    x = np.asarray(x, np.float64)
    return np.linalg.norm(x[:, None] - x[None], axis=-1)


def volume(x):
    """Positive for one hand, negative for the other: the first four points decide."""
    x = np.asarray(x, np.float64)
    return np.linalg.det(x[1:4] - x[0])


def test_looking_turns_the_cloud_and_keeps_lengths_and_hand():
    for seen in (look(CLOUD, 30, -70), face(CLOUD), drawn(CLOUD)[1], drawn(CLOUD, angle=(9, 9))[1]):
        np.testing.assert_allclose(lengths(seen), lengths(CLOUD), **CLOSE)
        assert volume(seen) == pytest.approx(volume(CLOUD), rel=1e-4)


def test_what_is_in_front_moves_to_the_right_and_down():
    front = torch.tensor([[0.0, 0.0, 1.0]])
    np.testing.assert_allclose(look(front), front, **CLOSE)
    np.testing.assert_allclose(look(front, turn=90), [[1, 0, 0]], **CLOSE)
    np.testing.assert_allclose(look(front, tilt=90), [[0, -1, 0]], **CLOSE)


def test_the_broadest_side_faces_the_viewer():
    spread = face(CLOUD @ torch.linalg.qr(torch.randn(3, 3))[0] + 5).std(axis=0)
    assert spread[0] > spread[1] > spread[2]


@pytest.mark.parametrize("x", [[[1, 2, 3]], [[0, 0, 0], [1, 0, 0]], [[0, 0, 0]] * 3])
def test_a_point_a_line_and_points_on_top_of_each_other_are_drawn(x):
    axes, seen = drawn(torch.tensor(x, dtype=torch.float32), ["O"] * len(x))
    assert len(circles(axes)) == len(x) and np.isfinite(seen).all()
    assert np.ptp(axes.get_xlim()) > 0


def test_near_points_are_larger_darker_and_on_top():
    x = torch.tensor([[0.0, 0, -3], [1, 0, 0], [2, 0, 3]])
    far, middle, near = circles(drawn(x, ["N"] * 3, angle=(0, 0))[0])
    assert far.radius < middle.radius < near.radius == 0.36
    assert far.zorder < middle.zorder < near.zorder
    assert near.get_facecolor()[:3] == to_rgb(ATOM_COLOURS["N"])
    assert sum(far.get_facecolor()) > sum(middle.get_facecolor()) > sum(near.get_facecolor())


def test_points_and_letters_follow_the_symbols():
    axes, _ = drawn(CLOUD, SYMBOLS)
    letters = [patch for patch in axes.patches if isinstance(patch, PathPatch)]
    assert len(circles(axes)) == 6 and len(letters) == 3  # carbon and hydrogen have none
    assert len(drawn(CLOUD, SYMBOLS, letters=False)[0].patches) == 6
    assert len(drawn(CLOUD)[0].patches) == 6
    own = circles(drawn(CLOUD[:1], colours=["#ff0000"])[0])
    assert own[0].get_facecolor()[:3] == (1, 0, 0)


def test_each_class_of_bond_has_its_lines_and_colour():
    bonds = np.zeros((6, 6), int)
    for k in range(1, 5):
        bonds[k, k - 1] = bonds[k - 1, k] = k
    axes, _ = drawn(CLOUD, SYMBOLS, bonds)
    assert len(axes.lines) == 1 + 2 + 3 + 2
    own = {"bonds": bonds[2:4, 2:4], "bond_colours": True, "angle": (0, 0)}
    axes, _ = drawn(2 * torch.eye(3)[:2], **own)
    assert {line.get_color() for line in axes.lines} == {to_rgb(BOND_COLOURS["triple"])}
    assert len(drawn(CLOUD, None, torch.from_numpy(bonds) > 0)[0].lines) == 4


def test_a_bond_runs_from_rim_to_rim_and_hides_behind_a_near_point():
    pair = np.array([[0, 1], [1, 0]])
    line = drawn(torch.tensor([[0.0, 0, 0], [2, 0, 0]]), ["C", "O"], pair, angle=(0, 0))[0].lines[0]
    assert sorted(line.get_xdata()) == pytest.approx([0.8 * 0.36 - 1, 1 - 0.8 * 0.36])
    behind = torch.tensor([[0.0, 0, 0], [0, 0, 1.5]])
    assert not drawn(behind, ["C", "O"], pair, angle=(0, 0))[0].lines


def test_one_span_gives_one_scale():
    views = [drawn(CLOUD * k, span=12)[0] for k in (1, 0.5)]
    assert [np.ptp(axes.get_xlim()) for axes in views] == pytest.approx([12, 12])
    assert all(axes.get_aspect() == 1 and not axes.axison for axes in views)


def test_the_cloud_is_not_changed():
    before = CLOUD.clone()
    drawn(CLOUD, SYMBOLS, angle=(10, 10))
    assert torch.equal(before, CLOUD)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"x": torch.zeros(0, 3)}, r"x has shape \(0, 3\); expected \(n, 3\), n 1 or more"),
        ({"x": CLOUD[:, :2]}, r"x has shape \(6, 2\)"),
        ({"x": CLOUD * torch.nan}, "x has coordinates that are not finite"),
        ({"symbols": ["C"]}, "symbols has length 1; expected 6"),
        ({"colours": ["red"] * 7}, "colours has length 7; expected 6"),
        ({"bonds": np.zeros((5, 5), int)}, r"bonds has shape \(5, 5\); expected \(6, 6\)"),
        ({"bonds": np.full((6, 6), 7)}, "bonds has class 7; expected 0 to 4"),
        ({"bonds": np.full((6, 6), -1)}, "bonds has class -1; expected 0 to 4"),
    ],
)
def test_bad_input_is_named(without_shape_checks, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        drawn(**{"x": CLOUD, **options})


def test_a_strip_has_one_picture_for_each_moment_up_to_the_columns():
    bonds = np.array([[0, 1], [1, 0]])
    frames = [(1 - k / 20, np.eye(2, 3) * (1 + k), ["C", "O"], bonds) for k in range(21)]
    figure = cloud_strip(frames, columns=5)
    assert [axes.get_title() for axes in figure.axes] == [
        f"t = {t:.2f}" for t in (1, 0.75, 0.5, 0.25, 0)
    ]
    assert len({axes.get_xlim()[1] - axes.get_xlim()[0] for axes in figure.axes}) == 1, "one scale"
    assert len(cloud_strip(frames[:2], columns=5).axes) == 2
    with pytest.raises(ValueError, match="frames is empty"):
        cloud_strip([])
