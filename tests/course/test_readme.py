"""The README: its map, its pictures, its code and its links."""

import ast
import base64
import hashlib
import re

import nbformat
import pytest
from nbformat.v4 import new_output

from fourfold.course import pair
from fourfold.course.build import check
from fourfold.course.errors import CourseError
from fourfold.course.files import House
from fourfold.course.lesson import lessons

HOUSE = House.here()
README = HOUSE.readme.read_text(encoding="utf-8")
PAGES = [HOUSE.readme, HOUSE.root / "CONTRIBUTING.md", HOUSE.root / "data" / "README.md"]


def test_the_map_shows_the_measured_figures(small):
    table = small.house.measured("cpu")
    table.parent.mkdir(parents=True)
    table.write_text("lesson,seconds,peak_ram_mib,peak_vram_mib\n1_small/1_double,12.3,345,0\n")
    small.build()
    row = small.house.readme.read_text().splitlines()[5]
    assert row.startswith("| 1_small | [A small lesson](chapters/1_small/1_double.ipynb) | 10 |")
    assert row.endswith("| 12 | 345 MiB |")


@pytest.mark.parametrize("row", ["1_small/1_double,soon,345,0", "1_small/1_double"])
def test_a_broken_measured_table_is_told(small, row):
    table = small.house.measured("cpu")
    table.parent.mkdir(parents=True)
    table.write_text(f"lesson,seconds,peak_ram_mib,peak_vram_mib\n{row}\n")
    with pytest.raises(CourseError, match=r"measured_cpu\.csv: .*fourfold run --measure"):
        small.build()


def test_a_bar_in_a_title_stays_in_its_cell(small):
    small.lesson.write_text(small.lesson.read_text().replace("A small lesson", "A | B"))
    small.build()
    assert r"[A \| B](chapters/1_small/1_double.ipynb)" in small.house.readme.read_text()


def test_a_readme_without_the_marks_is_refused(small):
    small.house.readme.write_text("no marks")
    with pytest.raises(CourseError, match=r"README\.md: expected the line"):
        small.build()


def test_a_picture_is_taken_from_the_notebook_and_caught_when_it_differs(small):
    picture = small.house.root / "data" / "results" / "figure_1_small_1_double.png"
    with small.house.readme.open("a") as file:
        file.write("\n![A figure](data/results/figure_1_small_1_double.png)\n")
    small.write('# %% tags=["figure"]\nx = 1\n\n# %% tags=["promote"]\nA = 1\n')
    small.build()
    notebook = nbformat.read(small.notebook, as_version=4)
    figure = next(c for c in notebook.cells if "figure" in c.metadata.get("tags", []))
    data = {"image/png": base64.b64encode(b"\x89PNG picture").decode()}
    figure.outputs = [new_output("display_data", data=data)]
    small.notebook.write_text(pair.to_json(notebook))
    small.build()
    assert picture.read_bytes() == b"\x89PNG picture"
    picture.write_bytes(b"another")
    assert any("figure_1_small_1_double.png: differs" in line for line in check(small.house))


def test_sizes_and_hashes_of_the_data_are_kept(small):
    page = small.house.root / "data" / "README.md"
    page.parent.mkdir()
    (page.parent / "a.bin").write_bytes(b"123")
    page.write_text("| `a.bin` | what | where | MIT | – | – |\n| name | b | c | d | e | f |\n")
    small.build()
    assert page.read_text() == (
        "| `a.bin` | what | where | MIT | 0.0 kB | "
        f"`{hashlib.sha256(b'123').hexdigest()}` |\n| name | b | c | d | e | f |\n"
    )
    (page.parent / "a.bin").write_bytes(b"124")
    assert any("data/README.md" in finding for finding in check(small.house))
    (page.parent / "a.bin").unlink()
    with pytest.raises(CourseError, match=r"a\.bin is missing; remove its row"):
        small.build()


def test_every_lesson_has_a_measured_row_in_the_map():
    for lesson in lessons(HOUSE):
        row = next(line for line in README.splitlines() if f"chapters/{lesson.key}.ipynb" in line)
        assert re.search(r"\| \d+ \| \d+ MiB \|$", row), row


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_into_the_repository_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    for link in links:
        if "://" not in link:
            assert (page.parent / link).exists(), link


def without_docstrings(source):
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:]
    return ast.unparse(tree)


def test_python_shown_in_the_readme_is_the_library_s_own():
    library = [p.read_text(encoding="utf-8") for p in HOUSE.library.rglob("*.py")]
    plain = "\n".join(map(without_docstrings, library))
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        assert without_docstrings(block) in plain


def test_the_commands_it_shows_are_those_of_the_makefile():
    makefile = (HOUSE.root / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make (\w+)", README)):
        assert f"\n{target}:" in makefile, target
