"""The form of a page, made of what its notebook says; CONTRIBUTING.md tells writers how to use it.

- The first paragraph below the title is the standfirst. The second, where it is all in italics, is the line of facts:
  the time that the notebook took goes in behind its first entry.
- The code of a cell tagged ``hide-input`` stands in a fold below what the cell shows, its picture first. Such cells
  without output, as one of imports, join the fold of the next one.
- A section whose heading stands in a Markdown cell tagged ``fold`` is folded away under that heading.
- A figure NAME, or NAME-more, for which there is ``_static/movable/NAME.js`` gets that script.
"""

import json
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

BOOK = Path(__file__).resolve().parents[1]
MOVABLE = BOOK / "_static" / "movable"

logger = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_post_transform(PageForm)
    app.connect("html-page-context", load_the_movable_figures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class PageForm(SphinxPostTransform):
    default_priority = 200  # after myst-nb has hidden the inputs
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        file = Path(self.env.doc2path(self.env.docname))
        set_the_head(self.document, running_time(file))
        for cell in list(self.document.findall(is_hidden_cell)):
            move_code_below(cell)
        if file.suffix == ".ipynb":
            fold_sections(self.document, file)


def running_time(file: Path) -> str:
    times = json.loads((BOOK / "running_times.json").read_text(encoding="utf-8"))
    run = times.get(file.relative_to(BOOK.parent).as_posix())
    return f" · runs in {run['seconds']:.0f} s" if run else ""


def set_the_head(document: nodes.document, time: str) -> None:
    section = next(document.findall(nodes.section), None)
    below_title = section.children[1:3] if section else []
    for paragraph, name in zip(below_title, ("standfirst", "facts"), strict=False):
        if not isinstance(paragraph, nodes.paragraph):
            return
        if name == "facts":
            if len(paragraph) != 1 or not isinstance(paragraph[0], nodes.emphasis):
                return
            first = next(paragraph.findall(nodes.Text))
            minutes, dot, rest = str(first).partition(" · ")
            first.parent.replace(first, nodes.Text(f"{minutes}{time}{dot}{rest}"))
        paragraph["classes"].append(name)


def is_hidden_cell(node: nodes.Node) -> bool:
    return (
        isinstance(node, nodes.container)
        and node.get("nb_element") == "cell_code"
        and node.get("hide_mode") == "input"
    )


def move_code_below(cell: nodes.container) -> None:
    """Put the fold with a cell's code below its output, or into that of the hidden cell that follows at once."""
    fold = next(
        child for child in cell.children if isinstance(child, HideCodeCellNode)
    )
    outputs = [child for child in cell.children if child is not fold]
    following = cell.next_node(descend=False, siblings=True)
    if not outputs and following is not None and is_hidden_cell(following):
        its_fold = next(
            child
            for child in following.children
            if isinstance(child, HideCodeCellNode)
        )
        its_fold.children = [*fold.children, *its_fold.children]
        for code in fold.children:
            code.parent = its_fold
        cell.parent.remove(cell)
        return
    for output in outputs:
        output.children.sort(key=lambda child: not any(child.findall(nodes.image)))
    cell.children = [*outputs, fold]


def fold_sections(document: nodes.document, notebook: Path) -> None:
    cells = nbformat.read(notebook, as_version=4).cells
    marked = [
        cell.source
        for cell in cells
        if cell.cell_type == "markdown" and "fold" in cell.metadata.get("tags", [])
    ]
    headings = [
        next((line for line in source.splitlines() if line.startswith("#")), "")
        for source in marked
    ]
    sections = {
        nodes.make_id(section[0].astext()): section
        for section in document.findall(nodes.section)
    }
    for heading in headings:
        section = sections.get(nodes.make_id(heading.lstrip("#")))
        if section is None:
            logger.warning(
                f"a cell tagged `fold` has no heading that is found on the page: {heading}",
                location=notebook,
            )
            continue
        section["classes"].append("fold")
        section.insert(0, html("<details><summary>"))
        section.insert(2, html("</summary>"))
        section.append(html("</details>"))


def html(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def load_the_movable_figures(
    app: Sphinx, pagename: str, template: str, context: Any, doctree: Any
) -> None:
    names = (
        [
            f"{name}-"
            for figure in doctree.findall(nodes.figure)
            for name in figure["ids"]
        ]
        if doctree
        else []
    )
    for script in sorted(MOVABLE.glob("*.js")):
        if any(name.startswith(f"{script.stem}-") for name in names):
            app.add_js_file(
                f"movable/{script.name}", loading_method="defer", priority=900
            )
