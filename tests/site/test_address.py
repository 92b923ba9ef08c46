"""With the address of a published repository, what needs one appears and points right; with a network, names link."""

import os
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
    config["sphinx"]["local_extensions"] = {"gradclip_book": str(ROOT / "book" / "_extensions")}
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
    built = {path.relative_to(published / "html") for path in (published / "html" / "book").rglob("*.html")}
    assert {SITE + path.as_posix() for path in built} <= listed
    assert all(url.startswith(SITE) for url in listed)


def test_the_card_is_there_and_says_what_the_page_is_about(published):
    assert '<meta property="og:title" content="The cliff" />' in page(published)
    assert f'<meta property="og:url" content="{SITE}{PAGE}.html" />' in page(published)
    assert f'<meta property="og:image" content="{SITE}_static/card.png" />' in page(published)
    assert (published / "html" / "_static" / "card.png").stat().st_size > 10_000
    assert '<meta property="og:description" content="Take a recurrent network' in page(published)


def test_the_lost_page_stands_anywhere_below_the_address(published):
    assert 'href="/clipping/_static/' in page(published, "404")
    assert "href='/clipping/index.html'" in page(published, "404")


def test_a_name_of_another_project_becomes_a_link_where_its_inventory_is_there(published):
    assert '/percentile.html#numpy.percentile" title="(in NumPy v2)"' in page(published, "book/reference/api")
    here = (ROOT / "_build" / "html" / "book" / "reference" / "api.html").read_text(encoding="utf-8")
    assert "numpy.percentile" in here
