"""Drafts in Markdown: markdown-it's tokens, with two rules of our own for formulas."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from fourfold.kit.drafts.draft import Draft, Place
from fourfold.kit.drafts.latex import DISPLAYS
from fourfold.kit.drafts.page import Page, read_source

__all__ = ["read_markdown"]

_LONGEST_FORMULA = 100  # lines


_MATH_ENDS = {"$$": "$$", r"\[": r"\]"}


def _math_block(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    r"""A markdown-it rule: $$…$$, \[…\] or \begin{equation}…, from its own line to its end."""
    text = state.src[state.bMarks[first] + state.tShift[first] : state.eMarks[first]]
    opened = re.match(r"\$\$|\\\[|\\begin\{(\w+)\*?\}", text)
    if not opened or (opened[1] and opened[1] not in DISPLAYS):
        return False
    end = _MATH_ENDS.get(opened[0]) or opened[0].replace("begin", "end")
    for line in range(first, min(last, first + _LONGEST_FORMULA)):
        here = state.src[state.bMarks[line] : state.eMarks[line]]
        here = text[opened.end() :] if line == first else here
        if not here.strip() and line > first:
            break
        if end in here:
            if not silent:
                token = state.push("math_block", "", 0)
                token.content, token.map = (
                    state.getLines(first, line + 1, 0, False),
                    [first, line + 1],
                )
                state.line = line + 1
            return True
    return False


_INLINE_MATH = re.compile(r"\$(?![\s$])([^$\n]{1,500}?)(?<!\s)\$(?!\d)|\\\((.{1,500}?)\\\)")


def _math_inline(state: StateInline, silent: bool) -> bool:
    """A markdown-it rule: $…$ without a space inside its ends, so that $5 and $6 stay prices."""
    match = _INLINE_MATH.match(state.src, state.pos)
    if match and not silent:
        state.push("math_inline", "", 0).content = match[1] or match[2]
    state.pos = match.end() if match else state.pos
    return match is not None


def _markdown_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark").enable("table")
    parser.block.ruler.before("fence", "math", _math_block, {"alt": ["paragraph"]})
    parser.inline.ruler.before("escape", "math", _math_inline)
    return parser


_KEYS = re.compile(r"(?<![\w@])@([\w][\w:.#$%&+?<>~/-]*\w|\w)")


_NUMBERS = re.compile(r"\[(\d+(?:\s*[,;–-]\s*\d+)*)\](?!\()")


_LABEL = re.compile(r"\{#([\w:.-]+)[^}\n]*\}")


_ATTRIBUTES = re.compile(r"\s*\{(?:[#.][^{}\n]*|-)\}\s*$")  # {#sec-a}, {.unnumbered}, {-}


_DIVISION = re.compile(r"^[ \t]*:{3,}[^\n]*$", re.MULTILINE)  # ::: {.callout} of pandoc


# pandoc-crossref writes @fig:a, Quarto @fig-a, and both @Fig at a sentence's beginning.
_CROSS = re.compile(r"(?:[Ff]ig|[Tt]bl|[Tt]ab|[Ee]q|[Ss]ec|[Aa]lg|[Ll]st)[:-]")


_IS_CAPTION = re.compile(r"(?:Fig(?:ure|\.)?|Table|Tab\.)\s*\d+\s*[.:–—]|Table:|:\s")


_FRONT = re.compile(r"---[ \t]*\n(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)


_LONGEST_LINE = 100_000


_MOST_SIGNS = 300_000


_ACTIVE = re.compile(r"[\[\]*_`<>!$&\\#|:@-]")


def _blocks(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """The tokens of one outermost block after the other."""
    block = []
    for token in tokens:
        block.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield block
            block = []
    if block:
        yield block


def _is_image(block: Sequence[Token]) -> bool:
    """Whether the block is a paragraph of images and nothing else (an attribute may follow)."""
    children = block[1].children or [] if len(block) == 3 and block[1].type == "inline" else []
    rest = "".join(
        _LABEL.sub("", c.content) for c in children if c.type not in ("image", "softbreak")
    )
    return any(c.type == "image" for c in children) and not rest.strip()


def _caption_of(block: Sequence[Token]) -> str:
    """What a paragraph such as `*Figure 2: …*` or `Table: …` says; empty for any other block."""
    if block[0].type != "paragraph_open":
        return ""
    text = block[1].content.strip().strip("*_").strip()
    match = _IS_CAPTION.match(text)
    return text[match.end() :].strip() if match else ""


def _inline_text(token: Token) -> str:
    words = {
        "softbreak": "\n",
        "hardbreak": "\n",
        "image": "",
        "html_inline": "",
        "code_inline": "",
    }
    return "".join(
        f"${child.content}$"
        if child.type == "math_inline"
        else words.get(child.type, child.content.replace("$", ""))
        for child in token.children or []
    )


def _markdown_heading(page: Page, block: Sequence[Token], place: Place) -> None:
    level = int(block[0].tag[1])
    title = _ATTRIBUTES.sub("", _inline_text(block[1]))
    if level == 1 and not page.sections and not page.title:
        page.title, page.title_level = " ".join(title.split()), 1
        return
    page.appendix = page.appendix or title.strip().lower().startswith("appendix")
    page.heading(max(1, level - page.title_level), title, place)


def _markdown_equation(page: Page, content: str, place: Place) -> None:
    labels = re.findall(r"\\label\{([^{}]*)\}", content) + _LABEL.findall(content)
    text = re.sub(
        r"\$\$|\\[\[\]]|\\(?:begin|end)\{\w+\*?\}|\\label\{[^{}]*\}|\{#[^}\n]*\}", " ", content
    )
    page.mark("equation", "", text, labels, place)


_WITHOUT_MATH = re.compile(r"\$[^$]*\$")


def _range(numbers: str) -> list[str]:
    """The works of `1, 3–5` one by one."""
    found = []
    for part in re.split(r"[,;]", numbers):
        ends = [int(n[:6]) for n in re.findall(r"\d+", part)]
        found += range(ends[0], min(ends[-1], ends[0] + 50) + 1)
    return [str(number) for number in found]


def _label(key: str) -> str:
    """The label that @Fig:a means: fig:a."""
    return key[0].lower() + key[1:]


def _note(page: Page, text: str, place: Place) -> None:
    """Record the citations `[@key]`, `@key`, `[1, 2]` and the references `@fig:a`."""
    keys = _KEYS.findall(_WITHOUT_MATH.sub("", text))
    page.refer([_label(key) for key in keys if _CROSS.match(key)], place)
    page.cite([key for key in keys if not _CROSS.match(key)], place)
    for numbers in _NUMBERS.findall(text):
        page.cite(_range(numbers), place)


def _markdown_float(
    page: Page, kind: str, block: Sequence[Token], place: Place, caption: str
) -> None:
    text = " ".join(_inline_text(token) for token in block if token.type == "inline")
    images = [c for t in block for c in t.children or [] if c.type == "image"]
    alternative = " ".join(image.content for image in images)
    labels = _LABEL.findall(" ".join(t.content for t in block if t.type == "inline") + caption)
    _note(page, text, place)
    page.references = [r for r in page.references if r.place != place or r.label not in labels]
    own = caption or (alternative if kind == "figure" else "")
    page.mark(kind, _LABEL.sub("", own), text if kind == "table" else "", labels, place)


_MARKED = re.compile(rf"\[[^\[\]]{{0,300}}@[^\[\]]{{0,300}}\]|{_NUMBERS.pattern}|{_KEYS.pattern}")


def _as_mark(match: re.Match) -> str:
    keys = _range(match[1]) if match[1] else _KEYS.findall(match[0])
    works = "; ".join(f"@{key}" for key in keys if not _CROSS.match(key))
    labels = "".join(f"[#{_label(key)}]" for key in keys if _CROSS.match(key))
    return (f"[{works}]" if works else "") + labels


def _as_marks(text: str) -> str:
    """The text with its citations and references written as the LaTeX reader writes them."""
    return _MARKED.sub(_as_mark, text)


def _markdown_text(page: Page, block: Sequence[Token], place: Place) -> str:
    """The prose of a block, its citations and references noted line by line."""
    texts = []
    for token in block:
        if token.type == "inline":
            first = (token.map or [place.line - 1])[0] + 1
            text = _inline_text(token)
            for number, line in enumerate(text.split("\n")):
                _note(page, line, Place(place.file, first + number))
            texts.append(text)
        elif token.type == "math_block":
            _markdown_equation(page, token.content, Place(place.file, token.map[0] + 1))
    return _as_marks(" ".join(texts))


def _walk_markdown(page: Page, tokens: Sequence[Token], name: str) -> None:
    """Take the blocks one by one; a list, a quotation or a table is one block."""
    blocks = list(_blocks(tokens))
    captions = [_caption_of(block) for block in blocks]
    for i, block in enumerate(blocks):
        place = Place(name, (block[0].map or [0])[0] + 1)
        if block[0].type == "heading_open":
            _markdown_heading(page, block, place)
        elif block[0].type == "math_block":
            _markdown_equation(page, block[0].content, place)
        elif block[0].type == "table_open" or _is_image(block):
            kind = "table" if block[0].type == "table_open" else "figure"
            near = (captions[j] for j in (i + 1, i - 1) if 0 <= j < len(blocks))
            _markdown_float(page, kind, block, place, next(filter(None, near), ""))
        elif block[0].type not in ("fence", "code_block", "html_block", "hr"):
            text = _markdown_text(page, block, place)
            if not captions[i]:
                page.paragraph(text, place)


def _division_labels(text: str) -> dict[int, tuple[str, ...]]:
    """For each line inside `::: {#fig-both}` … `:::` the labels of the divisions around it."""
    labels, opened = {}, []
    for number, line in enumerate(text.split("\n"), start=1):
        if _DIVISION.match(line):
            if line.strip().strip(":"):
                opened.append(tuple(_LABEL.findall(line)))
            elif opened:
                opened.pop()
        elif any(opened[-9:]):
            labels[number] = tuple(label for found in opened[-9:] for label in found)
    return labels


def _within_budget(page: Page, text: str, name: str) -> str:
    """Empty the lines that markdown-it, which takes minutes over brackets, would take long for."""
    lines, left = text.split("\n"), _MOST_SIGNS
    for number, line in enumerate(lines):
        place, left = Place(name, number + 1), left - len(_ACTIVE.findall(line))
        if left < 0:
            page.fault("more marks of Markdown than a draft has", f"at most {_MOST_SIGNS:,}", place)
        elif len(line) > _LONGEST_LINE:
            found = f"a line of {len(line)} characters"
            page.fault(found, f"at most {_LONGEST_LINE:,}", place, kind="long line")
        if left < 0 or len(line) > _LONGEST_LINE:
            lines[number] = ""
    return "\n".join(lines)


def read_markdown(path: Path) -> Draft:
    """Read a Markdown draft: front matter, headings, images, tables, formulas and citations."""
    page, name = Page(), path.name
    text, fault = read_source(path, name)
    page.faults += [fault] if fault else []
    if front := _FRONT.match(text):
        named = re.search(r"^title:\s*[\"']?(.*?)[\"']?\s*$", front[1], re.MULTILINE)
        page.title = named[1] if named else ""
        text = re.sub(r"[^\n]", "", front[0]) + text[front.end() :]
    inside = _division_labels(text)
    text = _within_budget(page, _DIVISION.sub("", text), name)
    _walk_markdown(page, _markdown_parser().parse(text), name)
    page.marks = [replace(m, labels=(*m.labels, *inside.get(m.place.line, ()))) for m in page.marks]
    return page.draft(name)
