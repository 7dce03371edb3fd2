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


def _as_setting(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    main()
