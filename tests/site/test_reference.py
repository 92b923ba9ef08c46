"""The reference leaves nothing out, each name has its documentation, and the book uses every function."""

import ast
import importlib
import inspect
import json
import re
import zlib

import nbformat
import pytest

from conftest import SITE
from tools.notebooks import ROOT, all_notebooks

MODULES = ("gradclip", *(f"gradclip.{name}" for name in ("thresholds", "torch", "tensorflow", "keras", "optax")))
PUBLIC = {
    f"{module}.{name}": getattr(importlib.import_module(module), name)
    for module in MODULES
    for name in importlib.import_module(module).__all__
}
# Methods and properties that are ours; those of a base class are documented there.
MEMBERS = {
    f"{path}.{name}": member
    for path, its in PUBLIC.items()
    if inspect.isclass(its) and not issubclass(its, tuple)
    for name, member in vars(its).items()
    if not name.startswith("_")
}


def documented():
    """Each name that has an entry, and the page and place where it stands."""
    entries = zlib.decompress((SITE / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    lines = [re.match(r"(\S+) py:(\w+) \S+ (\S+) ", line) for line in entries.splitlines()]
    return {match[1]: match[3].replace("$", match[1]) for match in lines if match}


def test_every_public_name_has_an_entry():
    assert sorted((PUBLIC.keys() | MEMBERS.keys()) - documented().keys()) == []


def test_every_entry_stands_on_the_reference_page():
    assert {place.partition("#")[0] for name, place in documented().items() if name in PUBLIC} == {
        "book/reference/api.html"
    }


@pytest.mark.parametrize("name", PUBLIC | MEMBERS)
def test_its_documentation_says_what_it_does(name):
    its = (PUBLIC | MEMBERS)[name]
    text = inspect.getdoc(its)
    assert text
    assert text[0].isupper() or text.startswith("`")
    if inspect.isfunction(its) and name in PUBLIC:
        for section in ("Parameters", "Returns", "Raises", "Examples"):
            nothing = section == "Returns" and inspect.signature(its).return_annotation is None
            assert f"{section}\n---" in text or nothing, section
        assert [
            p
            for p in inspect.signature(its).parameters
            if not re.search(rf"^[\w, ]*\b{p}\b[\w, ]*( :|$)", text, re.MULTILINE)
        ] == []


def names_used(source):
    """The dotted names of a notebook's code, with what its imports stand for written out."""
    tree = ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.MULTILINE))
    used, aliases = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            used |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.Attribute):
            used.add(ast.unparse(node))
    return used | {
        f"{aliases[name.split('.')[0]]}.{name.partition('.')[2]}" for name in used if name.split(".")[0] in aliases
    }


def test_every_function_appears_in_a_notebook():
    used = set()
    for path in all_notebooks():
        cells = nbformat.read(path, as_version=4).cells
        used |= names_used("\n".join(cell.source for cell in cells if cell.cell_type == "code"))
    used |= {f"gradclip.{name}" for name in used if name.startswith("thresholds.")}  # from gradclip import thresholds
    functions = {name for name, its in PUBLIC.items() if inspect.isfunction(its) or "thresholds." in name}
    assert sorted(functions - used) == []


def test_the_running_time_of_every_notebook_is_told():
    times = json.loads((ROOT / "book" / "running_times.json").read_text(encoding="utf-8"))
    assert list(times) == [path.relative_to(ROOT).as_posix() for path in all_notebooks()]
    page = (SITE / "book" / "reference" / "versions.html").read_text(encoding="utf-8")
    for run in times.values():
        assert f"<p>{run['seconds']:.0f} s</p>" in page
