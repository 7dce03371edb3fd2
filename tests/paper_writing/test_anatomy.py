"""Reading drafts and holding them against the rules: counts by hand, properties, broken input."""

import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from fourfold.kit.drafts import read_draft
from fourfold.paper_writing.anatomy import (
    RULES,
    formula_symbols,
    longest_list,
    outline,
    pace_of,
    review,
    share_of,
    skeleton,
    split_sentences,
    symbol_forms,
)

DRAFTS = Path(__file__).parents[1] / "drafts"
ORCHARD = DRAFTS / "orchard" / "paper.tex"
NAMES = ("sections", "figures", "tables", "equations", "algorithms", "citations", "faults")


def rules_of(draft, **options):
    return Counter(finding.rule for finding in review(draft, **options))


def test_sentences_end_where_they_should():
    text = "See Fig. 2, e.g. A et al. [@a]. Is it? Yes! (No.) The end"
    assert split_sentences(text) == [
        "See Fig. 2, e.g. A et al. [@a].",
        "Is it?",
        "Yes!",
        "(No.)",
        "The end",
    ]


@pytest.mark.parametrize(
    ("tex", "expected"),
    [
        (r"a_i^2 + b", {"a", "b"}),
        (r"\alpha \exp(x) + \log y", {r"\alpha", "x", "y"}),
        (r"\mathbf{x}_{t_{0}} = \mathbf x", {r"\mathbf{x}"}),
        (r"\hat{\theta} \text{ if } \operatorname{Var}(N)", {r"\hat{\theta}", "N"}),
        (r"1, \dots, n", {"n"}),
        (r"\begin{aligned} u \end{aligned} \label{eq:v}", {"u"}),
        (r"x \in \mathbb{R}^{H \times W}", {"x", r"\mathbb{R}"}),
        ("", set()),
        ("y = Wx + b", {"y", "W", "x", "b"}),
        (r"softmax(QK^\top)V", {"Q", "K", "V"}),
        (r"\hat{\mathbf{x}} + \hat{\mathbf x}_t", {r"\hat{\mathbf{x}}"}),
        (r"p_\theta(x \mid \mathcal{Z})\,dt", {"p", "x", r"\mathcal{Z}", "d", "t"}),
        (r"\left( a \right)\\b", {"a", "b"}),
    ],
)
def test_symbols_of_a_formula(tex, expected):
    assert formula_symbols(tex) == expected


def test_forms_of_a_symbol(read):
    draft = read(
        r"\section{Method} Let $x$ be. \[ y = x + z \] "
        r"\begin{figure}\caption{From $x$ to $y$, with $u$.}\end{figure}"
    )
    forms = symbol_forms(outline(draft))
    assert forms == {
        "x": {"formula", "words", "figure"},
        "y": {"formula", "figure"},
        "z": {"formula"},
        "u": {"figure"},
    }


def test_parts_are_told_by_titles_and_synonyms(read):
    titles = [
        "Introduction",
        "Prior Work",
        "Preliminaries",
        "Our Gadget",
        "Evaluation",
        "Discussion",
    ]
    draft = read("".join(rf"\section{{{title}}} Words. " for title in titles))
    parts = outline(draft).parts
    assert [parts[part] for part in parts] == [(i,) for i in range(6)]


def test_the_method_may_be_called_by_its_name(read):
    text = r"\section{Introduction} A. \section{Graph Gadgets} Long words. \subsection{More} B."
    draft = read(text + r" \section{Experiments} C.")
    assert outline(draft).parts["method"] == (1, 2)
    titles = {"method": "experiments", "introduction": "introduction"}
    assert outline(draft, titles).parts["method"] == (3,)


def test_a_subsection_does_not_take_the_method_from_its_section(read):
    draft = read(
        r"\section{Introduction} A. \section{Graph DiT} Long words. \subsection{Graph-Dependent"
        r" Noise Model} B. \subsection{Background} C. \section{Experiments} D."
    )
    parts = outline(draft).parts
    assert parts["method"] == (1, 2) and parts["background"] == (3,)


def test_theoretical_results_are_no_experiments(read):
    draft = read(r"\section{Theoretical Results} A. \section{Results} B.")
    assert outline(draft).parts["experiments"] == (1,)


def test_a_part_in_the_appendix_is_said_to_be_there(read):
    draft = read("\\section{Introduction} A.\n\\appendix\n\\section{Related Work} B.")
    (found,) = [f for f in review(draft, ["sections"]) if "related" in f.found]
    assert found.place.line == 3 and found.found == "related work stands only in the appendix"


def test_markdown_with_its_title_in_the_front_matter(read):
    text = "---\ntitle: T\n---\n\n# Introduction\n\nA.\n\n# Gadget\n\nB.\n\n## Model\n\nC.\n"
    draft = read(text + "\n# Experiments\n\nSee @fig-a [@b].\n\n![A](a.png){#fig-a}\n", "main.qmd")
    assert outline(draft).parts["method"] == (1, 2)
    assert not review(draft, ["referred"]) and [c.key for c in draft.citations] == ["b"]


def test_background_may_stand_inside_another_section(read):
    draft = read(r"\section{Introduction} A \subsection{Background} B \subsection{Model} C")
    parts = outline(draft).parts
    assert parts["introduction"] == (0, 2) and parts["background"] == (1,)


def test_pace_and_share(read):
    assert pace_of(100, 3) == 25
    paper = outline(read(r"\section{Related work} a b c \section{Background} d"))
    assert share_of("related work", "background", paper) == 0.75
    assert longest_list("A [@a]. B [@b]. Unlike C [@c].") == 2


@pytest.mark.parametrize("short", ["Tab.", "Sec.", "Eqs.", "resp.", "Alg.", "App.", "approx."])
def test_an_abbreviation_ends_no_sentence(short):
    assert len(split_sentences(f"As in {short} 2 it works. Yes.")) == 2


def test_no_sentence_begins_with_a_reference():
    assert len(split_sentences("As in Thms. [#a] it works. Yes.")) == 2


# One rule, one text: satisfied, or not.


@pytest.mark.parametrize(
    ("rule", "tex", "count"),
    [
        ("dimensions", r"It maps an image $x\in\mathbb{R}^3$ to a vector $y\in\mathbb{R}^4$.", 0),
        ("dimensions", r"Learn $f:\mathbb{R}^3\to\mathbb{R}^4$.", 0),
        ("dimensions", r"Learn \[ f:\mathbb{R}^3\to\mathbb{R}^4. \]", 0),
        ("dimensions", r"It maps $x\in\mathbb{R}^3$ to a class.", 2),
        ("data_sets", "We evaluate on QM9 and ZINC250k.", 0),
        ("data_sets", "The net is trained on Cora, and tested on Pubmed.", 0),
        ("data_sets", "We train on NVIDIA A100 GPUs.", 1),
        ("data_sets", r"\paragraph{Datasets.} We use photographs. \paragraph{Data Sets.}", 1),
        ("hedge", "The attention weights clearly show that the model understands objects.", 1),
        ("hedge", "The attention weights might show what it looks at.", 0),
        ("examples", r"We consider graphs. They say so. \[ a = b \]", 1),
        ("examples", r"\[ a = b \] For example, it is so.", 0),
        ("symbols", r"\[ y = \sigma(Wx + b) \] Here $x$ is the input.", 1),
        ("symbols", r"Here $x$ is. \begin{figure}\caption{$u$}\end{figure}", 1),
        ("symbols", r"Here $u$ is. \begin{figure}\caption{$u$}\end{figure}", 0),
        ("pipeline", r"\begin{figure}\caption{The pipeline.}\end{figure}", 0),
        ("pipeline", r"\begin{figure}\caption{The pipeline.}\end{figure}" * 2, 1),
        ("referred", r"\begin{figure}\caption{See \ref{a}.}\label{a}\end{figure}", 1),
        ("introduction", "", 1),
        ("works", r"\cite{" + ",".join("abcdefghijklmnop") + "}", 1),
        ("works", r"\cite{" + ",".join("abcdefghijkl") + "}", 0),
        ("limits", "We do not need much.", 1),
        ("limits", "It is limited to cats.", 0),
    ],
)
def test_a_rule_on_a_text(read, rule, tex, count):
    part = (RULES[rule].parts or ("method",))[0]
    found = review(read(rf"\section{{{part}}} {tex}"), [rule]).findings
    assert len(found) == count, found


def test_one_finding_names_all_the_symbols_of_an_equation(read):
    draft = read(r"\section{Method} \[ y = \sigma(Wx) \] Here $x$ is the input, $y$ the output.")
    (found,) = review(draft, ["symbols"])
    assert found.found == r"no sentence says what $W$, $\sigma$ are"


def test_background_without_related_work_is_out_of_balance(read):
    draft = read(r"\section{Related work} A. \section{Background} One two three four five six.")
    (found,) = review(draft, ["balance"])
    assert "14%" in found.found


def test_one_is_counted_as_one(read):
    draft = read(r"\section{Introduction} A \cite{a}. \section{Method} B.")
    assert next(iter(review(draft, ["trend"]))).found == "1 work cited"
    assert next(iter(review(draft, ["pipeline"]))).wanted == "one such figure"


@pytest.mark.parametrize(
    "text",
    [
        "{" * 10_000,
        r"\section{Method}\begin{equation}" + "x_{" * 20_000 + "}" * 20_000 + r"\end{equation}",
        r"\section{Method}$" + r"\hat{" * 5_000 + "x" + "}" * 5_000 + "$",
        "word " * 100_000,
        "[@" * 20_000,
        r"\section{Experiments} We train on " + "A-" * 20_000,
        r"\section{Method} from " + r"\mathbb{R} to " * 5_000,
    ],
    ids=lambda text: text[:12],
)
def test_large_and_deep_sources_are_reviewed(read, text):
    found = review(read("\\section{Experiments}\n" + text))
    assert str(found) and found._repr_markdown_()
    skeleton(found.draft)


# The rules. The orchard paper satisfies all of them; one change each breaks one.


def test_the_orchard_paper_satisfies_every_rule():
    assert review(read_draft(ORCHARD)).findings == ()


@pytest.fixture
def changed(tmp_path):
    """The orchard paper with pieces of its text changed."""

    def change(*changes):
        folder = tmp_path / "orchard"
        shutil.copytree(ORCHARD.parent, folder)
        for name, pattern, new in changes:
            path = folder / name
            text, count = re.subn(
                pattern, lambda _, new=new: new, path.read_text(), flags=re.DOTALL
            )
            assert count, f"{pattern} is not in {name}"
            path.write_text(text)
        return read_draft(folder / "paper.tex")

    return change


S = "sections/"
BREAKS = {
    "sections": [("paper.tex", r"\\input{sections/conclusion}", "")],
    "introduction": [(S + "introduction.tex", "What can be seen", "\n\nWhat\n\ncan be seen")],
    "trend": [(S + "introduction.tex", r"~?\\cite[pt]?{[^}]*}", "")],
    "question": [
        (S + "introduction.tex", r"We ask whether", "We show how"),
        (S + "introduction.tex", r"has two parts\. Can", "has two parts. We"),
        (S + "introduction.tex", r"The question", "It"),
        (S + "introduction.tex", r"\?", "."),
        (S + "introduction.tex", r"What can", "All that can"),
    ],
    "balance": [(S + "background.tex", r"\\subsection{A law.*", "")],
    "works": [(S + "related.tex", r"\\cite{(buckland|rahnemoonfar,chen)}", "")],
    "examples": [(S + "background.tex", r"For instance, with \$\\mu = 48\$ and \$r = 6\$", "Here")],
    "pipeline": [
        ("figures/pipeline.tex", r"The pipeline, from one photograph \$x\$ to", "One $x$,")
    ],
    "dimensions": [(S + "method.tex", r"the output is", "we write")],
    "symbols": [(S + "method.tex", r"of the standard deviation \$\\sigma\$", "of the deviation")],
    "figure_symbols": [("figures/pipeline.tex", r"\$", "")],
    "referred": [(S + "experiments.tex", r"\\Cref{tab:ablation}", "We")],
    "captions": [
        (S + "experiments.tex", r"\\caption{The worst six.*?tree\.}", r"\caption{Failures.}")
    ],
    "pace": [(S + "introduction.tex", r"We ask whether", "We ask whether " + "and whether " * 260)],
    "data_sets": [
        (S + "experiments.tex", r"two data sets of", "the"),
        (S + "experiments.tex", r"training data", "training rows"),
    ],
    "hyperparameters": [
        (S + "experiments.tex", r"since larger ones.*?rows\.", "."),
        (S + "experiments.tex", r"shows the role of", "shows"),
        (S + "experiments.tex", r"The role of two", "Two"),
        (S + "experiments.tex", r"a strong effect", "much to say"),
    ],
    "ablation": [
        (S + "experiments.tex", r"Ablation on", "Parts on"),
        (S + "experiments.tex", r"(?i)without", "less"),
        (S + "experiments.tex", r"\\subsection{Ablation}", r"\subsection{Parts}"),
    ],
    "failures": [
        (S + "experiments.tex", r"The worst six failures", "Six more examples of trees"),
        (S + "experiments.tex", r"fig:failures", "fig:six"),
    ],
    "hedge": [
        (S + "experiments.tex", r"might be", "is"),
        (S + "experiments.tex", r"could have", "has"),
        (S + "experiments.tex", r"as possibilities", "as results"),
    ],
    "limits": [
        (S + "conclusion.tex", r"The limits are plain", "So much"),
        (S + "conclusion.tex", r"cannot be counted, but", "are many, and"),
        (S + "conclusion.tex", r"We did not try", "We tried"),
    ],
    "untried": [
        (S + "conclusion.tex", r"; nor did we have time.*work\.", "."),
        (S + "conclusion.tex", r"We did not try", "We tried"),
    ],
}


def test_every_rule_has_a_draft_that_breaks_it():
    assert set(BREAKS) == set(RULES) - {"discussion"}


@pytest.mark.parametrize("rule", BREAKS)
def test_a_change_breaks_one_rule(changed, rule):
    assert set(rules_of(changed(*BREAKS[rule]))) == {rule}


def test_a_list_of_works_is_no_discussion(changed):
    listing = r"\section{Related Work} " + " ".join(
        rf"A{i} did it~\cite{{k{i}}}." for i in range(12)
    )
    draft = changed((S + "related.tex", ".+", listing + " More words. " * 200))
    found = [f.found for f in review(draft, rules=["discussion"])]
    assert len(found) == 2 and "12 sentences in a row" in found[1]


PARTS = dict(
    zip(
        ("introduction", "related work", "background", "method", "experiments", "conclusion"),
        ("introduction", "related", "background", "method", "experiments", "conclusion"),
        strict=True,
    )
)


@pytest.mark.parametrize("part", PARTS)
def test_removing_a_section_adds_its_one_finding(changed, part):
    draft = changed(("paper.tex", rf"\\input{{sections/{PARTS[part]}}}", ""))
    (finding,) = review(draft).findings
    assert finding.rule == "sections" and part in finding.found


@pytest.mark.parametrize("part", PARTS)
def test_removing_a_section_of_a_weak_draft_takes_its_findings_along(read, part):
    titles = ["Introduction", "Related work", "Background", "Method", "Experiments", "Conclusion"]
    texts = {t.lower(): rf"\section{{{t}}} We are good. \[ q = 1 \] " for t in titles}
    before = rules_of(read("".join(texts.values())))
    after = rules_of(read("".join(text for name, text in texts.items() if name != part)))
    silent = {name for name, rule in RULES.items() if part in rule.parts}
    expected = {name: n for name, n in before.items() if name not in silent} | {"sections": 1}
    assert after == expected


@settings(max_examples=30)
@given(st.randoms(use_true_random=False), st.sampled_from([*PARTS.values()]))
def test_the_order_of_paragraphs_in_a_section_changes_no_count(tmp_path_factory, chance, part):
    folder = tmp_path_factory.mktemp("order") / "orchard"
    shutil.copytree(ORCHARD.parent, folder)
    path = folder / "sections" / f"{part}.tex"
    head, *blocks = re.split(r"\n(?=\\subsection)", path.read_text())
    mixed = []
    for block in [head, *blocks]:
        first, _, rest = block.partition("\n")
        paragraphs = [p for p in rest.split("\n\n") if p.strip()]
        chance.shuffle(paragraphs)
        mixed.append(first + "\n" + "\n\n".join(paragraphs))
    path.write_text("\n\n".join(mixed) + "\n")
    before, after = read_draft(ORCHARD), read_draft(folder / "paper.tex")
    for name in (*NAMES, "paragraphs", "references"):
        assert len(getattr(after, name)) == len(getattr(before, name))
    assert after.words == before.words and review(after).findings == ()


def test_thresholds_decide():
    draft = read_draft(DRAFTS / "tides" / "thesis.tex")
    assert "introduction" in rules_of(draft)
    assert "introduction" not in rules_of(draft, introduction_paragraphs=(1, 6))


def test_a_rule_of_your_own():
    def rule_short(paper):
        yield from () if paper.draft.words < 10 else review(paper.draft, ["sections"]).findings

    assert len(review(read_draft(DRAFTS / "bees.md"), rules={"short": rule_short})) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rules": ["questoin"]}, "rules: got 'questoin'; expected question"),
        ({"work": (1, 2)}, "thresholds: got 'work'; expected works"),
        ({"rules": ["question"], "works": (1, 2)}, "thresholds: got 'works'; expected questions"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        review(read_draft(ORCHARD), **options)


def test_the_report_names_every_finding_once():
    found = review(read_draft(DRAFTS / "dialects" / "main.tex"))
    lines = str(found).splitlines()
    assert len(found) == 5 == sum(line.startswith("    found") for line in lines)
    assert found._repr_markdown_().count("\n| `") == 5
    assert lines[-1].startswith("5 findings (sections 1")


# The skeleton.


def test_the_skeleton_has_a_shape_for_each_kind_of_mark():
    figure = skeleton(read_draft(ORCHARD))
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    marks = [line for line in axes.lines if line.get_label()[0] != "_"]
    assert [line.get_label() for line in marks] == [
        "3 figures",
        "3 tables",
        "8 equations",
        "1 algorithm",
        "23 citations",
    ]
    assert len({line.get_marker() for line in marks}) == 5
    titles = {text.get_text() for text in axes.texts}
    assert {"Abstract", "Related Work", "Conclusion"} <= titles


def test_the_skeleton_of_next_to_nothing(read):
    skeleton(read("word"))
    skeleton(read(r"\section{$x_}$}"))


# Thirty pages, made on the spot.


def long_paper(sections=12, paragraphs=30, words=42, seed=0):
    """About 15,000 words with two files, comments, macros; and what is in it."""
    chance = random.Random(seed)
    counts = Counter()
    parts = []
    for s in range(sections):
        parts.append(rf"\section{{Part {s}}} % \section{{Ghost}}")
        for p in range(paragraphs):
            text = " ".join(
                chance.choice(["graph", "noise", "token", "layer"]) for _ in range(words)
            )
            counts["words"] += words
            extra = chance.choice(["cite", "equation", "figure", "none"])
            counts[extra] += 1
            text += {
                "cite": rf" \citex{{k{p},l{p}}}.",
                "equation": f"\n\\be x_i = y \\label{{eq:{s}-{p}}} \\ee\n",
                "figure": "\n\\begin{figure*}[t]\\caption{A \\emph{b} $c$.}\\end{figure*}\n",
                "none": " % nothing, \\cite{ghost}",
            }[extra]
            parts.append(text + "\n")
    head = "\\newcommand{\\be}{\\begin{equation}}\\newcommand{\\ee}{\\end{equation}}\n"
    head += "\\newcommand{\\citex}[1]{\\citep[see][]{#1}}\n"
    return head + "\n".join(parts), counts


def test_thirty_pages_are_counted_exactly(read):
    text, counts = long_paper()
    draft = read(text)
    assert draft.words == counts["words"] > 15_000
    assert len(draft.sections) == 12 and len(draft.paragraphs) == 360
    assert len(draft.citations) == 2 * counts["cite"]
    assert len(draft.equations) == counts["equation"] and len(draft.figures) == counts["figure"]
    assert draft.faults == ()
