"""Each notebook is stored as it ran, and says what the book and nbval need to know about it."""

import re

import nbformat
import pytest
import yaml

from tools.notebooks import BOOK, ROOT, all_notebooks, normalise, text

PATHS = {str(path.relative_to(ROOT)): path for path in all_notebooks()}
NOTEBOOKS = {name: nbformat.read(path, as_version=4) for name, path in PATHS.items()}
each_notebook = pytest.mark.parametrize("name", NOTEBOOKS)

# What keeps nbval from comparing a cell's output: a tag, or a comment, which is easy to overlook.
ESCAPES = {"nbval-skip", "nbval-ignore-output"}
COMMENT = re.compile(r"^\s*#\s*(NBVAL_|PYTEST_VALIDATE_)", re.MULTILINE)
# Where this or that machine keeps its files.
MACHINE = re.compile(r"/(home|root|tmp|Users|opt|usr)/\w|[A-Z]:\\\\Users| at 0x[0-9a-f]+")


def code_cells(name):
    return [cell for cell in NOTEBOOKS[name].cells if cell.cell_type == "code"]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def toc_files(node):
    if isinstance(node, list):
        return {file for item in node for file in toc_files(item)}
    if isinstance(node, dict):
        own = {node[key] for key in ("root", "file") if key in node}
        return own | toc_files([value for value in node.values() if isinstance(value, list)])
    return set()


def test_the_table_of_contents_lists_each_page():
    listed = toc_files(yaml.safe_load((ROOT / "_toc.yml").read_text()))
    pages = {*NOTEBOOKS, *(str(path.relative_to(ROOT)) for path in BOOK.rglob("*.md"))}
    assert {page.rpartition(".")[0] for page in pages} == listed


@each_notebook
def test_every_code_cell_was_executed_in_order(name):
    cells = code_cells(name)
    assert all(cell.source.strip() for cell in cells), "an empty cell"
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@each_notebook
def test_an_error_is_there_on_purpose(name):
    for cell in code_cells(name):
        failed = any(output.output_type == "error" for output in cell.outputs)
        assert failed == ("raises-exception" in tags(cell)), cell.source


@each_notebook
def test_one_title(name):
    prose = "\n".join(cell.source for cell in NOTEBOOKS[name].cells if cell.cell_type == "markdown")
    without_code = re.sub(r"^(`{3,}|~{3,}).*?^\1", "", prose, flags=re.MULTILINE | re.DOTALL)
    assert len(re.findall(r"^# ", without_code, re.MULTILINE)) == 1


@each_notebook
def test_every_picture_has_a_text_for_who_cannot_see_it(name):
    for cell in code_cells(name):
        if any(mime.startswith("image/") for output in cell.outputs for mime in output.get("data", {})):
            assert cell.metadata.get("mystnb", {}).get("image", {}).get("alt"), cell.source


@each_notebook
def test_what_escapes_comparison_says_why(name):
    for cell in code_cells(name):
        assert not COMMENT.search(cell.source), "a tag says it, not a comment"
        assert bool(tags(cell) & ESCAPES) == bool(cell.metadata.get("nbval_reason")), cell.source


def test_few_cells_escape_comparison():
    cells = [cell for name in NOTEBOOKS for cell in code_cells(name)]
    assert sum(bool(tags(cell) & ESCAPES) for cell in cells) <= 0.05 * len(cells)


@each_notebook
def test_the_file_is_as_make_notebooks_writes_it(name):
    assert PATHS[name].read_text(encoding="utf-8") == text(normalise(NOTEBOOKS[name]))


@each_notebook
def test_no_output_tells_of_the_machine_it_ran_on(name):
    for cell in code_cells(name):
        for output in cell.outputs:
            shown = [value for mime, value in output.get("data", {}).items() if mime.startswith("text/")]
            for string in [output.get("text", ""), *shown, *output.get("traceback", [])]:
                assert not MACHINE.search(string), cell.source
