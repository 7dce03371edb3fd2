"""Seconds to read and to review a LaTeX draft of growing length, and broken ones of a megabyte.

Run by hand: `python tests/benchmarks/bench_review.py [--turns 5]`.
"""

import argparse
import tempfile
import time
from pathlib import Path

from fourfold.kit.drafts import read_draft
from fourfold.paper_writing.anatomy import review

DRAFTS = Path(__file__).parents[1] / "drafts"
BLOCK = (
    r"\subsection{Step} We take $x_i \in \mathbb{R}^{d}$ from \emph{all} of the data, as others do"
    r" \citex{a,b}, and write it in a form that is common to both, see \cref{eq:one}. "
    "% a remark that nobody reads\n"
    r"\be y_i = \alpha\, W x_i + \beta \label{eq:one} \ee"
    "\nMore words follow here, so that the paragraph has the length that paragraphs have in papers;"
    " they say what the symbols mean, and for example what the second one is good for.\n\n"
)
HEAD = (
    "\\newcommand{\\be}{\\begin{equation}}\\newcommand{\\ee}{\\end{equation}}\n"
    "\\newcommand{\\citex}[1]{\\citep[see][]{#1}}\n\\section{Introduction} What?\n"
)
BROKEN = {
    "open braces": "{",
    "open sections": r"\section{",
    "open options": r"\cite[",
    "open formulas": "$a ",
    "one line of words": "word ",
    "nested environments": r"\begin{itemize}\item ",
}


def best_seconds(path: Path, turns: int) -> tuple[float, float]:
    """The fastest reading and the fastest review."""
    readings, reviews = [], []
    for _ in range(turns):
        start = time.perf_counter()
        draft = read_draft(path)
        middle = time.perf_counter()
        review(draft)
        readings.append(middle - start)
        reviews.append(time.perf_counter() - middle)
    return min(readings), min(reviews)


def row(label: str, path: Path, size: int, turns: int) -> None:
    reading, reviewing = best_seconds(path, turns)
    print(f"  {label:<24}{size / 1000:>10.0f} kB{reading:>12.3f}{reviewing:>12.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5, help="how often each draft is read")
    turns = max(1, parser.parse_args().turns)
    print(f"  {'draft':<24}{'size':>13}{'read (s)':>12}{'review (s)':>12}")
    mains = (f for f in DRAFTS.glob("*/*.tex") if "documentclass" in f.read_text())
    for main_file in sorted(mains):
        size = sum(file.stat().st_size for file in main_file.parent.rglob("*.tex"))
        row(main_file.parent.name, main_file, size, turns)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "main.tex"
        for pages in (30, 60, 120, 240):
            text = HEAD + BLOCK * (pages * 4000 // len(BLOCK))
            path.write_text(text)
            row(f"{pages} pages", path, len(text), turns)
        for label, piece in BROKEN.items():
            text = piece * (1_000_000 // len(piece))
            path.write_text(text)
            row(label, path, len(text), turns)


if __name__ == "__main__":
    main()
