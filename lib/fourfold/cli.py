"""The `fourfold` command. Each verb imports what it needs when it is called."""

from __future__ import annotations

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
    except KeyboardInterrupt:
        typer.echo("fourfold: stopped", err=True)
        raise SystemExit(130) from None


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

    from tqdm import tqdm

    from fourfold.course import execute
    from fourfold.course.errors import CourseError
    from fourfold.course.files import House
    from fourfold.course.lesson import select

    scale = scale or os.environ.get("FOURFOLD_SCALE") or "cpu"
    if scale not in ("cpu", "gpu"):
        raise CourseError(f"--scale: got {scale!r}, expected cpu or gpu")
    house, costs, failures = House.here(), {}, []
    for lesson in select(house, names or []):
        with tqdm(total=len(lesson.cells), desc=lesson.key, unit="cell", leave=False) as bar:

            def tick(done: int, total: int, bar=bar) -> None:
                bar.update(done - bar.n)

            try:
                notebook, cost = execute.run(house, lesson, scale=scale, tick=tick)
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
    raise typer.Exit(1 if failures else 0)
