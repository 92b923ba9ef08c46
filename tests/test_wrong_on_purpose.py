"""The mistakes that Wrong on purpose shows as differences are the loops that its page runs."""

import ast
import re

import nbformat

from tools.notebooks import BOOK

CELLS = nbformat.read(BOOK / "frameworks/wrong-on-purpose.ipynb", as_version=4).cells
PROSE = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
CODE = "\n".join(cell.source for cell in CELLS if cell.cell_type == "code")
DIFFERENCES = re.findall(r"^```diff\n(.*?)^```", PROSE, re.MULTILINE | re.DOTALL)
BLOCKS = [*(ast.unparse(node) for node in ast.parse(CODE).body)]


def in_order(lines, block):
    """Whether each line stands in the block, after the one before it."""
    position = 0
    for line in lines:
        position = block.find(ast.unparse(ast.parse(line)) if not line.endswith(":") else line, position)
        if position < 0:
            return False
        position += 1
    return True


def test_each_difference_is_between_two_blocks_that_run():
    assert len(DIFFERENCES) == len(re.findall(r"^## \d\. ", PROSE, re.MULTILINE)) == 8
    for difference in DIFFERENCES:
        for other in "+-":
            lines = [line[1:].strip() for line in difference.splitlines() if not line.startswith(other)]
            assert any(in_order(lines, block) for block in BLOCKS), (other, difference)
