"""The files that say what to install agree with one another, and importing costs no framework."""

import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import gradclip

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PINNED = {canonicalize_name(name): version for name, version in (pin.split("==") for pin in PINS)}


def test_environment_yml_says_what_pyproject_and_constraints_say():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = environment["dependencies"]
    assert pip == "pip"
    assert packages == {"pip": ["-c constraints.txt", "-e .[all]"]}
    name, versions = python[:6], SpecifierSet(python[6:])
    assert name == "python"
    classifiers = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if ":: Python :: 3." in c]
    # The package alone takes 3.14; the book waits for TensorFlow's release for it.
    assert [c for c in classifiers if c != "3.14"] == [f"3.{minor}" for minor in range(30) if f"3.{minor}" in versions]
    assert all(c in SpecifierSet(PROJECT["requires-python"]) for c in classifiers)
    assert set(versions) >= set(SpecifierSet(PROJECT["requires-python"]))


def test_all_is_every_extra():
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.name == "gradclip"
    assert everything.extras == EXTRAS.keys() - {"all"}


@pytest.mark.parametrize("line", PROJECT["dependencies"] + [line for e in EXTRAS for line in EXTRAS[e] if e != "all"])
def test_each_requirement_has_a_floor_and_a_pin_within_its_bounds(line):
    requirement = Requirement(line)
    assert any(bound.operator == ">=" for bound in requirement.specifier)
    assert PINNED[canonicalize_name(requirement.name)] in requirement.specifier


def test_only_jupyter_book_has_a_ceiling():
    lines = [*PROJECT["dependencies"], *(line for e in EXTRAS.values() for line in e)]
    assert [line for line in lines if "<" in line] == ["jupyter-book>=1.0.4.post1,<2"]


def test_constraints_are_exact_sorted_and_for_no_one_machine():
    assert sorted(PINS) == PINS
    assert len(PINNED) == len(PINS)
    assert "gradclip" not in PINNED
    assert not [pin for pin in PINS if any(sign in pin for sign in "+@/; ")]


def test_every_package_of_the_environment_is_pinned():
    # Torch's CUDA builds fix the versions of what they bring; appnope comes to macOS alone.
    unpinned = {"appnope"}
    seen, todo = set(), [("gradclip", "all")]
    while todo:
        name, extra = todo.pop()
        for requirement in map(Requirement, requires(name) or []):
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            needed = {(canonicalize_name(requirement.name), e) for e in {"", *requirement.extras}} - seen
            needed = {(n, e) for n, e in needed if not n.startswith(("nvidia-", "cuda-"))}
            seen |= needed
            todo += needed
    assert {name for name, _ in seen} - unpinned - {"gradclip"} <= PINNED.keys()


def test_the_citation_is_of_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == gradclip.__version__


def test_importing_gradclip_imports_no_framework():
    heavy = {"torch", "tensorflow", "keras", "jax", "optax", "matplotlib"}
    code = f"import gradclip, sys; sys.exit(', '.join({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""
