"""With the address of a published repository, what needs one appears and points right; with a network, names link."""

import os
import re
import subprocess
import sys
import threading
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/Someone/clipping"
SITE = "https://someone.github.io/clipping/"
PAGE = "book/theory/the-cliff"
INVENTORY = b"# Sphinx inventory version 2\n# Project: NumPy\n# Version: 2\n# zlib\n" + zlib.compress(
    b"numpy.percentile py:function 1 percentile.html#$ -\n"
)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    (folder / "objects.inv").write_bytes(INVENTORY)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    config["repository"]["url"] = REPOSITORY
    extensions = config["sphinx"]["local_extensions"]
    config["sphinx"]["local_extensions"] = dict.fromkeys(extensions, str(ROOT / "book" / "_extensions"))
    config["sphinx"]["config"]["redirects"] |= {"book/why/the-cliff": f"/{PAGE}.html"}
    documentation = f"http://127.0.0.1:{server.server_port}"
    config["sphinx"]["config"]["intersphinx_mapping"] = {
        "numpy": [documentation, None],
        "gone": [f"{documentation}/gone", None],  # a host that answers, but has no inventory
        "cut": ["http://127.0.0.1:9", None],  # and one that does not answer
    }
    (folder / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [Path(sys.executable).with_name("jupyter-book"), "build", ROOT, "-W", "-n", "--keep-going", "-q"]
    places = ["--config", folder / "_config.yml", "--path-output", folder]
    run = subprocess.run([*command, *places], capture_output=True, text=True, env={**os.environ, "NO_PROXY": "*"})
    server.shutdown()
    server.server_close()
    assert run.returncode == 0, run.stdout + run.stderr
    return folder / "_build"


def page(published, name=PAGE):
    return (published / "html" / f"{name}.html").read_text(encoding="utf-8")


def test_the_source_and_colab_are_linked(published):
    assert f'href="{REPOSITORY}"' in page(published)
    assert f'href="{REPOSITORY}/blob/main/{PAGE}.ipynb?plain=1"' in page(published)
    colab = "https://colab.research.google.com/github/Someone/clipping/blob/colab"
    assert f'href="{colab}/{PAGE}.ipynb"' in page(published)
    assert "colab.research" not in page(published, "book/reference/api")  # no notebook


def test_colab_finds_notebooks_that_install_the_package(published):
    notebooks = sorted(path.relative_to(published / "colab") for path in (published / "colab").rglob("*.ipynb"))
    assert notebooks == sorted(
        path.relative_to(ROOT) for path in (ROOT / "book").rglob("*.ipynb") if "." not in path.parts
    )
    for name in notebooks:
        install, *rest = nbformat.read(published / "colab" / name, as_version=4).cells
        clone, enter, pip = install.source.splitlines()[1:]
        assert clone == f"!git clone --quiet --depth 1 --branch main {REPOSITORY}"
        assert enter == f"%cd clipping/{name.parent}"
        assert pip == f"%pip install --quiet '{'../' * len(name.parent.parts)}.[torch,tensorflow,jax]'"
        assert (ROOT / name.parent / ("../" * len(name.parent.parts)) / "pyproject.toml").exists()
        assert [cell.source for cell in rest] == [c.source for c in nbformat.read(ROOT / name, as_version=4).cells]


def test_the_sitemap_lists_every_page_of_the_book(published):
    listed = {e.text for e in ElementTree.parse(published / "html" / "sitemap.xml").iter() if e.tag.endswith("loc")}
    files = (published / "html" / "book").rglob("*.html")
    pages = [path for path in files if 'http-equiv="refresh"' not in path.read_text(encoding="utf-8")]  # no redirects
    assert {SITE + path.relative_to(published / "html").as_posix() for path in pages} <= listed
    assert all(url.startswith(SITE) for url in listed)


# What the first edition had. Readers have linked to these pages: each is there, or leads to one that is.
FIRST_EDITION = {
    "book": "intro quickstart",
    "book/theory": "exploding-gradients vanishing-gradients the-cliff clipping-rules why-clipping-works remedies",
    "book/frameworks": "numpy pytorch tensorflow jax side-by-side wrong-on-purpose",
    "book/tuning": "choosing-a-threshold adaptive-thresholds temporal-order text-generation when-training-blows-up",
    "book/gpu": "timing fused-kernels mixed-precision many-devices",
    "book/reference": "api thresholds-in-the-wild claims-checked notation glossary bibliography versions changelog",
}


@pytest.mark.parametrize(
    "name",
    [
        *(f"{folder}/{name}" for folder, names in FIRST_EDITION.items() for name in names.split()),
        "book/why/the-cliff",
    ],
)
def test_an_old_address_leads_to_a_page(published, name):
    file = published / "html" / f"{name}.html"
    html = file.read_text(encoding="utf-8")
    if sent_on := re.search(r'http-equiv="refresh" content="0; url=([^"]+)"', html):
        file = file.parent / sent_on[1]
        html = file.read_text(encoding="utf-8")
    assert '<article class="bd-article">' in html


def test_the_card_is_there_and_says_what_the_page_is_about(published):
    assert '<meta property="og:title" content="The cliff" />' in page(published)
    assert f'<meta property="og:url" content="{SITE}{PAGE}.html" />' in page(published)
    assert f'<meta property="og:image" content="{SITE}_static/card.png" />' in page(published)
    assert (published / "html" / "_static" / "card.png").stat().st_size > 10_000
    assert '<meta property="og:description" content="See the wall that one bad step runs into' in page(published)


def test_the_lost_page_stands_anywhere_below_the_address(published):
    assert 'href="/clipping/_static/' in page(published, "404")
    assert "href='/clipping/index.html'" in page(published, "404")


def test_a_name_of_another_project_becomes_a_link_where_its_inventory_is_there(published):
    assert '/percentile.html#numpy.percentile" title="(in NumPy v2)"' in page(published, "book/reference/api")
    here = (ROOT / "_build" / "html" / "book" / "reference" / "api.html").read_text(encoding="utf-8")
    assert "numpy.percentile" in here
