"""Prints the lower bounds of pyproject.toml as constraints, so that a test can run at each of them."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"].values()
for line in [*project["dependencies"], *(line for extra in extras for line in extra)]:
    requirement = Requirement(line)
    for bound in requirement.specifier:
        if bound.operator == ">=":
            print(f"{requirement.name}=={bound.version}")
