"""Run lessons headless, keep their outputs, measure their cost."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from fourfold.course import pair
from fourfold.course.errors import CourseError
from fourfold.course.files import House, write_whole
from fourfold.course.lesson import Lesson, code_digest

__all__ = ["Cost", "interruptible", "record", "run", "save"]

WIDGET = "application/vnd.jupyter.widget-view+json"
COLUMNS = ("lesson", "seconds", "peak_ram_mib", "peak_vram_mib")
# Run in the lesson's own process after its last cell: the system keeps the peak, we only read it.
READ_PEAKS = """\
import json, sys
try:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ram = peak / (2**20 if sys.platform == "darwin" else 2**10)
except ImportError:
    import psutil
    ram = psutil.Process().memory_info().peak_wset / 2**20
torch = sys.modules.get("torch")
vram = torch.cuda.max_memory_allocated() / 2**20 if torch and torch.cuda.is_available() else 0.0
print(json.dumps([ram, vram]))
"""


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Ctrl-C inside, remembered; the function it gives raises KeyboardInterrupt if there was one.

    Python prints and drops what is raised while it clears an object away, a KeyboardInterrupt
    too. So a long loop that must not miss one asks again.
    """
    heard = False

    def hear(*_: object) -> None:
        nonlocal heard
        heard = True
        raise KeyboardInterrupt

    def ask() -> None:
        if heard:
            raise KeyboardInterrupt

    # Where Ctrl-C is ignored, as in the background, it stays so.
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:
        signal.signal(signal.SIGINT, hear)
    try:
        yield ask
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Cost:
    """What one run of a lesson took: wall seconds, and peak memory in MiB."""

    seconds: float
    peak_ram_mib: float
    peak_vram_mib: float


def run(
    house: House,
    lesson: Lesson,
    *,
    scale: str = "cpu",
    timeout: float = 600.0,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[NotebookNode, Cost]:
    """Run a lesson from top to bottom in a fresh kernel.

    Args:
        scale: "cpu" or "gpu"; the lesson sees it as `FOURFOLD_SCALE`.
        timeout: seconds that one cell may take.
        tick: called as `tick(cells done, cells in all)`.

    Returns:
        the executed notebook, and what the run cost.

    Raises:
        CourseError: a cell raised, timed out or lost its kernel; the message says which and why.
    """
    notebook = pair.pair((house.chapters / f"{lesson.key}.py").read_text(encoding="utf-8"))
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(house.chapters / lesson.chapter)}},
    )
    total, start = len(notebook.cells), time.perf_counter()
    # What the kernel's process says beside the notebook, as when it is stopped, is for nobody.
    environment = os.environ | {"FOURFOLD_SCALE": scale}
    with client.setup_kernel(env=environment, stderr=subprocess.DEVNULL):
        for index, cell in enumerate(list(notebook.cells)):
            _execute(client, lesson, cell, index)
            tick(index + 1, total)
        seconds = time.perf_counter() - start
        ram, vram = _peaks(client, notebook)
    _tidy(notebook)
    sources = [cell.source for cell in lesson.code]
    notebook.metadata[pair.STAMP]["executed"] = code_digest(sources)
    return notebook, Cost(seconds, ram, vram)


def _execute(client: NotebookClient, lesson: Lesson, cell: NotebookNode, index: int) -> None:
    try:
        client.execute_cell(cell, index)
    except CellExecutionError as error:
        message = " ".join(f"{error.ename}: {error.evalue}".split())
        raise CourseError(f"{lesson.key}, cell {index + 1}: {message}") from error
    except (CellTimeoutError, DeadKernelError) as error:
        raise CourseError(
            f"{lesson.key}, cell {index + 1}: {str(error).splitlines()[0]}"
        ) from error


def _peaks(client: NotebookClient, notebook: NotebookNode) -> tuple[float, float]:
    """Peak memory of the lesson's process, in MiB of RAM and of GPU memory."""
    probe = nbformat.v4.new_code_cell(READ_PEAKS)
    notebook.cells.append(probe)
    client.execute_cell(probe, len(notebook.cells) - 1)
    notebook.cells.pop()
    ram, vram = json.loads(probe.outputs[0].text)
    return ram, vram


def _tidy(notebook: NotebookNode) -> None:
    """Leave only what another run would print too: no widget handles, streams in one piece."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)
            cell.outputs = _merged([o for o in cell.outputs if WIDGET not in o.get("data", {})])


def _merged(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Printed text arrives in pieces whose borders depend on timing: one piece per stream."""
    merged: list[NotebookNode] = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if output.output_type == "stream" and output.name == last.get("name"):
            last.text += output.text
        else:
            merged.append(output)
    return merged


def save(house: House, lesson: Lesson, notebook: NotebookNode) -> None:
    """Keep an executed notebook as the pair of its lesson."""
    write_whole(house.chapters / f"{lesson.key}.ipynb", pair.to_json(notebook))


def record(house: House, costs: dict[str, Cost], scale: str) -> None:
    """Write costs, by lesson key, into the measured table; other lessons' rows stay."""
    path = house.measured(scale)
    rows: dict[str, dict[str, object]] = {}
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            rows = {row["lesson"]: row for row in csv.DictReader(file)}
    for key, cost in costs.items():
        figures = (
            key,
            f"{cost.seconds:.1f}",
            f"{cost.peak_ram_mib:.0f}",
            f"{cost.peak_vram_mib:.0f}",
        )
        rows[key] = dict(zip(COLUMNS, figures, strict=True))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[key] for key in sorted(rows))
    write_whole(path, text.getvalue())
