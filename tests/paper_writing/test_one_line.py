"""The line check against removals in real lessons; pipelines against hooks of the test's own."""

import ast
import dataclasses
import functools
import re
from fractions import Fraction

import jupytext
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from torch import nn

from fourfold.bilinear_sampling.sampling import bilinear_weights, floor_and_fraction
from fourfold.course import form as course_form
from fourfold.course.files import House
from fourfold.course.lesson import lessons
from fourfold.kit.drawing import canvas, figure_texts
from fourfold.paper_writing.one_line import (
    EXPLAINING,
    FORMS,
    LEDGER_COLUMNS,
    Ledger,
    Pipeline,
    Step,
    Symbol,
    axis_name,
    check_line,
    content_words,
    draw_line,
    markdown_tables,
    tex_tokens,
)

HOUSE = House.here()
LESSONS = lessons(HOUSE)
BLEND = next(
    ast.literal_eval(cell.source.split("=", 1)[1].strip())
    for lesson in LESSONS
    if lesson.key == "1_paper_writing/1_one_line"
    for cell in lesson.code
    if cell.source.startswith("BLEND = ")
)


def text_of(lesson):
    return (HOUSE.root / lesson.source).read_text(encoding="utf-8")


# Tokens


@pytest.mark.parametrize(
    ("tex", "tokens"),
    [
        ("", []),
        ("dx", ["dx"]),
        (r"t\,v", ["t", "v"]),
        (r"\max x", [r"\max", "x"]),
        ("w_{ab}", ["w", "_", "ab"]),
        ("x_{k+1}", ["x", "_", "{", "k", "+", "1", "}"]),
        (r"\frac{1}{n}", [r"\frac", "1", "n"]),
        (r"\left( i,\; j \right)", ["(", "i", ",", "j", ")"]),
        (r"\{1\}", [r"\{", "1", r"\}"]),
        ("2r+1", ["2", "r", "+", "1"]),
        ("α_t", ["α", "_", "t"]),
    ],
)
def test_the_tokens_of_a_formula(tex, tokens):
    assert tex_tokens(tex) == tokens


PIECES = st.sampled_from(["x", "dx", r"\max", "12", "_", "^", "(", ")", "+", r"\frac", "w"])


@given(st.lists(PIECES, min_size=1, max_size=8), st.sampled_from([r"\,", r"\quad ", " ", "~", "&"]))
def test_spacing_changes_no_token(pieces, space):
    assert tex_tokens(f" {space} ".join(pieces)) == tex_tokens(" ".join(pieces))


@given(st.lists(PIECES, min_size=1, max_size=8))
def test_braces_around_single_tokens_change_nothing(pieces):
    assert tex_tokens("".join(f"{{{p}}}" for p in pieces)) == tex_tokens(" ".join(pieces))


def test_content_words_leave_out_formulas_and_small_words():
    assert content_words("The $blend$ of its Colours, at 3 px") == {"colour"}


# The ledger


def row(symbol, figure="label"):
    return Symbol(symbol, "a meaning", "number", "`name`", figure)


def test_the_columns_are_those_of_the_lessons_form():
    assert LEDGER_COLUMNS == course_form.LEDGER_COLUMNS


def test_a_ledger_is_found_among_other_tables():
    table = "| " + " | ".join(LEDGER_COLUMNS) + " |\n| --- | --- | --- | --- | --- |\n"
    text = (
        f"| a | b |\n| --- | --- |\n| 1 | 2 |\n\n{table}| $x$ | place | px | `x`, `y` | x \\| y |\n"
    )
    (found,) = Ledger.parse(text).symbols
    assert found == Symbol("x", "place", "px", "`x`, `y`", "x | y")
    assert found.names == ["x", "y"]
    assert [len(rows) for rows in markdown_tables(text)] == [2, 2]


@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        ((), "ledger: got no symbol"),
        ((row("x"), row("x")), "ledger, row 2 ('x'): this symbol has a row already"),
        ((row("w_k"), row("w_{k}")), "ledger, row 2 ('w_{k}'): this symbol has a row already"),
        ((row("x$, $y"),), "expected one formula, such as $x$"),
        ((Symbol("x", "place", "px", "–", "x"),), "name in code: got '–', expected a name"),
        ((row("x"), row("y", figure="")), "ledger, row 2 ('y'): 'on the figure' is empty"),
        ((row(""),), "'symbol' is empty"),
    ],
)
def test_a_broken_ledger_is_refused(symbols, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Ledger(symbols)


def test_a_text_without_a_ledger_is_refused():
    with pytest.raises(ValueError, match=r"found no table headed symbol \| meaning"):
        check_line("# %% [markdown]\n# Text.\n")


def test_a_row_below_a_blank_line_is_missed():
    with pytest.raises(
        ValueError, match=r"a blank line before '\| \$v\$ .* ends the table above it"
    ):
        check_line(BLEND.replace("# | $v$", "#\n# | $v$"))


def test_the_longest_symbol_counts():
    ledger = Ledger((row("w"), row("w_{ab}"), row("(x, y)"), row("x"), row(r"\hat x")))
    assert ledger.symbols_in(r"\sum w_{ab}") == {"w_{ab}"}
    assert ledger.symbols_in("w_a + w_{ab}") == {"w", "w_{ab}"}
    assert ledger.symbols_in("I(x, y)") == {"(x, y)"}
    assert ledger.symbols_in(r"\hat{x} + \mathbf{w}") == {r"\hat x"}
    assert ledger.symbols_in(r"\max dx \text{w}") == set()
    assert ledger.places("x = w_a + x") == [(0, "x"), (2, "w"), (6, "x")]


@given(st.lists(st.sampled_from(["x", "y", "dx", r"\max", "+", "(", "z"]), max_size=12))
def test_single_symbols_are_found_where_a_plain_search_finds_them(pieces):
    ledger = Ledger((row("x"), row("y"), row("z")))
    assert ledger.symbols_in(" ".join(pieces)) == {"x", "y", "z"} & set(pieces)


# The line: remove a symbol from one form of a real lesson, on a copy


def without(text, form, symbol, ledger):
    """The lesson with every trace of a symbol removed from one form, and nothing else changed."""
    notebook = jupytext.reads(text, fmt="py:percent")
    edit = {
        "words": _without_in_words,
        "figure": _without_on_figure,
        "formula": _without_in_formula,
        "code": _without_in_code,
    }
    promotes = any("promote" in cell.metadata.get("tags", ()) for cell in notebook.cells)
    for cell in notebook.cells:
        cell.source = edit[form](cell, symbol, ledger, promotes)
    return jupytext.writes(notebook, fmt="py:percent")


def _without_in_words(cell, symbol, ledger, promotes):
    if cell.cell_type != "markdown":
        return cell.source
    parts = re.split(r"(\$\$.*?\$\$)", cell.source, flags=re.DOTALL)

    def replaced(match):
        holds = match[1] and symbol.symbol in ledger.symbols_in(match[1])
        return "that" if holds else match[0]

    def plain(part):
        lines = re.split(r"(^\|.*$)", part, flags=re.MULTILINE)
        return "".join(
            x if x[:1] == "|" else re.sub(r"`[^`]*`|\$([^$]+)\$", replaced, x) for x in lines
        )

    return "".join(part if part[:2] == "$$" else plain(part) for part in parts)


def _without_on_figure(cell, symbol, ledger, promotes):
    if cell.cell_type != "code" or "figure" not in cell.metadata.get("tags", ()):
        return cell.source
    label = rf"(?:(?<!\w)|(?<=\\n)){re.escape(symbol.figure)}(?!\w)"
    return re.sub(label, "ZZ", cell.source)


def _without_in_formula(cell, symbol, ledger, promotes):
    if cell.cell_type != "markdown":
        return cell.source

    def emptied(match):
        holds = r"\tag" in match[0] and symbol.symbol in ledger.symbols_in(match[1])
        return r"$$ \zeta = 0 \tag{1} $$" if holds else match[0]

    return re.sub(r"\$\$(.*?)\$\$", emptied, cell.source, flags=re.DOTALL)


def _without_in_code(cell, symbol, ledger, promotes):
    final = "promote" in cell.metadata.get("tags", ()) or not promotes
    if cell.cell_type != "code" or not final:
        return cell.source
    return re.sub(rf"(?<!\\)\b{symbol.names[0]}\b", "zz", cell.source)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.key)
def test_a_symbol_removed_from_a_form_is_missed(lesson, form):
    text = text_of(lesson)
    ledger = check_line(text).ledger
    for symbol in ledger.symbols[:: max(1, len(ledger.symbols) // 4)]:
        copy = without(text, form, symbol, ledger)
        assert copy != text
        findings = check_line(copy).findings
        assert any(f.startswith(f"{form}: ") and symbol.meaning in f for f in findings), symbol


def test_the_deletion_test_on_the_blend():
    line = check_line(BLEND)
    assert line.findings == []
    assert line.levels["words"] == {"u": 2, "v": 2, "t": 2, "m": 2}
    assert line.levels["figure"] == {"u": 1, "v": 1, "t": 2, "m": 2}
    assert line.levels["formula"] == {"u": 1, "v": 1, "t": 1, "m": 2}
    assert set(line.levels["code"].values()) == {1}
    assert line.lost_without("words") == {"u", "v"}
    assert line.lost_without("figure") == line.lost_without("formula") == set()


def test_a_form_that_is_said_twice_can_be_deleted():
    named = BLEND.replace('0.5, "u"', '0.5, "first colour u"').replace(
        "`u` | u |", "`u` | first colour u |"
    )
    assert check_line(named).lost_without("words") == {"v"}
    assert check_line(named).lost_without("figure") == set()


@pytest.mark.parametrize(
    ("equation", "given"),
    [
        ("m = u + v", {"m"}),
        (r"\begin{aligned} m &= u \\ t &\approx v \end{aligned}", {"m", "t"}),
        (r"m(u) = t", {"m"}),
        (r"p(u \mid v) = 1", set()),
        (r"\| m - u \| = 0, \qquad t \in [0, 1]", {"t"}),
        (r"u = m \quad \text{if } t = 0", {"u"}),
        (r"\hat{m} = u + v + t", set()),
    ],
)
def test_a_formula_says_what_its_left_side_opens_with(equation, given):
    line = check_line(BLEND.replace(r"m = (1 - t)\,u + t\,v", equation))
    assert {symbol for symbol, level in line.levels["formula"].items() if level == 2} == given


def test_dollar_signs_that_open_no_formula_are_left_out():
    told = BLEND.replace("To blend two", r"It costs \$5 with `$$` and `$`. To blend two")
    fenced = told.replace("# $$ m", "# ```\n# echo $$\n# ```\n#\n# $$ m")
    assert check_line(fenced).findings == []
    assert check_line(fenced).formula == check_line(BLEND).formula


def test_line_ends_do_not_matter():
    assert check_line(BLEND.replace("\n", "\r\n")).levels == check_line(BLEND).levels


MARKDOWN = r"""
# Blend

The fraction $t$ of the second colour $v$, the rest of the first colour $u$, is the blend $m$.

![A strip: u on the left, v on the right, fraction t below, the blend m](strip.png)

$$ m = (1 - t)\,u + t\,v \tag{1} $$

| symbol | meaning | shape or unit | name in code | on the figure |
| --- | --- | --- | --- | --- |
| $u$ | first colour | RGB | `u` | u |
| $v$ | second colour | RGB | `v` | v |
| $t$ | fraction of the second colour | number | `t` | fraction t |
| $m$ | the blend | RGB | `blend` | blend m |

```python
def blend(u, v, t):
    return (1 - t) * u + t * v
```
"""


def test_markdown_is_read_too():
    line = check_line(MARKDOWN)
    assert line.findings == [] and line.lost_without("words") == {"u", "v"}
    for form, gone in {"words": "$t$ of", "figure": "fraction t b", "formula": r"\,u"}.items():
        cut = MARKDOWN.replace(gone, "")
        assert [f.split(":")[0] for f in check_line(cut).findings] == [form]


def test_the_check_is_linear_in_the_length():
    """Ten thousand lines would take minutes if symbols were sought anew for each of them."""
    long = BLEND.replace(
        "\n#\n# $$ m", "\n#" + "\n# The blend $m$ of $u$ and $v$ at $t$." * 10_000 + "\n#\n# $$ m"
    )
    assert len(check_line(long).words) > 10_000


def test_a_symbol_that_nothing_explains_is_a_finding():
    text = BLEND.replace("two colours, $u$ and $v$, take a part of each", "$u$ and $v$, look")
    assert any("explained nowhere" in finding for finding in check_line(text).findings)


def test_comments_docstrings_and_alternative_text_do_not_count():
    hidden = BLEND.replace('xlabel="fraction t", ', "").replace(
        "    figure, axes = canvas",
        '    """fraction t"""\n    # fraction t\n    figure, axes = canvas',
    )
    assert [f.split(":")[0] for f in check_line(hidden).findings] == ["figure"]
    renamed = BLEND.replace("def blend(u, v, t)", "def mix(u, v, t)") + "    # blend\n"
    assert [f.split(":")[0] for f in check_line(renamed).findings] == ["code"]
    alt = hidden.replace(
        "    return figure", '    show(figure, alt="fraction t")\n    return figure'
    )
    assert [f.split(":")[0] for f in check_line(alt).findings] == ["figure"]


def test_labels_are_read_off_a_drawn_figure():
    figure, axes = canvas()
    axes.set(title="blend m", xlabel="fraction t")
    texts = figure_texts(figure)
    assert {"blend m", "fraction t"} <= set(texts)
    found = check_line(BLEND, labels=texts).findings
    assert sorted(f.split("'")[1] for f in found) == ["u", "v"]


def test_an_unknown_form_is_named():
    with pytest.raises(
        ValueError, match="form: got 'code', expected one of words, figure, formula"
    ):
        check_line(BLEND).lost_without("code")


def test_a_cell_that_is_not_python_is_named():
    with pytest.raises(ValueError, match="a code cell is not Python at 'def blend"):
        check_line(BLEND.replace("def blend(u, v, t):", "def blend(u, v, t"))


def test_magics_are_no_python():
    lines = BLEND.replace("def blend(", "%timeit 1\n!ls\ndef blend(")
    cell = BLEND + "\n\n# %%\n# %%bash\n# ls -l | wc\n"
    assert check_line(lines).findings == check_line(cell).findings == []


def test_a_lesson_that_promotes_nothing_is_read_from_all_its_code():
    assert check_line(BLEND.replace('tags=["promote"]', "")).findings == []


def test_the_chart_shows_a_mark_for_each_level_and_loss():
    line = check_line(BLEND.replace('0.5, "v"', '0.5, ""'))
    (axes,) = draw_line(line).axes
    markers = [mark.get_marker() for mark in axes.lines]
    assert markers.count("s") == sum(len(line.lost_without(form)) for form in EXPLAINING)
    assert markers.count("x") == 1 and markers.count("o") == 4 * 4 - 1


def test_tex_that_matplotlib_does_not_know_is_drawn_as_text():
    line = check_line(BLEND.replace("$m$", r"$\operatornamewithlimits{m}$"))
    draw_line(line).canvas.draw()


# Names of axes


SIZES = st.dictionaries(st.sampled_from("BHWN"), st.integers(2, 60), min_size=1)


def named(law, letters):
    """The name that runs of an axis of size `law(**letters)` lead to."""
    doubled = {a: law(**letters | {a: 2 * n}) for a, n in letters.items()}
    answering = {a for a in letters if doubled[a] != law(**letters)}
    tripled = law(**{a: 3 * n if a in answering else n for a, n in letters.items()})
    return axis_name(law(**letters), letters, doubled, tripled, {})


def value(name, letters):
    """What a name such as 3H·W/4 − 2 comes to."""
    text = re.sub(r"(\d)([A-Z])", r"\1*\2", name.replace("·", "*").replace("−", "-"))
    return eval(re.sub(r"([A-Z])", r"F(\1)", text), {"F": Fraction, **letters})


@given(SIZES, st.integers(1, 9), st.integers(1, 8), st.integers(-3, 3), st.data())
def test_a_product_is_named_as_one(letters, top, below, rest, data):
    chosen = data.draw(st.lists(st.sampled_from(sorted(letters)), min_size=1, unique=True))
    letters |= {chosen[0]: below * letters[chosen[0]]}

    def law(**sizes):
        product = top
        for letter in chosen:
            product *= sizes[letter]
        return product // below + rest

    assert_it_predicts(law, letters)


@given(SIZES, st.integers(-3, 3), st.data())
def test_a_sum_is_named_as_one(letters, rest, data):
    slopes = {a: data.draw(st.integers(1, 3)) for a in letters}
    assert_it_predicts(lambda **s: sum(slopes[a] * n for a, n in s.items()) + rest, letters)


def assert_it_predicts(law, letters):
    name = named(law, letters)
    for times in (1, 2, 3, 5):
        longer = {a: times * n for a, n in letters.items()}
        assert value(name, longer) == law(**longer), name
    for letter in letters:
        one = letters | {letter: 7 * letters[letter]}
        assert value(name, one) == law(**one), name


@pytest.mark.parametrize(
    ("law", "letters", "name"),
    [
        (lambda H, W: H * W // 64 + 1, {"H": 64, "W": 64}, "H·W/64 + 1"),
        (lambda H, W: H + W, {"H": 64, "W": 64}, "H + W"),
        (lambda N: 24 - N, {"N": 5}, "24 − N"),
        (lambda N: 24 - 3 * N // 2, {"N": 4}, "24 − 3N/2"),
        (lambda N: N * N, {"N": 5}, "25"),
        (lambda N: min(N, 6), {"N": 5}, "5"),
        (lambda H: (H + 1) // 2, {"H": 47}, "24"),
        (lambda B, N: B * N + N, {"B": 2, "N": 5}, "15"),
    ],
)
def test_a_name_is_given_only_where_it_holds(law, letters, name):
    assert named(law, letters) == name


def test_a_fixed_axis_takes_a_name_only_when_one_fits():
    assert axis_name(8, {"H": 8}, {"H": 8}, 8, {"D": 8}) == "D"
    assert axis_name(8, {"H": 8}, {"H": 8}, 8, {"D": 8, "K": 8}) == "8"
    assert axis_name(8, {"H": 8}, {"H": 8}, 8, {}) == "8"


# Pipelines


class Network(nn.Module):
    """Two inputs, a shared part, a branch, a dictionary and keyword arguments."""

    def __init__(self, channels=3, width=8, classes=5):
        super().__init__()
        self.shared = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.5)
        self.heads = nn.ModuleList([nn.Conv2d(width, 1, 1), nn.Linear(width, classes)])

    def forward(self, first, second, iterations=2):
        a, b = self.shared(first), self.shared(second)
        mixed = self.drop(self.norm(a * b))
        for _ in range(iterations - 1):
            mixed = self.norm(mixed)
        return {"map": self.heads[0](mixed), "scores": self.heads[1](mixed.mean((2, 3)))}


def images(batch=2, height=12, width=20):
    return torch.rand(batch, 3, height, width), torch.rand(batch, 3, height, width)


def hooked(module, *inputs):
    """Shapes in and out of each leaf call, by hooks of the test's own."""
    seen = []

    def hook(name):
        return lambda part, given, result: seen.append(
            (name, tuple(given[0].shape), tuple(result.shape))
        )

    handles = [
        part.register_forward_hook(hook(name))
        for name, part in module.named_modules()
        if not list(part.children())
    ]
    module.eval()(*inputs)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("iterations", [1, 3])
def test_shapes_are_those_that_hooks_measure(iterations):
    module, inputs = Network(), images()
    run = Pipeline.trace(module, *inputs, keywords={"iterations": iterations})
    seen = hooked(module, *inputs, iterations)
    stages = run.stages[2:-1]
    assert {(s.name, s.takes[0], s.gives[0]) for s in stages} == set(seen)
    assert sum(s.calls for s in stages) == len(seen)
    assert run.stages[0].gives == (tuple(inputs[0].shape),)
    assert run.stages[-1].takes == ((2, 1, 6, 10), (2, 5))


def test_arrows_are_where_the_data_goes():
    run = Pipeline.trace(Network(), *images())
    names = [stage.name for stage in run.stages]
    arrows = {(names[source], stage.name) for stage in run.stages for source in stage.sources}
    assert arrows == {
        ("first", "shared"),
        ("second", "shared"),
        ("shared", "norm"),
        ("norm", "drop"),
        ("drop", "norm"),
        ("norm", "heads.0"),
        ("norm", "heads.1"),
        ("heads.0", "output"),
        ("heads.1", "output"),
    }
    assert [s.calls for s in run.stages if s.name in ("shared", "norm")] == [2, 2]
    assert run.dead_ends == []


def test_axes_are_named():
    run = Pipeline.trace(Network(), *images(), axes=("B C H W", "B C H W"), sizes={"D": 8, "K": 5})
    named = {stage.name: stage.gives_named for stage in run.stages}
    assert named["first"] == (("B", "C", "H", "W"),)
    assert named["norm"] == (("B", "D", "H/2", "W/2"),)
    assert named["heads.1"] == (("B", "K"),)
    assert run.stages[-1].takes_named == (("B", "1", "H/2", "W/2"), ("B", "K"))


def test_chapter_6_in_steps():
    class Weights(nn.Module):
        def __init__(self):
            super().__init__()
            self.split, self.weigh = Step(floor_and_fraction), Step(bilinear_weights)

        def forward(self, points):
            return self.weigh(self.split(points)[1])

    run = Pipeline.trace(Weights(), torch.rand(2, 7, 2), axes="B N 2")
    assert [s.kind for s in run.stages[1:-1]] == ["floor_and_fraction", "bilinear_weights"]
    assert run.stages[1].gives_named == (("B", "N", "2"), ("B", "N", "2"))
    assert run.stages[2].gives_named == (("B", "N", "4"),)


def test_a_named_axis_predicts_another_run():
    small = Pipeline.trace(Network(), *images(), axes=("B C H W", "B C H W"))
    large = Pipeline.trace(Network(), *images(3, 16, 28))
    letters = {"B": 3, "C": 3, "H": 16, "W": 28}
    for stage, other in zip(small.stages, large.stages, strict=True):
        for names, shape in zip(stage.gives_named, other.gives, strict=True):
            assert tuple(value(name, letters) for name in names) == shape


class UNet(nn.Module):
    """Down twice, up twice, with a skip and a change in place."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.up1, self.up2 = nn.ConvTranspose2d(16, 8, 2, 2), nn.ConvTranspose2d(16, 3, 2, 2)

    def forward(self, x):
        fine = self.down1(x).relu_()
        return self.up2(torch.cat([fine, self.up1(self.down2(fine))], dim=1))


def test_a_skip_connection_is_an_arrow():
    run = Pipeline.trace(UNet(), torch.rand(2, 3, 16, 24), axes="B C H W")
    named = {stage.name: stage for stage in run.stages}
    assert [run.stages[n].name for n in sorted(named["up2"].sources)] == ["down1", "up1"]
    assert named["down2"].gives_named == (("B", "16", "H/4", "W/4"),)
    assert run.stages[-1].takes_named == (("B", "3", "H", "W"),)
    assert run.refused == ("C",)


def test_attention_and_recurrence_give_several_tensors():
    attention = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    run = Pipeline.trace(attention, torch.rand(2, 7, 8), axes="B N D", sizes={"D": 8}, depth=2)
    assert run.stages[1].kind == "MultiheadAttention"
    assert run.stages[-1].takes_named == (("B", "N", "D"),)
    recurrent = Pipeline.trace(nn.LSTM(5, 8, batch_first=True), torch.rand(2, 9, 5), axes="B T C")
    names = (("B", "T", "8"), ("1", "B", "8"), ("1", "B", "8"))
    assert recurrent.stages[-1].takes_named == names


def test_depth_opens_containers():
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    module = nn.Sequential(inner, nn.Linear(4, 2))
    names = [
        [s.name for s in Pipeline.trace(module, torch.rand(3, 4), depth=d).stages[1:-1]]
        for d in (1, 2, 3)
    ]
    assert names == [["0", "1"], ["0.0", "0.1", "1"], ["0.0", "0.1", "1"]]


def test_the_module_and_its_inputs_are_left_as_they_were():
    module, inputs = Network(), images()
    module.train()
    module.norm.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    copies = [value.clone() for value in inputs]
    random = torch.get_rng_state()
    Pipeline.trace(module, *inputs, axes=("B C H W", "B C H W"))
    assert module.training and module.drop.training and not module.norm.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(part._forward_hooks for part in module.modules())
    assert all(torch.equal(value, copy) for value, copy in zip(inputs, copies, strict=True))


def test_a_module_that_changes_its_input_leaves_ours_alone():
    given = torch.randn(2, 3)
    copy = given.clone()
    Pipeline.trace(nn.Sequential(nn.ReLU(inplace=True)), given)
    assert torch.equal(given, copy)


def test_an_error_of_the_module_is_passed_on_and_leaves_no_hook():
    module = Network()
    with pytest.raises(RuntimeError, match="channels"):
        Pipeline.trace(module, torch.rand(1, 7, 8, 8), torch.rand(1, 7, 8, 8))
    assert module.training
    assert not any(part._forward_hooks for part in module.modules())


class Deaf(nn.Linear):
    def register_forward_hook(self, *args, **options):
        raise RuntimeError("no hooks here")


def test_hooks_go_when_one_of_them_is_refused():
    module = nn.Sequential(nn.Linear(4, 4), Deaf(4, 4))
    with pytest.raises(RuntimeError, match="no hooks here"):
        Pipeline.trace(module, torch.rand(2, 4))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module)


def wired(forward, *parts):
    """The arrows of a module with parts a, b, c and this forward."""

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            for name, part in zip("abc", parts, strict=False):
                setattr(self, name, part)

        def forward(self, x):
            return forward(self, x)

    run = Pipeline.trace(Module(), torch.rand(2, 4))
    names = [stage.name for stage in run.stages]
    return {f"{names[n]}{stage.name}" for stage in run.stages for n in stage.sources}


def write_halves(self, x):
    whole = torch.empty(2, 8)
    whole[:, :4] = self.a(x)
    half = whole[:, 4:]
    half.copy_(self.b(x))
    return self.c(whole)


@dataclasses.dataclass
class Answer:
    value: torch.Tensor


class Answering(nn.Linear):
    def forward(self, x):
        return Answer(super().forward(x))


class OwnParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.rand(4))

    def forward(self):
        return self.p


@pytest.mark.parametrize(
    ("forward", "parts", "arrows"),
    [
        (lambda s, x: s.c(s.b(s.a(x))) + s.a(x), 3, {"xa", "ab", "bc", "coutput", "aoutput"}),
        (write_halves, 2, {"xa", "xb", "ac", "bc", "coutput"}),
        (
            lambda s, x: s.b(s.a(x).value),
            [Answering(4, 4), nn.Linear(4, 4)],
            {"xa", "ab", "boutput"},
        ),
        (lambda s, x: s.b(torch.zeros_like(s.a(x))), 2, {"xa", "boutput"}),
        (
            lambda s, x: (lambda h: s.c(s.b(h)) + h)(s.a(x)),
            [nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4)],
            {"xa", "ab", "bc", "coutput", "aoutput"},
        ),
        (
            lambda s, x: s.c(s.b(s.a(x))),
            [nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)],
            {"xa", "ab", "bc", "coutput"},
        ),
        (
            lambda s, x: s.a(x + s.b.p) + s.b(),
            [nn.Linear(4, 4), OwnParameter()],
            {"xa", "aoutput", "boutput"},
        ),
    ],
    ids=[
        "shared",
        "in place",
        "dataclass",
        "shape only",
        "passed through",
        "in-place part",
        "parameter",
    ],
)
def test_each_arrow_is_one_of_the_data(forward, parts, arrows):
    if isinstance(parts, int):
        parts = [*(nn.Linear(4, 4) for _ in range(2)), nn.Linear(8 if parts == 2 else 4, 4)]
    assert wired(forward, *parts) == wired(forward, *parts) == arrows


def test_a_part_that_never_ran_is_named():
    module = nn.ModuleDict({"used": nn.Linear(3, 3), "idle": nn.Linear(3, 3)})

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = module

        def forward(self, x):
            return self.parts["used"](x)

    run = Pipeline.trace(Half(), torch.rand(2, 3))
    assert run.never_ran == ("parts.idle",) and "Never ran: parts.idle." in run.describe()


def test_a_partial_function_is_a_step():
    run = Pipeline.trace(Step(functools.partial(torch.clamp, min=0)), torch.rand(2))
    assert run.stages[1].kind == "partial"


def test_a_dead_end_is_named():
    class Leftover(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            self.unused(x)
            return self.used(x)

    assert Pipeline.trace(Leftover(), torch.rand(2, 3)).dead_ends == ["unused"]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.relu, torch.rand(2)), {}, TypeError, "module is a builtin_function_or_method"),
        ((nn.ReLU(), 3), {}, TypeError, "inputs hold no tensor"),
        ((nn.ReLU(), [torch.rand(2)]), {}, TypeError, "argument 0: a tensor inside a list"),
        (
            (nn.ReLU(), torch.rand(2)),
            {"keywords": {"mask": torch.rand(2)}},
            TypeError,
            "argument mask: a tensor inside a Tensor, or given by keyword",
        ),
        ((nn.ReLU(), torch.rand(0, 2)), {"axes": "B C"}, ValueError, "B is 0 in one place"),
        ((nn.ReLU(), torch.rand(2)), {"axes": ("B", None)}, ValueError, "expected 1 strings"),
        ((nn.ReLU(), torch.rand(2)), {"axes": "B C"}, ValueError, "'B C' names 2 axes of input 0"),
        (
            (nn.ReLU(), torch.rand(2)),
            {"axes": ("B", "B")},
            ValueError,
            "expected 1 strings, one per tensor",
        ),
        ((nn.ReLU(), torch.rand(2, 3)), {"axes": "B B"}, ValueError, "B is 2 in one place and 3"),
        ((nn.ReLU(), torch.rand(2)), {"depth": 0}, ValueError, "depth is 0; expected"),
    ],
)
def test_bad_input_is_named(arguments, options, error, message, without_shape_checks):
    with pytest.raises(error, match=re.escape(message)):
        Pipeline.trace(*arguments, **options)


class Dense(nn.Module):
    """Each layer takes the results of all before it: as many lanes as there are layers."""

    def __init__(self, layers=9):
        super().__init__()
        self.a_layer_with_a_rather_long_name = nn.ModuleList(
            nn.Linear(6 * (n + 1), 6) for n in range(layers)
        )

    def forward(self, x):
        for layer in self.a_layer_with_a_rather_long_name:
            x = torch.cat([x, layer(x)], dim=-1)
        return x


@pytest.mark.parametrize("case", ["network", "loop", "dense"])
def test_a_drawing_is_readable_one_column_wide(case):
    module, inputs, options = {
        "network": (Network(), images(), {"axes": ("B C H W", "B C H W")}),
        "loop": (Network(), images(), {"keywords": {"iterations": 9}}),
        "dense": (Dense(), (torch.rand(2, 3, 20, 6),), {"axes": "B T N D"}),
    }[case]
    figure = Pipeline.trace(module, *inputs, **options).draw()
    assert figure.get_size_inches()[0] <= 3.4
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = [text for text in figure.findobj(Text) if text.get_text().strip()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    assert min(text.get_fontsize() for text in texts) >= 6.5
    (axes,) = figure.axes
    assert all(
        figure.bbox.contains(*corner)
        for p in axes.patches
        for corner in p.get_window_extent().corners()
    )
    for n, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        for other in boxes[:n]:
            apart = box.x1 <= other.x0 or other.x1 <= box.x0 or box.y1 <= other.y0 + 1
            assert apart or other.y1 <= box.y0 + 1, (texts[n].get_text(), other)


def test_the_description_says_what_the_drawing_shows():
    run = Pipeline.trace(Network(), *images(), axes=("B C H W", "B C H W"))
    text = run.describe()
    for stage in run.stages:
        assert f"{stage.name}" in text
    assert "shared takes first and second and gives B × 8 × H/2 × W/2, 2 times." in text
    table = next(markdown_tables(run._repr_markdown_()))
    assert [cells[0].split(" ×")[0] for cells in table[1:]] == [stage.name for stage in run.stages]
