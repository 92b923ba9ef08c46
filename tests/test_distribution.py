"""What `pip install` brings: built here, installed where there is NumPy alone."""

import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import BytesParser
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from readme_renderer import markdown

import gradclip

ROOT = Path(__file__).resolve().parent.parent
WHOLE = f"gradclip-{gradclip.__version__}"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation, for that would fetch what builds it from an index.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (file,) = built.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return BytesParser().parsebytes(archive.read(f"{WHOLE}.dist-info/METADATA"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
    package = {
        p.relative_to(ROOT).as_posix() for p in (ROOT / "gradclip").rglob("*") if p.suffix in (".py", ".typed", ".html")
    }
    about = {f"{WHOLE}.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")}
    assert "gradclip/py.typed" in package
    assert files == package | about


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git has the list of files")
def test_the_sdist_holds_what_git_does(built):
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        files = {name.removeprefix(f"{WHOLE}/") for name in archive.getnames()}
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    tracked = {name for name in listed if (ROOT / name).is_file() and not name.startswith((".ci/", ".github/"))}
    assert files == tracked | {"PKG-INFO"}


def test_it_works_where_there_is_numpy_alone(wheel, tmp_path):
    venv.create(tmp_path / "empty", with_pip=False)
    python = next((tmp_path / "empty").glob("*/python"))
    command = "import sysconfig; print(sysconfig.get_path('purelib'))"
    there = Path(subprocess.run([python, "-c", command], capture_output=True, text=True).stdout.strip())
    here = distribution("numpy").locate_file("")
    for name in {file.parts[0] for file in distribution("numpy").files if file.parts[0] != ".."}:
        (there / name).symlink_to(here / name)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--disable-pip-version-check"]
    run = subprocess.run([*pip, wheel], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    run = subprocess.run([python, "-m", "gradclip"], capture_output=True, text=True, cwd=tmp_path)
    first, numpy, *others = run.stdout.splitlines()
    assert first.startswith(f"gradclip {gradclip.__version__}, Python 3.")
    assert re.fullmatch(r"numpy +[\d.]+ +all (\d+) cases right", numpy)
    assert [re.sub(" +", " ", line) for line in others] == [
        f"{framework} not installed" for framework in ("torch", "tensorflow", "jax")
    ]
    assert run.returncode == 0
    log = ROOT / "book" / "snippets" / "logs" / "table.csv"
    run = subprocess.run([python, "-m", "gradclip", "report", log, "--html", tmp_path / "page.html"], cwd=tmp_path)
    assert run.returncode == 0
    assert (tmp_path / "page.html").exists()


def test_each_extra_brings_its_framework(metadata):
    extras = {}
    for requirement in map(Requirement, metadata.get_all("Requires-Dist")):
        for extra in metadata.get_all("Provides-Extra"):
            if requirement.marker and requirement.marker.evaluate({"extra": extra}):
                extras.setdefault(extra, set()).add(requirement.name)
    assert extras["torch"] == {"torch"}
    assert extras["tensorflow"] == {"tensorflow", "keras"}
    assert extras["jax"] == {"jax", "optax"}
    assert extras["tensorboard"] == {"tensorboard"}
    assert extras["all"] == set().union(*(extras[extra] for extra in extras if extra != "all"))
    without = [r.name for r in map(Requirement, metadata.get_all("Requires-Dist")) if not r.marker]
    assert without == ["numpy"]


def test_the_readme_renders_on_an_index(metadata):
    text = metadata.get_payload()
    html = markdown.render(text)
    assert re.search("<h1[^>]*>gradclip", html)
    assert html.count("<pre") >= 5
    assert "One bad step can undo a training run" in html
    targets = re.findall(r'(?:href|src)="([^"]*)"', html)
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    assert "](" not in re.sub("<pre.*?</pre>", "", html, flags=re.DOTALL)
    assert metadata["Description-Content-Type"] == "text/markdown"
