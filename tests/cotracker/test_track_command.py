"""`fourfold track` as a reader types it, in this process."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from fourfold import cli
from fourfold.cotracker.cotracker import CoTracker, load_cotracker
from fourfold.cotracker.predictor import (
    OnlinePredictor,
    Predictor,
    at_frame,
    grid_points,
    resize_points,
)
from fourfold.cotracker.tracks import palindrome_error
from fourfold.kit.images import area_average

FRAMES = 11
NAMES = ["clip", "small.safetensors", "text.png", "text.safetensors"]


def picture(t, height=48, width=72):
    """A frame (H, W, 3) of waves that move to the right and down."""
    x, y = np.arange(width) - 1.5 * t, np.arange(height)[:, None] - 0.5 * t
    grey = 127 + 60 * np.sin(x / 4) + 60 * np.cos(y / 5 + x / 9)
    return np.stack([grey, 255 - grey, 0.5 * grey], axis=-1).round().astype(np.uint8)


@pytest.fixture(scope="session")
def filled(tmp_path_factory):
    """A folder with a film as a folder of frames, and weights of a small model."""
    room = tmp_path_factory.mktemp("room")
    (room / "clip").mkdir()
    for t in range(FRAMES):
        Image.fromarray(picture(t)).save(room / "clip" / f"frame{t}.png")
    torch.manual_seed(0)
    sizes = {"width": 16, "depth": 1, "heads": 2, "virtual_tracks": 4, "features": 8, "levels": 2}
    sizes |= {"window": 8, "widths": (8, 8, 8, 8), "resolution": (32, 48), "highest": 4.0}
    model = CoTracker("2", **sizes)
    nn.init.normal_(model.update.transformer.flow_head.weight, std=0.02)
    save_file(model.state_dict(), room / "small.safetensors")
    (room / "text.png").write_text("no image")
    (room / "text.safetensors").write_text("no weights")
    return room


@pytest.fixture
def room(filled, tmp_path, monkeypatch):
    for name in NAMES:
        (tmp_path / name).symlink_to(filled / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fourfold(room, monkeypatch, capsys):
    def run(*words):
        line = ["fourfold", "track", *words]
        if "--weights" not in words:
            line += ["--weights", "small.safetensors"]
        monkeypatch.setattr("sys.argv", [str(word) for word in line])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return run


def video():
    frames = [torch.from_numpy(picture(t)).permute(2, 0, 1) for t in range(FRAMES)]
    return torch.stack(frames)[None].float()


def written(path="tracks.npz"):
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def predictor():
    return Predictor(load_cotracker("small.safetensors"))


def close(ours, theirs, limit=1e-3):
    """Float32 maps over six iterations that magnify rounding, in pixels."""
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() < limit


def test_it_writes_the_tracks_of_a_grid(fourfold, room):
    code, said, _ = fourfold("clip", "--grid", 4)
    assert code == 0
    expected, found = predictor()(video(), grid=4), written()
    close(found["points"], expected.points[0])
    close(found["visibility"], expected.visibility[0])
    assert sorted(found) == ["frames", "points", "queries", "visibility"]
    assert found["frames"].tolist() == list(range(FRAMES))
    places = resize_points(grid_points(4, (32, 48)), (32, 48), (48, 72))
    assert torch.allclose(found["queries"], at_frame(0.0, places))
    assert "11 frames of 72 × 48 pixels, 16 points" in said and "wrote tracks.npz" in said
    seen = int((expected.visibility[0, -1] > 0.9).sum())
    assert f"{seen} of 16 points are visible in the last frame" in said


def test_without_a_choice_the_grid_has_20_points_a_side(fourfold, room):
    fourfold("clip", "--iterations", 1)
    assert written()["points"].shape == (FRAMES, 400, 2)


def test_points_are_tracked_both_ways(fourfold, room):
    words = ("--points", "10,20.5;60,8", "--frame", 6, "--backward", "--out", "p.npz")
    assert fourfold("clip", *words)[0] == 0
    found = written("p.npz")
    queries = torch.tensor([[6.0, 10, 20.5], [6, 60, 8]])
    close(found["points"], predictor()(video(), queries[None], backward=True).points[0])
    assert torch.equal(found["queries"], queries)
    assert torch.equal(found["points"][6], queries[:, 1:]), "exactly where it was asked"


def test_a_part_of_the_film_keeps_its_frame_numbers(fourfold, room):
    assert fourfold("clip", "--start", 2, "--frames", 7, "--grid", 2)[0] == 0
    found = written()
    assert found["frames"].tolist() == list(range(2, 9))
    close(found["points"], predictor()(video()[:, 2:9], grid=2).points[0])


def test_online_gives_all_frames(fourfold, room):
    assert fourfold("clip", "--online", "--points", "30,20", "--frame", 1)[0] == 0
    online = OnlinePredictor(load_cotracker("small.safetensors"), torch.tensor([[1.0, 30, 20]]))
    told = [online.push(video()[0]), online.finish()]
    close(written()["points"], torch.cat([tracks.points[0] for tracks in told]))


def test_a_smaller_height_keeps_the_pixels_of_the_video(fourfold, room):
    assert fourfold("clip", "--height", 24, "--points", "0,0;71,47;30,20")[0] == 0
    small = area_average(video()[0], 24).round()[None]
    places = torch.tensor([[0.0, 0], [71, 47], [30, 20]])
    asked = at_frame(0.0, (places + 0.5) / 2 - 0.5)[None]
    expected = 2 * (predictor()(small, asked).points[0] + 0.5) - 0.5
    close(written()["points"], expected, limit=2e-3)
    assert torch.equal(written()["points"][0], places)


def test_parts_are_tracked_apart(fourfold, room):
    assert fourfold("clip", "--grid", 3, "--together", 4)[0] == 0
    close(written()["points"], predictor()(video(), grid=3, together=4).points[0])


def numbers_of(said):
    """The median, the 90th percentile and the median extent that a palindrome tells."""
    found = re.search(
        r"points end (\S+) px from where they started \(median; 90th percentile (\S+) px\)\n"
        r"in between they were up to (\S+) px away \(median\)",
        said,
    )
    return [float(number) for number in found.groups()]


@pytest.mark.parametrize(("words", "frame"), [((), 0), (("--frame", 3), 3), (("--together", 2), 0)])
def test_a_palindrome_says_how_far_from_home_points_end(fourfold, room, words, frame):
    words = ("--points", "10,20.5;60,8;30,30", "--palindrome", *words)
    code, said, _ = fourfold("clip", *words)
    assert code == 0 and "11 frames of 72 × 48 pixels, 3 points, there and back" in said
    queries = at_frame(float(frame), torch.tensor([[10, 20.5], [60, 8], [30, 30]]))
    options, ways = {"together": 2 if "--together" in words else None}, []

    def tracker(film, queries):
        ways.append(predictor()(film, queries, **options))
        return ways[-1]

    home = palindrome_error(tracker, video(), queries[None])[0]
    found, way = written(), ways[0].points[0]
    assert found["points"].shape == (2 * FRAMES - 1, 3, 2)
    close(found["points"], way)
    assert found["frames"].tolist() == [*range(FRAMES), *range(FRAMES - 2, -1, -1)]
    extent = (way[frame : 2 * FRAMES - 1 - frame] - queries[:, 1:]).norm(dim=-1).amax(dim=0)
    expected = home.quantile(0.5), home.quantile(0.9), extent.median()
    assert numbers_of(said) == pytest.approx([value.item() for value in expected], abs=0.007)
    assert extent.median() > 0.1 and home.max() > 0.1, "or nothing was tried"


def test_a_palindrome_is_told_in_pixels_of_the_video(fourfold, room):
    words = ("--grid", 3, "--height", 24, "--start", 1, "--frames", 9, "--palindrome")
    code, said, _ = fourfold("clip", *words)
    small = area_average(video()[0, 1:10], 24).round()[None]
    places = resize_points(grid_points(3, (32, 48)), (32, 48), (24, 36))
    home = palindrome_error(
        lambda film, queries: predictor()(film, queries, support=0),
        small,
        at_frame(0.0, places)[None],
    )
    assert code == 0
    assert numbers_of(said)[:2] == pytest.approx(
        [2 * home.quantile(0.5).item(), 2 * home.quantile(0.9).item()], abs=0.01
    )
    assert written()["frames"].tolist() == [*range(1, 10), *range(8, 0, -1)]


def test_a_palindrome_of_a_gif_is_drawn_to_its_turn(fourfold, room):
    frames = [Image.fromarray(picture(t)) for t in range(FRAMES)]
    frames[0].save("film.gif", save_all=True, append_images=frames[1:])
    code, said, _ = fourfold("film.gif", "--grid", 2, "--palindrome", "--picture", "way.gif")
    assert code == 0 and "from where they started" in said and "and way.gif" in said
    with Image.open("way.gif") as drawn:
        assert drawn.n_frames == FRAMES


def test_a_palindrome_may_be_shorter_than_a_clip_that_is_tracked(fourfold, room):
    assert fourfold("clip", "--grid", 2, "--frames", 4)[0] == 2
    assert fourfold("clip", "--grid", 2, "--frames", 4, "--palindrome")[0] == 0
    assert written()["points"].shape == (7, 4, 2)


def test_without_the_option_nothing_is_said_of_a_palindrome(fourfold, room):
    said = fourfold("clip", "--grid", 2)[1]
    assert "palindrome" not in said and "back" not in said


def test_a_point_that_does_not_move_comes_home(fourfold, room):
    model = load_cotracker("small.safetensors")
    nn.init.zeros_(model.update.transformer.flow_head.weight)
    nn.init.zeros_(model.update.transformer.flow_head.bias)
    save_file(model.state_dict(), "still.safetensors")
    words = ("--grid", 2, "--palindrome", "--weights", "still.safetensors")
    assert numbers_of(fourfold("clip", *words)[1]) == [0, 0, 0]


@pytest.mark.parametrize("name", ["tracks.png", "tracks.gif"])
def test_it_draws_a_picture_or_a_film(fourfold, room, name):
    code, said, _ = fourfold("clip", "--grid", 2, "--picture", name, "--threshold", 0.5)
    assert code == 0 and f"and {name}" in said
    with Image.open(name) as drawn:
        assert getattr(drawn, "n_frames", 1) == (FRAMES if name.endswith("gif") else 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("none",), "VIDEO: none: no such file or folder"),
        (("text.png",), "VIDEO: text.png: expected a folder of images, or a file that ends in"),
        (("clip", "--start", 11), "--start: start is 11; expected at most 10"),
        (("clip", "--height", 49), "--height: height is 49; expected 1 to 48"),
        (("clip", "--frames", 4), "VIDEO: clip: video has 4 frames; expected more than 4"),
        (("clip", "--frame", 11), "--frame: got 11, expected at most 10"),
        (("clip", "--grid", 3, "--points", "1,2"), "--grid and --points: both given"),
        (("clip", "--points", "1,2,3"), "--points: got '1,2,3', expected x,y;x,y"),
        (("clip", "--points", ""), "--points: got '', expected x,y;x,y"),
        (("clip", "--points", "1,a"), "--points: got '1,a', expected x,y;x,y"),
        (("clip", "--points", "1,2;72,3"), "--points: got 72,3, expected x from 0 to 71"),
        (("clip", "--points", "nan,3"), "--points: got nan,3, expected x from 0 to 71"),
        (("clip", "--online", "--backward"), "--online and --backward: both given"),
        (("clip", "--online", "--together", 3), "--online and --together: both given"),
        (("clip", "--palindrome", "--online"), "--palindrome and --online: both given"),
        (("clip", "--palindrome", "--backward"), "--palindrome and --backward: both given"),
        (("clip", "--palindrome", "--frame", 10), "--frame: got 10, expected at most 9 with --pal"),
        (("clip", "--palindrome", "--frames", 1), "VIDEO: clip: has 1 frame; expected 2 or more"),
        (("clip", "--palindrome", "--frames", 2), "VIDEO: clip: video, there and back, has 3 fra"),
        (("clip", "--out", "a.txt"), "--out: got a.txt, expected a name that ends in .npz"),
        (("clip", "--out", "no/a.npz"), "--out: no: no such folder"),
        (("clip", "--picture", "a.bmp"), "--picture: got a.bmp, expected a name that ends in"),
        (("clip", "--picture", "clip/a.png"), "clip/a.png would lie among the frames"),
        (("clip", "--weights", "huge"), "--weights: weights is 'huge'"),
        (("clip", "--weights", "no.pth"), "there is no such file"),
        (("clip", "--weights", "text.safetensors"), "--weights: "),
    ],
)
def test_a_mistake_is_one_line_exit_2_and_no_file(fourfold, room, words, message):
    before = sorted(room.iterdir())
    code, said, wrong = fourfold(*words)
    assert (code, said) == (2, "")
    assert message in wrong and len(wrong.strip().splitlines()) == 1
    assert sorted(room.iterdir()) == before


def test_a_damaged_frame_is_found_before_anything_is_computed(fourfold, room, monkeypatch):
    (room / "film").mkdir()
    for t in range(FRAMES):
        name = "text.png" if t == FRAMES - 1 else f"clip/frame{t}.png"
        (room / "film" / f"frame{t}.png").symlink_to(room / name)
    monkeypatch.setattr(Predictor, "encode", None)
    code, said, wrong = fourfold("film")
    assert (code, said) == (2, "") and "VIDEO: film: " in wrong and "frame10.png" in wrong
    assert len(wrong.strip().splitlines()) == 1


def test_too_little_memory_is_found_before_anything_is_computed(fourfold, room, monkeypatch):
    from fourfold.cotracker import predictor as module

    monkeypatch.setattr(module, "free_memory", lambda device: 400_000)
    monkeypatch.setattr(Predictor, "encode", None)
    code, said, wrong = fourfold("clip", "--grid", 30)
    assert (code, said) == (2, "") and len(wrong.strip().splitlines()) == 1
    assert "--grid: queries (or grid) makes 900 points at once" in wrong
    assert "--together " in wrong and not (room / "tracks.npz").exists()


def test_a_film_that_cannot_be_written_leaves_no_half(fourfold, room, monkeypatch):
    def fail(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device", "tracks.npz")

    monkeypatch.setattr(np, "savez_compressed", fail)
    code, _, wrong = fourfold("clip", "--grid", 2)
    assert code == 2 and "tracks.npz: No space left on device" in wrong
    assert sorted(path.name for path in room.iterdir()) == sorted(NAMES)


def test_help_says_what_it_does(fourfold):
    code, said, _ = fourfold("--help")
    assert code == 0 and "--backward" in said and len(said.split()) > 15
