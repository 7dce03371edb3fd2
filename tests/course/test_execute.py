"""Running lessons: reproducible outputs, failures in one line, a table that keeps its rows."""

import signal

import nbformat
import pytest
from small_house import BODY

from fourfold.course import build, execute, pair
from fourfold.course.errors import CourseError
from fourfold.course.execute import Cost
from fourfold.course.lesson import lessons


def run(small, body, **options):
    small.write(body)
    return execute.run(small.house, lessons(small.house)[0], **options)


def test_a_run_fills_outputs_counts_and_the_stamp(small):
    ticks = []
    notebook, cost = run(small, BODY, tick=lambda *step: ticks.append(step))
    assert notebook.cells[-1].outputs[0].text == "6.283185307179586\n"
    counts = [c.execution_count for c in notebook.cells if c.cell_type == "code"]
    assert counts == [1, 2, 3, 4]
    assert ticks[-1] == (5, 5)
    assert cost.seconds > 0 and cost.peak_ram_mib > 10
    assert pair.outputs_are_current(notebook)
    execute.save(small.house, lessons(small.house)[0], notebook)
    small.build()
    assert build.check(small.house) == []


def test_a_second_run_gives_the_same_file(small):
    body = BODY + "\n# %%\nfor i in range(50):\n    print(i, flush=True)\n"
    texts = {pair.to_json(run(small, body)[0]) for _ in range(2)}
    assert len(texts) == 1


def test_the_scale_reaches_the_lesson(small):
    body = BODY + '\n# %%\nimport os\n\nprint(os.environ["FOURFOLD_SCALE"])\n'
    assert run(small, body, scale="gpu")[0].cells[-1].outputs[0].text == "gpu\n"


def test_a_failing_cell_is_told_in_one_line(small):
    with pytest.raises(CourseError, match=r"^1_small/1_double, cell 6: ValueError: too bad$"):
        run(small, BODY + '\n# %%\nraise ValueError("too bad")\n')


def test_an_error_of_many_lines_is_told_in_one(small):
    with pytest.raises(CourseError, match=r"cell 6: ValueError: a b c$"):
        run(small, BODY + '\n# %%\nraise ValueError("a\\nb\\n\\nc")\n')


def test_a_slow_cell_is_stopped(small):
    with pytest.raises(CourseError, match="cell 6"):
        run(small, BODY + "\n# %%\nwhile True:\n    pass\n", timeout=2.0)


def test_code_changed_after_a_run_makes_its_outputs_old(small):
    notebook, _ = run(small, BODY)
    execute.save(small.house, lessons(small.house)[0], notebook)
    small.write(BODY.replace("math.pi", "math.e"))
    small.build()
    assert any("outputs are older" in finding for finding in build.check(small.house))
    cells = nbformat.read(small.notebook, as_version=4).cells
    assert cells[2].execution_count == 2 and cells[-1].execution_count is None


def test_recorded_costs_keep_the_other_rows(small):
    execute.record(small.house, {"b/2": Cost(1.26, 99.6, 0.0)}, "cpu")
    execute.record(small.house, {"a/1": Cost(2.0, 100.0, 0.0)}, "cpu")
    execute.record(small.house, {"b/2": Cost(3.0, 120.0, 0.0)}, "cpu")
    assert small.house.measured("cpu").read_text() == (
        "lesson,seconds,peak_ram_mib,peak_vram_mib\na/1,2.0,100,0\nb/2,3.0,120,0\n"
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_drops_is_not_forgotten():
    class Cleared:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    with execute.interruptible() as ask:
        ask()  # nothing came yet
        thing = Cleared()
        del thing  # Python drops the KeyboardInterrupt that is raised here
        with pytest.raises(KeyboardInterrupt):
            ask()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
