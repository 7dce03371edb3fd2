"""What keeps a notebook from being published."""

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from fourfold.course.hygiene import hygiene_findings

PNG = {"image/png": "iVBORw0KGgo="}


def notebook(*outputs, tags=(), count=1):
    cell = new_code_cell("x", execution_count=count, metadata={"tags": list(tags)})
    cell.outputs = list(outputs)
    return new_notebook(cells=[cell])


def shown(data, **metadata):
    return new_output("display_data", data=data, metadata=metadata)


def test_a_clean_notebook_has_no_findings():
    alt = {"image/png": {"alt": "a dot"}}
    assert hygiene_findings(notebook(shown(PNG, **alt), tags=["figure"]), 10) == []


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (new_output("error", ename="E", evalue="", traceback=[]), "error output"),
        (new_output("stream", name="stderr", text="careful"), "stderr"),
        (new_output("stream", text="in /home/ada/x.py"), "names this machine"),
        (new_output("stream", text="C:\\Users"), "names this machine"),
        (new_output("stream", text="<object at 0x7f00beef00>"), "names this machine"),
        (shown({"image/svg+xml": "<svg/>"}), "sees nothing"),
        (shown({"text/html": "<b>x</b>"}), "sees nothing"),
        (shown(PNG), "without alternative text"),
    ],
)
def test_each_fault_is_told(output, message):
    found = hygiene_findings(notebook(output), 10)
    assert len(found) == 1 and message in found[0]


def test_counts_must_ascend_from_one():
    for count in (None, 2):
        assert "not executed once" in hygiene_findings(notebook(count=count), 10)[0]


def test_a_large_notebook_is_told():
    assert "more than" in hygiene_findings(notebook(), 2_000_000)[0]


def test_a_figure_cell_must_show_a_picture():
    assert "shows no picture" in hygiene_findings(notebook(tags=["figure"]), 10)[0]
