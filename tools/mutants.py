"""Breaks the core in many small ways, and lists the ways that no test notices.

Usage: mutants.py [--count 60] [--seed 0] [--only rules.py]

Each mutant changes one operator or one constant of a file of the core or of a backend, in a copy of the repository.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EVERYWHERE = ("contract", "tracing", "faults", "parity", "differential", "in_place", "memory", "kinds")
TESTS = [f"tests/test_{name}.py" for name in EVERYWHERE]
# The tests of one framework alone.
OWN = {"torch": ["torch"], "tensorflow": ["tensorflow"], "jax": ["jax_values", "pytrees"]}
# What is mutated, and the tests (by the names of their cases) that can notice.
OTHERS = {"numpy", "torch", "tensorflow", "jax"}
SHARED = ("arguments", "memory", "rules", "trees")
TARGETS = {f"gradclip/{name}.py": OTHERS - {"tensorflow", "jax"} for name in SHARED}
TARGETS |= {f"gradclip/backends/{name}.py": {name} for name in OTHERS}

SWAPS = {
    ast.LtE: ast.Lt, ast.Lt: ast.LtE, ast.GtE: ast.Gt, ast.Gt: ast.GtE, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}  # fmt: skip


def changes(node: ast.AST) -> list[tuple[str, object]]:
    """The attributes of a node that can be mutated, each with its new value."""
    if isinstance(node, ast.Compare):
        return [("ops", [SWAPS[type(node.ops[0])](), *node.ops[1:]])]
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
        return [("op", SWAPS[type(node.op)]())]
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return [("value", node.value + 1)]
    if isinstance(node, ast.Constant) and type(node.value) is bool:
        return [("value", not node.value)]
    if isinstance(node, ast.IfExp):
        return [("test", ast.UnaryOp(ast.Not(), node.test))]
    if isinstance(node, ast.If):
        return [("test", ast.Constant(False))]
    return []


def mutants(path: str) -> list[tuple[str, int, str, str, str]]:
    """Each mutant as file, line, the code before and after, and the whole text."""
    found = []
    tree = ast.parse((ROOT / path).read_text())
    # Annotations are not run, so breaking them breaks nothing.
    ignored = {id(n) for f in ast.walk(tree) for a in ("annotation", "returns") if getattr(f, a, None)
               for n in ast.walk(getattr(f, a))}  # fmt: skip
    for number, node in enumerate(ast.walk(tree)):
        for name, value in changes(node) if id(node) not in ignored else []:
            broken = copy.deepcopy(tree)
            target = next(n for i, n in enumerate(ast.walk(broken)) if i == number)
            before = ast.unparse(target).split("\n")[0]
            setattr(target, name, value)
            ast.fix_missing_locations(broken)
            found.append((path, node.lineno, before, ast.unparse(target).split("\n")[0], ast.unparse(broken)))
    return found


def survives(copy_of_root: Path, path: str, text: str) -> bool:
    original = (copy_of_root / path).read_text()
    (copy_of_root / path).write_text(text)
    unseen = " or ".join(OTHERS - TARGETS[path])
    seen = " or ".join(TARGETS[path])
    own = [f"tests/test_{name}.py" for framework in TARGETS[path] for name in OWN.get(framework, ())]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS, *own]
    command += ["-k", f"{seen} or not ({unseen} or compile)"]
    try:
        # A mutant that hangs is noticed, too.
        run = subprocess.run(
            command, cwd=copy_of_root, capture_output=True, timeout=600, env={**os.environ, "PYTHONPATH": "."}
        )
        return run.returncode == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        (copy_of_root / path).write_text(original)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of a file's name")
    options = parser.parse_args()
    every = [m for path in sorted(TARGETS) if options.only in path for m in mutants(path)]
    chosen = random.Random(options.seed).sample(every, min(options.count, len(every)))
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder, "copy")
        shutil.copytree(ROOT, copied, ignore=shutil.ignore_patterns(".venv*", ".git", "_build", "book"))
        survivors = 0
        for path, line, before, after, text in chosen:
            alive = survives(copied, path, text)
            survivors += alive
            print(f"{'SURVIVED' if alive else 'killed  '} {path}:{line}: {before}  →  {after}", flush=True)
    print(f"{len(chosen)} mutants of {len(every)} possible ones, {survivors} survived")


if __name__ == "__main__":
    main()
