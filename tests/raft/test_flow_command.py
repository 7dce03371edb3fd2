"""`fourfold flow` as a reader types it, in this process."""

import numpy as np
import pytest
import torch
from PIL import Image

from fourfold import cli
from fourfold.kit.images import area_average, photograph
from fourfold.raft.fields import read_flo
from fourfold.raft.raft import load_raft


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A folder with two photographs of 100 × 80 pixels, to be the current one."""
    monkeypatch.chdir(tmp_path)
    cat = photograph("chelsea", height=110)[0].permute(1, 2, 0).round().byte().numpy()
    Image.fromarray(cat[10:90, 10:110]).save(tmp_path / "first.png")
    Image.fromarray(cat[12:92, 13:113]).save(tmp_path / "second.png")
    Image.fromarray(cat[:20, :24]).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no image")
    return tmp_path


@pytest.fixture
def fourfold(room, monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["fourfold", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return run


def test_it_writes_the_flow_of_the_model_and_a_picture(fourfold, room):
    code, said, _ = fourfold("flow", "first.png", "second.png", "--iterations", 2)
    assert code == 0
    images = [
        torch.from_numpy(np.array(Image.open(room / f"{n}.png"))) for n in ("first", "second")
    ]
    images = [image.permute(2, 0, 1)[None].float() for image in images]
    expected = load_raft().estimate(*images, 2).full[0]
    # The same weights, images and thread: only the memory order of the images differs.
    assert torch.allclose(read_flo(room / "first.flo").view_as(expected), expected, atol=2e-3)
    with Image.open(room / "first_flow.png") as picture:
        picture.load()
    assert "100 × 80 pixels, 2 iterations" in said and "motion: mean" in said
    assert "wrote first.flo and first_flow.png" in said


def test_names_and_correlation_can_be_chosen(fourfold, room):
    (room / "out").mkdir()
    words = ("--out", "out/a.flo", "--picture", "out/a.jpg", "--correlation", "on-demand")
    code, _, _ = fourfold("flow", "first.png", "second.png", "--iterations", 1, *words)
    assert code == 0
    assert sorted(p.name for p in (room / "out").iterdir()) == ["a.flo", "a.jpg"]
    assert not (room / "first.flo").exists()


def test_a_flow_found_on_small_images_has_the_size_and_the_unit_of_the_large(fourfold, room):
    code, said, _ = fourfold("flow", "first.png", "second.png", "--height", 64)
    assert code == 0 and "80 × 64 pixels" in said
    flow = read_flo(room / "first.flo").view(2, 80, 100)
    images = [
        torch.from_numpy(np.array(Image.open(room / f"{n}.png"))) for n in ("first", "second")
    ]
    small = [area_average(image.permute(2, 0, 1)[None].float(), 64) for image in images]
    expected = load_raft().estimate(*small).full[0]
    # Means over the picture: enlarging moves them by what the border repeats.
    ratio = flow.mean((1, 2)) / expected.mean((1, 2))
    assert torch.allclose(ratio, torch.tensor([1.25, 1.25]), atol=0.05)


def test_weights_from_a_file(fourfold, room):
    torch.save(load_raft().state_dict(), room / "mine.pth")
    code, *_ = fourfold(
        "flow", "first.png", "second.png", "--iterations", 1, "--weights", "mine.pth"
    )
    assert code == 0


def test_a_large_volume_is_made_on_demand_and_said_to_be(fourfold, monkeypatch):
    monkeypatch.setattr(cli, "_MOST_VOLUME", 1000)
    words = ("flow", "first.png", "second.png", "--iterations", 1)
    code, _, warned = fourfold(*words)
    assert code == 0 and "on demand takes little" in warned
    code, _, warned = fourfold(*words, "--correlation", "all-pairs")
    assert code == 0 and "say --correlation on-demand" in warned


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("none.png", "second.png"), "A: none.png: no such file"),
        (("first.png", "none.png"), "B: none.png: no such file"),
        (("first.png", "text.png"), "B: text.png: expected an image file"),
        (("first.png", "small.png"), "B: small.png: has 24 × 20 pixels; expected 100 × 80"),
        (("small.png", "small.png"), "A: small.png: has 24 × 20 pixels; expected at least 25"),
        (("first.png", "second.png", "--weights", "huge"), "--weights: weights is 'huge'"),
        (("first.png", "second.png", "--weights", "no.pth"), "there is no such file"),
        (("first.png", "second.png", "--weights", "text.png"), "--weights: weights is 'text.png'"),
        (("first.png", "second.png", "--out", "no/a.flo"), "--out: no: no such folder"),
        (("first.png", "second.png", "--picture", "no/a.png"), "--picture: no: no such folder"),
        (("first.png", "second.png", "--out", "a.txt"), "expected a name that ends in .flo"),
        (("first.png", "second.png", "--picture", "a.gif"), "expected a name that ends in .png"),
        (("first.png", "second.png", "--picture", "second.png"), "is one of the images"),
        (("first.png", "second.png", "--correlation", "few"), "expected all-pairs or on-demand"),
        (("first.png", "second.png", "--height", 81), "--height: got 81, expected at most 80"),
        (("first.png", "second.png", "--height", 20), "has 25 × 20 pixels; expected at least 25"),
    ],
)
def test_a_mistake_is_one_line_exit_2_and_no_file(fourfold, room, words, message):
    before = sorted(room.iterdir())
    code, said, wrong = fourfold("flow", *words)
    assert (code, said) == (2, "")
    assert message in wrong and len(wrong.strip().splitlines()) == 1
    assert sorted(room.iterdir()) == before


def test_a_download_that_fails_is_one_line(fourfold, room, monkeypatch):
    from fourfold.raft import raft

    monkeypatch.setenv("XDG_CACHE_HOME", str(room / "cache"))
    monkeypatch.setattr(raft, "_URL", "http://127.0.0.1:9/{name}-{digits}.pth")
    words = ("flow", "first.png", "second.png", "--weights", "raft_small_C_T_V2")
    code, _, wrong = fourfold(*words)
    assert code == 2 and "cannot be reached" in wrong and len(wrong.strip().splitlines()) == 1


def test_help_says_what_it_does(fourfold):
    code, said, _ = fourfold("flow", "--help")
    assert code == 0 and "--picture" in said and len(said.split()) > 15
