"""The `fourfold` command. Each verb imports what it needs when it is called."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Fourfold: four papers taken apart and rebuilt, each told four ways.\n\n"
    "New here? `fourfold lab` opens the first lesson in JupyterLab, in a workspace of your own.\n"
    "A chapter or lesson is named as you like: 6_bilinear_sampling, 6, sampling, 6/1, or a path.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Chapters or lessons; all of them when left out."),
]


def main() -> None:
    """Run the command; a mistake that the user can mend is one line and exit code 2."""
    from fourfold.course.errors import CourseError

    try:
        app()
    except CourseError as error:
        typer.echo(f"fourfold: {error}", err=True)
        raise SystemExit(2) from None
    except OSError as error:
        typer.echo(f"fourfold: {error.filename}: {error.strerror}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        typer.echo("fourfold: stopped", err=True)
        raise SystemExit(130) from None


Folder = Annotated[
    Path | None,
    typer.Option(
        "--in", help="The folder; when left out, this one if `start` filled it, else workspace/."
    ),
]


@app.command()
def lab(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[LESSON]", help="Where to begin; lesson one if left out."),
    ] = None,
    folder: Folder = None,
    browser: Annotated[
        bool, typer.Option(help="Open a browser window, or only print the URL.")
    ] = True,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The first port to try.")] = 8888,
) -> None:
    """Open the course in JupyterLab, in a workspace where you can change anything."""
    import subprocess

    from fourfold.course.errors import CourseError
    from fourfold.course.files import House
    from fourfold.course.lab import lab_command, lab_environment
    from fourfold.course.lesson import lessons, select
    from fourfold.course.workspace import start as fill
    from fourfold.course.workspace import workspace_here

    house = House.here()
    every = lessons(house)
    if not every:
        raise CourseError("chapters/ holds no lesson yet; `fourfold new` writes one")
    first = (select(house, [name]) if name else every)[0]
    place = folder or workspace_here(house)
    fill(house, place, every)
    command = lab_command(place, first.key, browser=browser, port=port)
    typer.echo(f"opening {first.key} in {place}; stop with Ctrl-C")
    raise typer.Exit(subprocess.run(command, check=False, env=lab_environment()).returncode)


@app.command()
def doctor() -> None:
    """Look whether this machine has all that the course needs; say the fix where not."""
    from fourfold.course.doctor import examine

    findings = list(examine())
    for finding in findings:
        typer.echo(str(finding))
    missing = [finding.need for finding in findings if not finding.ok]
    typer.echo(f"\nmissing: {', '.join(missing)}" if missing else "\nready")
    raise typer.Exit(1 if missing else 0)


@app.command()
def start(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="The folder; the course's workspace/ if left out."),
    ] = None,
    chapter: Annotated[
        list[str] | None, typer.Option(help="A chapter or lesson to copy; repeat for more.")
    ] = None,
) -> None:
    """Copy lessons and their exercises into a folder of your own; your edits there are kept."""
    from fourfold.course.errors import CourseError
    from fourfold.course.files import House
    from fourfold.course.lesson import lessons, matching, select
    from fourfold.course.workspace import start as fill

    house = House.here()
    place = folder or house.workspace
    if folder and not folder.exists():
        with contextlib.suppress(CourseError):
            matching(str(folder), [lesson.key for lesson in lessons(house)])
            typer.echo(f"fourfold: DIR: {folder} names a lesson; say --chapter {folder}", err=True)
            raise typer.Exit(2)
    said = {
        "new": "new      ",
        "renewed": "renewed  ",
        "yours": "kept     ",
        "beside": "beside   ",
        "as it was": "as it was",
    }
    for written in fill(house, place, select(house, chapter or [])):
        note = ""
        if written.outcome == "yours":
            note = "  (your edits; the course's version has not changed)"
        if written.outcome == "beside":
            note = (
                "  (you and the course both changed it: this is the course's, yours is untouched)"
            )
        typer.echo(f"{said[written.outcome]} {written.path}{note}")


@app.command()
def check(names: Names = None, folder: Folder = None) -> None:
    """Check your exercises: a tick, or the first thing that does not hold, for each."""
    import os

    from fourfold.course.exercises import exercises, judge
    from fourfold.course.files import House
    from fourfold.course.lesson import select
    from fourfold.course.workspace import reader_cells, workspace_here

    os.environ.setdefault("MPLBACKEND", "Agg")
    house = House.here()
    place, failed = folder or workspace_here(house), 0
    for lesson in select(house, names or []):
        if not (found := exercises(lesson)):
            continue
        typer.echo(lesson.key)
        cells = reader_cells(place, lesson)
        for exercise in found:
            wrong = judge(lesson, exercise, cells)
            failed += wrong is not None
            typer.echo(f"  ✗ {exercise.title}: {wrong}" if wrong else f"  ✓ {exercise.title}")
    raise typer.Exit(1 if failed else 0)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="CHAPTER/LESSON, such as 6_bilinear_sampling/4_x.")],
    title: Annotated[str, typer.Option(help="The lesson's title.")] = "A new lesson",
) -> None:
    """Begin a new lesson from a template that already builds, runs and passes."""
    from fourfold.course.files import House
    from fourfold.course.new import new_lesson

    house = House.here()
    path = new_lesson(house, name, title)
    typer.echo(f"wrote {house.name(path)}; then: fourfold build {name}, fourfold run {name} --save")


@app.command()
def build(
    names: Names = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; show what is stale; exit 1 if any.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write over files that were edited by hand.")
    ] = False,
) -> None:
    """Promote the lessons: write the library's modules, the notebooks and the README's map."""
    from fourfold.course import build as builder
    from fourfold.course.files import House
    from fourfold.course.lesson import select

    house = House.here()
    if check:
        findings = builder.check(house)
        typer.echo("\n\n".join(findings) if findings else "all that is generated is up to date")
        raise typer.Exit(1 if findings else 0)
    written = builder.build(house, select(house, names or []), force=force)
    for path in written:
        typer.echo(f"wrote {house.name(path)}" if path.exists() else f"removed {house.name(path)}")
    if not written:
        typer.echo("all that is generated is up to date")


def _torch_sees_a_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@app.command()
def run(
    names: Names = None,
    scale: Annotated[
        str | None, typer.Option(help="cpu or gpu; FOURFOLD_SCALE, or cpu, when left out.")
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Keep the outputs in the course's notebooks.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Record seconds and peak memory in data/results/."),
    ] = False,
) -> None:
    """Run lessons from top to bottom without a browser, with a progress bar."""
    import os
    import sys

    from tqdm import tqdm

    from fourfold.course import build as builder
    from fourfold.course import execute
    from fourfold.course.errors import CourseError
    from fourfold.course.files import House
    from fourfold.course.lesson import select

    named = "--scale" if scale else "FOURFOLD_SCALE"
    scale = scale or os.environ.get("FOURFOLD_SCALE") or "cpu"
    if scale not in ("cpu", "gpu"):
        raise CourseError(f"{named}: got {scale!r}, expected cpu or gpu")
    if scale == "gpu" and not _torch_sees_a_gpu():
        raise CourseError(f"{named}: torch sees no GPU; expected one, or cpu")
    house, costs, failures = House.here(), {}, []
    for lesson in select(house, names or []):
        with (
            tqdm(total=len(lesson.cells), desc=lesson.key, unit="cell", leave=False) as bar,
            execute.interruptible() as ask,
        ):

            def tick(done: int, total: int, bar=bar, ask=ask) -> None:
                bar.update(done - bar.n)
                ask()

            try:
                notebook, cost = execute.run(house, lesson, scale=scale, tick=tick)
            except KeyboardInterrupt:
                tqdm.write(f"fourfold: stopped; nothing of {lesson.key} was kept", file=sys.stderr)
                raise typer.Exit(130) from None
            except CourseError as error:
                failures.append(str(error))
                tqdm.write(f"failed  {error}")
                continue
        typer.echo(f"{lesson.key}: {cost.seconds:.1f} s, peak {cost.peak_ram_mib:.0f} MiB")
        costs[lesson.key] = cost
        if save:
            execute.save(house, lesson, notebook)
    if measure and costs:
        execute.record(house, costs, scale)
        builder.build(house, [])  # the README's map shows what was measured
    raise typer.Exit(1 if failures else 0)


@app.command()
def train(
    chapter: Annotated[str, typer.Argument(metavar="CHAPTER", help="Such as raft, or 4_raft.")],
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after so many minutes, with a checkpoint.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps in all; those of the recipe if left out."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="One of the chapter's recipes; its first when left out.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="The run's folder; runs/ and the chapter when left out.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of all random numbers.")] = 0,
    start: Annotated[
        Path | None, typer.Option(help="Weights to begin with; random ones when left out.")
    ] = None,
) -> None:
    """Train a chapter's model for longer than a lesson can; offline, and resumable.

    The same command goes on where the last one stopped.
    """
    from fourfold.course.errors import CourseError

    name, trainer = _trainer(chapter)
    options = {"recipe": recipe, "start": start}
    options = {option: value for option, value in options.items() if value is not None}
    place = folder or Path("runs") / name
    try:
        done = trainer(place, minutes=minutes, steps=steps, seed=seed, **options)
    # The sentence of each of these names the argument.
    except (ValueError, FloatingPointError, FileNotFoundError) as error:
        raise CourseError(str(error)) from None
    typer.echo(f"{done.done} of {done.steps} steps; weights in {done.weights}")
    for what, value in done.metrics.items():
        typer.echo(f"{what}: {value:.3f}")
    if done.done < done.steps:
        typer.echo("the same command goes on from here")


def _trainer(chapter: str):
    """The package that a reader means, and its `train_course`, with which a chapter adds itself."""
    from importlib import import_module

    from fourfold.course.errors import CourseError
    from fourfold.course.files import House
    from fourfold.course.lesson import lessons, matching

    found = matching(chapter, [lesson.key for lesson in lessons(House.here())])
    name = found[0].split("/")[0].split("_", 1)[1]
    try:
        return name, import_module(f"fourfold.{name}").train_course
    except (ModuleNotFoundError, AttributeError):
        raise CourseError(f"CHAPTER: got {chapter!r}; {name} has nothing to train") from None


@app.command()
def review(
    draft: Annotated[
        Path | None,
        typer.Argument(metavar="DRAFT", help="The main file of a draft, .tex or .md."),
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option(help="Hold it against this rule only; repeat for more.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A threshold, such as works=5-30."),
    ] = None,
    section: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART=TITLE", help="What a section is called, such as method='Our gadget'."
        ),
    ] = None,
    rules: Annotated[
        bool, typer.Option("--rules", help="List the rules with their thresholds, and stop.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line for each finding.")
    ] = False,
) -> None:
    """Review a paper draft: what it lacks, with file and line.

    The exit code is 0 for a clean draft, 1 for findings, 2 for a draft that cannot be read.
    """
    import json
    from dataclasses import replace

    from fourfold.course.errors import CourseError
    from fourfold.kit.drafts import DraftError, Place, read_draft
    from fourfold.kit.settings import parse_settings, section_titles
    from fourfold.paper_writing import anatomy

    if rules:
        for name, function in anatomy.RULES.items():
            typer.echo(f"{name:16}{(function.__doc__ or '').splitlines()[0]}")
            for threshold, default in anatomy.rule_thresholds({name: function}).items():
                typer.echo(f"{'':16}--set {threshold}={_as_setting(default)}")
        return
    if draft is None:
        raise CourseError("DRAFT: none given; expected the main file of a draft, .tex or .md")
    folder = "" if draft.parent == Path() else f"{draft.parent.as_posix().rstrip('/')}/"
    try:
        paper = read_draft(draft)
        headings = [heading.title for heading in paper.sections]
        found = anatomy.review(
            paper,
            rule or anatomy.RULES,
            anatomy.TITLES | section_titles(section or [], anatomy.TITLES, headings),
            **parse_settings(settings or [], anatomy.rule_thresholds()),
        )
    except DraftError as error:  # it begins with the file, named from the draft's folder
        raise CourseError(f"{folder}{error}") from None
    except ValueError as error:
        raise CourseError(str(error)) from None
    moved = [replace(f, place=Place(folder + f.place.file, f.place.line)) for f in found]
    if as_json:
        for finding in moved:
            line = vars(finding) | finding.place._asdict() | {"place": str(finding.place)}
            typer.echo(json.dumps(line, ensure_ascii=False))
    else:
        typer.echo(str(anatomy.Review(paper, tuple(moved))))
    raise typer.Exit(1 if len(found) else 0)


@app.command()
def flow(
    first: Annotated[Path, typer.Argument(metavar="A", help="The first image.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The second, of the same size.")],
    weights: Annotated[
        str,
        typer.Option(
            help="course, a file (.safetensors, .pth), or a published set such as "
            "raft_large_C_T_SKHT_V2, which is downloaded once and verified."
        ),
    ] = "course",
    out: Annotated[
        Path | None, typer.Option(help="The flow in pixels, a .flo file; A.flo here if left out.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="The picture, .png or .jpg; A_flow.png here if left out.")
    ] = None,
    iterations: Annotated[int, typer.Option(min=1, help="How often the flow is updated.")] = 20,
    correlation: Annotated[
        str | None,
        typer.Option(help="all-pairs or on-demand; on-demand for large images only when left out."),
    ] = None,
    height: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Estimate on images shrunk to this height and enlarge the flow: the way for "
            "motion that is longer than the weights have learned.",
        ),
    ] = None,
) -> None:
    """Estimate the motion between two images of your own, and draw it.

    The course's weights learned motions of up to 36 pixels; --height makes longer ones short.
    """
    import time

    from fourfold.course.errors import CourseError

    out = out or Path(f"{first.stem}.flo")
    picture = picture or Path(f"{first.stem}_flow.png")
    _check_flow_files(first, second, out, picture, correlation)

    from fourfold.kit.flow_picture import save_flow_picture
    from fourfold.raft.fields import write_flo
    from fourfold.raft.raft import load_raft, volume_bytes

    image1, image2 = _read_pair(first, second)
    try:
        model = load_raft(weights)
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        raise CourseError(f"--weights: {error}") from None
    small1, small2 = _shrunk(image1, height), _shrunk(image2, height)
    H, W = small1.shape[2:]
    _check_flow_size(first, H, W, model.levels)
    needed = volume_bytes(H, W, model.levels)
    model.correlation = correlation or ("on-demand" if needed > _MOST_VOLUME else "all-pairs")
    if needed > _MOST_VOLUME:
        typer.echo(
            f"all pairs of pixels would take {needed / 1e9:.1f} GB; "
            + ("on demand" if model.correlation == "on-demand" else "say --correlation on-demand")
            + " takes little, and more time",
            err=True,
        )
    began = time.perf_counter()
    estimated = _enlarged(model.estimate(small1, small2, iterations).full, image1.shape[2:])
    seconds = time.perf_counter() - began
    write_flo(out, estimated)
    save_flow_picture(picture, image1, estimated)
    motion = estimated.norm(dim=1)
    typer.echo(f"{W} × {H} pixels, {iterations} iterations: {seconds:.1f} s")
    typer.echo(f"motion: mean {motion.mean():.2f} px, largest {motion.max():.2f} px")
    typer.echo(f"wrote {out} and {picture}")


def _shrunk(image, height: int | None):
    from fourfold.course.errors import CourseError
    from fourfold.kit.images import area_average

    if height is None or height == image.shape[2]:
        return image
    if height > image.shape[2]:
        raise CourseError(f"--height: got {height}, expected at most {image.shape[2]}, A's height")
    return area_average(image, height)


def _enlarged(flow, size):
    """The flow on a grid of `size`, and its vectors in pixels of that grid."""
    from torch.nn.functional import interpolate

    if flow.shape[2:] == size:
        return flow
    scale = [new / old for new, old in zip(size, flow.shape[2:], strict=True)]
    enlarged = interpolate(flow, size=size, mode="bilinear", align_corners=False)
    return enlarged * flow.new_tensor(scale[::-1])[:, None, None]


_MOST_VOLUME = 2e9  # bytes of correlations, beyond which they are made on demand


def _check_flow_files(
    first: Path, second: Path, out: Path, picture: Path, correlation: str | None
) -> None:
    """Raises CourseError for what can be known to fail before anything is loaded or computed."""
    from fourfold.course.errors import CourseError

    for name, image in (("A", first), ("B", second)):
        if not image.is_file():
            raise CourseError(f"{name}: {image}: no such file; expected an image")
    for name, path, endings in (
        ("--out", out, (".flo",)),
        ("--picture", picture, (".png", ".jpg", ".jpeg")),
    ):
        if path.suffix.lower() not in endings:
            raise CourseError(f"{name}: got {path}, expected a name that ends in {endings[0]}")
        if not path.parent.is_dir():
            raise CourseError(f"{name}: {path.parent}: no such folder")
        if path.is_dir():
            raise CourseError(f"{name}: {path} is a folder; expected a file")
        if path.exists() and any(path.samefile(image) for image in (first, second)):
            raise CourseError(f"{name}: {path} is one of the images; expected another name")
    if correlation not in (None, "all-pairs", "on-demand"):
        raise CourseError(f"--correlation: got {correlation!r}, expected all-pairs or on-demand")


def _read_pair(first: Path, second: Path) -> list:
    from fourfold.course.errors import CourseError
    from fourfold.kit.images import read_image

    images = []
    for name, path in (("A", first), ("B", second)):
        try:
            images.append(read_image(path))
        except ValueError as error:
            said = " ".join(str(error).split()).removeprefix(f"path is {str(path)!r}; ")
            raise CourseError(f"{name}: {path}: {said}") from None
    sizes = [f"{image.shape[3]} × {image.shape[2]}" for image in images]
    if sizes[0] != sizes[1]:
        raise CourseError(f"B: {second}: has {sizes[1]} pixels; expected {sizes[0]}, as A has")
    return images


def _check_flow_size(path: Path, height: int, width: int, levels: int) -> None:
    from fourfold.course.errors import CourseError
    from fourfold.raft.raft import least_size

    # Up to 7 pixels of border are added to a side.
    if min(height, width) + 7 < (least := least_size(levels)):
        raise CourseError(
            f"A: {path}: has {width} × {height} pixels; "
            f"expected at least {least - 7} each way for these weights"
        )


@app.command()
def track(
    video: Annotated[
        Path, typer.Argument(metavar="VIDEO", help="A video file, a .gif or a folder of frames.")
    ],
    grid: Annotated[
        int | None, typer.Option(min=1, help="Points a side of a grid; 20 without --points.")
    ] = None,
    points: Annotated[
        str | None, typer.Option(help='Points in pixels of the video instead: "x,y;x,y".')
    ] = None,
    frame: Annotated[
        int, typer.Option(min=0, help="The frame they are in, counted from --start.")
    ] = 0,
    weights: Annotated[
        str, typer.Option(help="course, or a file (.safetensors, .pth, .pt).")
    ] = "course",
    out: Annotated[Path, typer.Option(help="The tracks, an .npz file.")] = Path("tracks.npz"),
    picture: Annotated[
        Path | None, typer.Option(help="A picture too: .png, .jpg, or a film, .gif or .mp4.")
    ] = None,
    start: Annotated[int, typer.Option(min=0, help="The first frame to read.")] = 0,
    frames: Annotated[int | None, typer.Option(min=1, help="Read at most so many.")] = None,
    height: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Average the frames down to this height first: for large videos, whose detail "
            "would be lost otherwise, and for small pictures. Tracks stay in pixels of the video.",
        ),
    ] = None,
    backward: Annotated[
        bool, typer.Option("--backward", help="Find what lies before --frame as well.")
    ] = False,
    online: Annotated[
        bool, typer.Option("--online", help="In memory that does not grow with the video.")
    ] = False,
    palindrome: Annotated[
        bool,
        typer.Option(
            "--palindrome",
            help="Play the video to its end and back, and say how far from their start the points "
            "end: a test that needs no truth. A picture shows the way there.",
        ),
    ] = False,
    together: Annotated[
        int | None, typer.Option(min=1, help="Most points tracked jointly; all when left out.")
    ] = None,
    iterations: Annotated[int, typer.Option(min=1, help="Updates of each window.")] = 6,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.999,
            help="Visibility above which a point is called visible; 0.5 for the course's weights, "
            "the release's rule for others.",
        ),
    ] = None,
) -> None:
    """Track points through a video of your own; write where they are, and draw them.

    The .npz holds points (T, N, 2) as (x, y) in pixels of the video, visibility (T, N), for some
    weights confidence, queries (N, 3) as (row of points, x, y), and frames, their numbers in the
    video, with --palindrome up and down again. One frame of the video is in memory at a time.
    """
    import time

    from fourfold.course.errors import CourseError

    _check_track_files(video, out, picture)
    places = None if points is None else _parsed_points(points)
    if points is not None and grid is not None:
        raise CourseError("--grid and --points: both given; expected one of them")
    for name, other, both in (
        ("--online", "--backward", online and backward),
        ("--online", "--together", online and together),
        ("--palindrome", "--online", palindrome and online),
        ("--palindrome", "--backward", palindrome and backward),
    ):
        if both:
            raise CourseError(f"{name} and {other}: both given; expected one of them")

    from fourfold.cotracker.predictor import at_frame, grid_points, resize_points
    from fourfold.kit.track_picture import save_track_picture

    film = _Film(video, start, frames, height)
    film.look()
    model = _load_tracker(weights, online)
    import torch

    if places is None:
        # The grid is even on the frames that the model sees.
        inside = grid_points(grid or 20, model.sizes.resolution)
        asked = resize_points(inside, model.sizes.resolution, film.read_size)
        asked = film.to_video(asked)
    else:
        asked = torch.tensor(places)
        _check_places(asked, film.size)
    if frame >= film.count:
        raise CourseError(
            f"--frame: got {frame}, expected at most {film.count - 1}, the last frame"
        )
    if palindrome:
        _check_turn(video, frame, film.count)
    queries = at_frame(float(frame), asked)
    read = at_frame(float(frame), film.to_read(asked))
    began = time.perf_counter()
    options = {"support": 0 if places is None else 6, "iterations": iterations}
    try:
        if online:
            tracks = _tracked_online(model, film, read, **options)
        else:
            options |= {"backward": backward, "palindrome": palindrome, "together": together}
            tracks = _tracked(model, film, read, **options)
    except ValueError as error:
        said = str(error).replace("together=", "--together ")
        if palindrome and said.startswith("video has"):
            said = said.replace("video has", "video, there and back, has")
        named = (
            f"VIDEO: {video}" if said.startswith("video") else "--points" if points else "--grid"
        )
        raise CourseError(f"{named}: {said}") from None
    seconds = time.perf_counter() - began
    if threshold is None and weights == "course":
        threshold = 0.5
    visible = _visible(tracks, threshold, online)
    found = film.to_video(tracks.points[0])
    if not online:
        found[frame, torch.arange(len(asked))] = asked  # without the rounding of the way back
    _write_tracks(out, tracks._replace(points=found[None]), queries, film, palindrome)
    typer.echo(
        f"{film.count} frames of {film.size[1]} × {film.size[0]} pixels, {len(asked)} points"
        f"{', there and back' if palindrome else ''}: {seconds:.1f} s"
    )
    last, turn = film.count - 1, " before the way back" if palindrome else ""
    typer.echo(
        f"{int(visible[last].sum())} of {len(asked)} points are visible in the last frame{turn}"
    )
    if palindrome:
        _say_how_far_from_home(found[frame : 2 * last - frame + 1])
    if picture is not None:
        there = slice(film.count)
        save_track_picture(picture, film.frames(), tracks.points[0, there], visible[there])
    typer.echo(f"wrote {out}" + ("" if picture is None else f" and {picture}"))


class _Film:
    """The frames of a video that a command reads, as often as it needs them, one at a time."""

    def __init__(self, path: Path, start: int, count: int | None, height: int | None) -> None:
        self.path, self.start, self.most, self.height = path, start, count, height

    def frames(self):
        from fourfold.kit.video import video_frames

        return video_frames(self.path, start=self.start, frames=self.most, height=self.height)

    def look(self) -> None:
        """Read all frames once, so that a damaged one is found before anything is computed."""
        from fourfold.course.errors import CourseError
        from fourfold.kit.video import video_frames

        try:
            first = next(video_frames(self.path, start=self.start))
            self.size = tuple(first.shape[1:])
            self.count = 0
            for frame in self.frames():
                self.count += 1
                self.read_size = tuple(frame.shape[1:])
        except (ValueError, ModuleNotFoundError, FileNotFoundError) as error:
            said = " ".join(str(error).split()).removeprefix(f"path is {str(self.path)!r}")
            for name in ("height", "start"):
                if said.startswith(f"{name} is "):
                    raise CourseError(f"--{name}: {said}") from None
            raise CourseError(f"VIDEO: {self.path}: {said.lstrip('; ,')}") from None

    def to_read(self, points):
        """Points of the video in pixels of the frames as they are read, averaged down or not."""
        return _averaged_places(points, self.size, self.read_size)

    def to_video(self, points):
        return _averaged_places(points, self.read_size, self.size)


def _averaged_places(points, old: tuple[int, int], new: tuple[int, int]):
    """Where points are when areas of pixels are averaged: the edges of the picture stay."""
    if old == new:
        return points.clone()
    factors = points.new_tensor([new[1] / old[1], new[0] / old[0]])
    return (points + 0.5) * factors - 0.5


def _tracked(
    model, film: _Film, queries, *, iterations: int, backward: bool, palindrome: bool, **options
):
    from fourfold.cotracker.predictor import Predictor
    from fourfold.kit.notebook import progress_bar

    predictor = Predictor(model, iterations=iterations)
    count = 2 * film.count - 1 if palindrome else film.count
    predictor.check(count, film.read_size, queries[None], **options)
    with progress_bar(film.count, 0, unit="frame", shown=True) as bar:
        bar.set_description("reading")
        encoded = predictor.encode(film.frames(), bar.update)
    encoded = _there_and_back(encoded) if palindrome else encoded
    return predictor(encoded, queries[None], backward=backward, progress=True, **options)


def _there_and_back(video):
    """An encoded video with its reverse behind it, the last frame once; features are shared."""
    import torch

    from fourfold.cotracker.predictor import EncodedVideo

    class Palindrome(EncodedVideo):
        def rows(self, reverse: bool = False):
            rows = video.rows()
            return torch.cat([rows, rows[:, :-1].flip(1)], dim=1)  # its own reverse

    return Palindrome(video.levels, video.batch, 2 * video.frames - 1, video.size)


def _say_how_far_from_home(points) -> None:
    """The palindrome error of tracks (T, N, 2) that end where they began, and how far they went."""
    away = (points - points[0]).norm(dim=-1)
    home, extent = away[-1], away.amax(dim=0)
    typer.echo(
        f"palindrome: points end {home.quantile(0.5):.2f} px from where they started (median; 90th "
        f"percentile {home.quantile(0.9):.2f} px)"
    )
    typer.echo(
        f"in between they were up to {extent.quantile(0.5):.2f} px away (median); a point that is "
        "said to stay put comes home too"
    )


def _tracked_online(model, film: _Film, queries, **options):
    """The tracks of all frames, gathered as they become final; at its query a point is moved."""
    from fourfold.cotracker.predictor import OnlinePredictor, join_in_time
    from fourfold.kit.notebook import progress_bar

    online = OnlinePredictor(model, queries, **options)
    told = []
    with progress_bar(film.count, 0, unit="frame", shown=True) as bar:
        for frame in film.frames():
            told.append(online.push(frame[None].float()))
            bar.update(1)
    told.append(online.finish())
    return join_in_time([tracks for tracks in told if tracks is not None])


def _visible(tracks, threshold: float | None, online: bool):
    """Which points (T, N) are called visible."""
    from fourfold.cotracker.predictor import released_visible

    if threshold is None:
        return released_visible(tracks, online=online)[0]
    return tracks.visible(threshold)[0]


def _load_tracker(weights: str, online: bool):
    from fourfold.cotracker.cotracker import load_cotracker
    from fourfold.course.errors import CourseError

    try:
        return load_cotracker(weights, mode="online" if online else "offline")
    except (ValueError, FileNotFoundError) as error:
        raise CourseError(f"--weights: {error}") from None


def _check_track_files(video: Path, out: Path, picture: Path | None) -> None:
    """Raises CourseError for what can be known to fail before anything is loaded or computed."""
    from importlib.util import find_spec

    from fourfold.course.errors import CourseError

    if not video.exists():
        raise CourseError(f"VIDEO: {video}: no such file or folder; expected a video")
    films = (".png", ".jpg", ".jpeg", ".gif", ".mp4")
    for name, path, endings in (("--out", out, (".npz",)), ("--picture", picture, films)):
        if path is None:
            continue
        if path.suffix.lower() not in endings:
            raise CourseError(
                f"{name}: got {path}, expected a name that ends in {', '.join(endings)}"
            )
        if not path.parent.is_dir():
            raise CourseError(f"{name}: {path.parent}: no such folder")
        if path.is_dir():
            raise CourseError(f"{name}: {path} is a folder; expected a file")
        if path.exists() and path.samefile(video):
            raise CourseError(f"{name}: {path} is the video; expected another name")
        if video.is_dir() and path.suffix != ".npz" and path.parent.samefile(video):
            raise CourseError(f"{name}: {path} would lie among the frames; expected another folder")
    if picture is not None and picture.suffix.lower() == ".mp4" and find_spec("av") is None:
        raise CourseError(
            f'--picture: {picture} needs the package av: pip install "fourfold[video]"; expected '
            "it, or a .gif"
        )


def _parsed_points(text: str) -> list[tuple[float, float]]:
    from fourfold.course.errors import CourseError

    try:
        places = [tuple(map(float, pair.split(","))) for pair in text.strip(" ;").split(";")]
        if all(len(pair) == 2 for pair in places):
            return places
    except ValueError:
        pass
    raise CourseError(f'--points: got {text!r}, expected x,y;x,y such as "120,64;30.5,80"')


def _check_places(places, size: tuple[int, int]) -> None:
    from fourfold.course.errors import CourseError

    H, W = size
    for x, y in places.tolist():
        if not (0 <= x <= W - 1 and 0 <= y <= H - 1):
            raise CourseError(
                f"--points: got {x:g},{y:g}, expected x from 0 to {W - 1} and y from 0 to {H - 1}"
            )


def _check_turn(video: Path, frame: int, count: int) -> None:
    """Raise for a palindrome that has turned back before it began."""
    from fourfold.course.errors import CourseError

    if count == 1:
        raise CourseError(f"VIDEO: {video}: has 1 frame; expected 2 or more with --palindrome")
    if frame == count - 1:
        raise CourseError(
            f"--frame: got {frame}, expected at most {count - 2} with --palindrome, which turns "
            "back in the last frame"
        )


def _write_tracks(path: Path, tracks, queries, film: _Film, palindrome: bool) -> None:
    """Write the arrays, whole or not at all."""
    import numpy as np

    from fourfold.course.files import whole_file

    arrays = {
        name: values[0].numpy() for name, values in tracks._asdict().items() if values is not None
    }
    arrays["queries"] = queries.numpy()
    numbers = np.arange(film.start, film.start + film.count)
    arrays["frames"] = np.concatenate([numbers, numbers[-2::-1]]) if palindrome else numbers
    with whole_file(path) as file:
        np.savez_compressed(file, **arrays)


@app.command()
def generate(
    model: Annotated[
        str, typer.Option(help="graph_dit, which draws graphs, or syco, which draws clouds.")
    ] = "graph_dit",
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A property to ask for, such as logP=2.5; repeat for more. One left out is open.",
        ),
    ] = None,
    scaffold: Annotated[
        str | None,
        typer.Option(metavar="SMILES", help="A part that each molecule holds; syco only."),
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many molecules.")] = 16,
    guidance: Annotated[
        float | None,
        typer.Option(min=0, help="How closely to follow the targets; the model's own if left out."),
    ] = None,
    atoms: Annotated[
        int | None, typer.Option(min=1, help="Atoms of each molecule; as in the data if left out.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps from noise to molecule; the model's own if left out."),
    ] = None,
    correct: Annotated[
        bool, typer.Option(help="Mend wrong valences and join pieces, or keep what is valid.")
    ] = True,
    weights: Annotated[
        str,
        typer.Option(help="qm9, or a generator that was saved; for syco also nci, a rough one."),
    ] = "qm9",
    out: Annotated[
        Path | None, typer.Option(help="Write the SMILES too: .smi, or .csv with the properties.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="A grid of the molecules, .png, .pdf or .svg.")
    ] = None,
    path: Annotated[
        Path | None,
        typer.Option(help="A picture of the first molecule's way out of the noise; syco only."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of all random numbers.")] = 0,
) -> None:
    """Generate molecules with properties that you ask for, offline, with Graph DiT or SyCo.

    Prints each molecule's SMILES with the properties it has; a graph that is no molecule, or has
    lost the scaffold, is counted, not printed.
    """
    from fourfold.course.errors import CourseError

    if model not in ("graph_dit", "syco"):
        raise CourseError(f"--model: got {model!r}, expected graph_dit or syco")
    for name, value in (("--scaffold", scaffold), ("--path", path)):
        if model != "syco" and value is not None:
            raise CourseError(f"{name}: {model} has no such thing; expected --model syco with it")
    targets = _parsed_targets(target or [])
    _check_molecule_files(out, picture, path)
    maker, measures = _molecule_maker(model, weights)
    options = {"guidance": guidance, "atoms": atoms, "steps": steps, "scaffold": scaffold}
    options = {name: value for name, value in options.items() if value is not None}
    options |= {"mode": "connect" if correct else "none", "seed": seed}
    frames: list = []
    if model == "syco":
        options |= {"target": targets}
        if path is not None:
            options["watch"] = lambda *frame: frames.append(frame)
    else:
        options |= {"targets": targets}
    made = _or_say(lambda: maker.generate(count=count, **options), default="target")
    reached = {
        name: list(measures[name](made)) for name in maker.properties.names if name in measures
    }
    _say_molecules(made, reached, targets, "are molecules that hold it" if scaffold else None)
    if out is not None:
        _write_molecules(out, made, reached, targets)
    if picture is not None:
        _draw_molecules(picture, made, reached, targets)
    if path is not None:
        there = next((row for row, smiles in enumerate(made) if smiles), 0)
        _draw_path(path, frames, maker.vocabulary, there)


@app.command()
def optimise(
    molecule: Annotated[str, typer.Argument(metavar="SMILES", help="The molecule to change.")],
    improve: Annotated[str, typer.Option(help="The property that shall grow.")] = "QED",
    similarity: Annotated[
        float, typer.Option(help="The least Tanimoto similarity to the molecule, 0 to 1.")
    ] = 0.4,
    tries: Annotated[int, typer.Option(min=1, help="How many are tried at once.")] = 64,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="How strongly to pull; as built if left out.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Strides from noise to cloud; as built if left out.")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="qm9, nci (larger molecules, rough), or a SyCo that was saved.")
    ] = "qm9",
    out: Annotated[
        Path | None, typer.Option(help="Write the SMILES too: .smi, or .csv with the properties.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="A grid of the molecules, .png, .pdf or .svg.")
    ] = None,
    path: Annotated[
        Path | None, typer.Option(help="A picture of the way of one molecule, .png, .pdf or .svg.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of all random numbers.")] = 0,
) -> None:
    """Change a molecule so that a property grows and it stays similar, offline, with SyCo.

    Prints what is better and similar enough, best first; that may be nothing.
    """
    _check_molecule_files(out, picture, path)
    maker, _ = _molecule_maker("syco", weights)
    options = {"guidance": guidance, "steps": steps}
    options = {name: value for name, value in options.items() if value is not None}
    frames: list = []
    if path is not None:
        options["watch"] = lambda *frame: frames.append(frame)
    found = _or_say(
        lambda: maker.optimise(
            molecule, improve=improve, similarity=similarity, tries=tries, seed=seed, **options
        ),
        default="molecule",
        argument="SMILES",
    )
    reached = {improve: found.value, "similarity": found.similarity}
    for smiles, value, like in zip(found.smiles, found.value, found.similarity, strict=True):
        typer.echo(f"{smiles}\t{improve} {value:.3f}\tsimilarity {like:.2f}")
    typer.echo(
        f"{len(found.smiles)} of {tries} tries are better than {improve} {found.start:.3f}, "
        f"at least {similarity:g} similar, and different from one another",
        err=True,
    )
    if out is not None:
        _write_molecules(out, found.smiles, reached, {})
    if picture is not None:
        start = {improve: [found.start, *found.value], "similarity": [1.0, *found.similarity]}
        _draw_molecules(picture, [molecule, *found.smiles], start, {})
    if path is not None:
        best = found.smiles[0] if found.smiles else None
        _draw_path(path, frames, maker.vocabulary, _row_of(best, frames, maker.vocabulary))


def _row_of(smiles: str | None, frames, vocabulary) -> int:
    """The first row that ends as this molecule; 0 where none does."""
    from fourfold.graph_dit.molecules import graphs_to_smiles

    ends = graphs_to_smiles(frames[-1][2], vocabulary)
    return ends.index(smiles) if smiles in ends else 0


def _check_molecule_files(out: Path | None, picture: Path | None, path: Path | None) -> None:
    pictures = (".png", ".pdf", ".svg")
    for name, file, endings in (
        ("--out", out, (".smi", ".csv")),
        ("--picture", picture, pictures),
        ("--path", path, pictures),
    ):
        if file is not None:
            _check_new_file(name, file, endings)


def _molecule_maker(model: str, weights: str):
    """A loaded generator, and the functions that measure its properties."""
    from fourfold.course.errors import CourseError

    try:
        if model == "syco":
            from fourfold.syco.learning import PROPERTIES, load_syco

            return load_syco(weights), PROPERTIES
        from fourfold.graph_dit.learning import ORACLES, load_generator

        return load_generator(weights), ORACLES
    except (ValueError, FileNotFoundError) as error:
        raise CourseError(f"--weights: {error}") from None


def _or_say(work, default: str, argument: str = "--molecule"):
    """Do the work; its warnings are lines, and an error of its input names the option."""
    import warnings

    from fourfold.course.errors import CourseError

    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            done = work()
    except ValueError as error:
        name = str(error).split()[0].rstrip(":")
        known = ("atoms", "steps", "scaffold", "improve", "similarity", "tries", "molecule")
        option = name if name in known else default
        option = argument if option == "molecule" else f"--{option}"
        raise CourseError(f"{option}: {error}") from None
    for warning in said:
        if issubclass(warning.category, UserWarning):
            typer.echo(f"fourfold: {warning.message}", err=True)
    return done


def _parsed_targets(texts: list[str]) -> dict[str, float | str]:
    """Targets by name; a value that is no number stays text, as a class is."""
    from fourfold.course.errors import CourseError

    targets = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise CourseError(f"--target: got {text!r}, expected NAME=VALUE, such as logP=2.5")
        if name in targets:
            raise CourseError(f"--target: {name} is given twice; expected once")
        try:
            targets[name] = float(value)
        except ValueError:
            targets[name] = value
    return targets


def _check_new_file(name: str, path: Path, endings: tuple[str, ...]) -> None:
    """Raises CourseError for a file that could not be written."""
    from fourfold.course.errors import CourseError

    if path.suffix.lower() not in endings:
        raise CourseError(f"{name}: got {path}, expected a name that ends in {', '.join(endings)}")
    if not path.parent.is_dir():
        raise CourseError(f"{name}: {path.parent}: no such folder")
    if path.is_dir():
        raise CourseError(f"{name}: {path} is a folder; expected a file")


def _say_molecules(made, reached, targets, what: str | None = None) -> None:
    for row, smiles in enumerate(made):
        if smiles is not None:
            values = (f"{name} {values[row]:.2f}" for name, values in reached.items())
            typer.echo("\t".join([smiles, *values]))
    found = [row for row, smiles in enumerate(made) if smiles is not None]
    typer.echo(f"{len(found)} of {len(made)} graphs {what or 'are molecules'}", err=True)
    for name, values in reached.items():
        if found and isinstance(targets.get(name), float):
            error = sum(abs(values[row] - targets[name]) for row in found) / len(found)
            typer.echo(f"{name}: asked {targets[name]:g}, mean error {error:.2f}", err=True)


def _write_molecules(path: Path, made, reached, targets) -> None:
    """The molecules that there are, whole or not at all."""
    import pandas as pd

    from fourfold.course.files import write_whole

    table = pd.DataFrame({"smiles": made, **reached})
    for name, value in targets.items():
        table[f"asked {name}"] = value
    table = table[table["smiles"].notna()]
    if path.suffix.lower() == ".smi":
        write_whole(
            path, "".join(f"{smiles} made_{row}\n" for row, smiles in table["smiles"].items())
        )
    else:
        write_whole(path, table.to_csv(index_label="row"))


def _draw_molecules(path: Path, made, reached, targets) -> None:
    from fourfold.course.files import whole_file
    from fourfold.kit.molecules import molecule_grid

    def legend(row: int) -> str:
        if made[row] is None:
            return "no molecule"
        lines = []
        for name, values in reached.items():
            asked = f" (asked {targets[name]:g})" if name in targets else ""
            lines.append(f"{name} {values[row]:.2f}{asked}")
        return "\n".join(lines)

    figure = molecule_grid(made, [legend(row) for row in range(len(made))], columns=4, width=8.0)
    with whole_file(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=150, bbox_inches="tight")


def _draw_path(path: Path, frames, vocabulary, row: int) -> None:
    """One molecule's way from noise, in eight pictures, with what is read off each cloud."""
    from fourfold.course.files import whole_file
    from fourfold.kit.cloud_picture import cloud_strip

    steps = []
    for t, cloud, codes in frames:
        if len(cloud.x) <= row:  # of a later batch
            break
        n = int(cloud.mask[row].sum())
        symbols = [vocabulary.atoms[code] for code in codes.atoms[row, :n].tolist()]
        steps.append((t, cloud.x[row, :n].cpu(), symbols, codes.bonds[row, :n, :n]))
    figure = cloud_strip(steps, columns=8)
    with whole_file(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=150, bbox_inches="tight")


def _as_setting(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    main()
