"""What the book adds to Sphinx: its address, the inventories of other projects, and what is found out at build."""

import json
import os
import urllib.request
from html import escape
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from time import time
from typing import Any
from urllib.parse import urlsplit

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[2]
COLAB = "https://colab.research.google.com"
COLAB_BRANCH = "colab"  # .github/workflows/pages.yml pushes it
WEEK = 7 * 24 * 3600

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # autodoc imports TensorFlow

logger = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", publish_at_its_address, priority=100)  # before extensions look at the settings
    app.connect("config-inited", fetch_inventories, priority=100)
    app.connect("config-inited", find_out_versions_and_times, priority=100)
    app.connect("env-get-outdated", all_pages_where_styles_have_changed)
    app.connect("html-page-context", describe_the_page, priority=400)  # before opengraph reads it
    app.connect("html-page-context", mend_the_list_of_works)
    app.connect("html-page-context", launch_the_notebook_for_colab, priority=900)  # when the theme has its buttons
    app.connect("build-finished", write_notebooks_for_colab)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def all_pages_where_styles_have_changed(app: Sphinx, env: Any, *changes: Any) -> set[str]:
    """Sphinx copies styles and pictures only when a page has changed, and pages name a style by its content."""
    copies = Path(app.outdir) / "_static"
    files = [file for file in (ROOT / "book" / "_static").rglob("*") if file.is_file()]
    for file in files:
        copy = copies / file.relative_to(ROOT / "book" / "_static")
        if copy.exists() and copy.read_bytes() != file.read_bytes():
            return set(env.found_docs)
    return set()


# The address: `repository.url` in _config.yml. All that needs it is switched on by it, and off without it ------------


def repository(config: Config) -> str:
    return (config.html_theme_options.get("repository_url") or "").rstrip("/")


def publish_at_its_address(app: Sphinx, config: Config) -> None:
    if url := repository(config):
        switch_on(app, config, url)
    # A server shows this page wherever nothing is found, so it cannot tell where it stands.
    root = config.notfound_urls_prefix = urlsplit(config.html_baseurl).path or "/"
    sentence = "The menu lists every page of the book, the search finds a word in any of them, and the book begins at"
    body = f"<h1>Page not found</h1><p>{sentence} its <a href='{root}index.html'>front page</a>.</p>"
    config.notfound_context = {"title": "Page not found", "body": body}


def switch_on(app: Sphinx, config: Config, url: str) -> None:
    owner, name = urlsplit(url).path.strip("/").split("/")[-2:]
    config.html_baseurl = config.html_baseurl or f"https://{owner.lower()}.github.io/{name}/"
    config.html_theme_options |= {
        "use_repository_button": True,
        "use_source_button": True,
        "launch_buttons": {"colab_url": COLAB},
    }
    app.setup_extension("sphinx_sitemap")
    config.sitemap_url_scheme = "{link}"
    app.setup_extension("sphinxext.opengraph")
    config.ogp_site_url = config.html_baseurl
    config.ogp_site_name = config.html_title
    config.ogp_image = "_static/card.png"
    config.ogp_image_alt = "A long arrow, cut back to the circle that it leaves"


def describe_the_page(app: Sphinx, pagename: str, templatename: str, context: Any, doctree: Any) -> None:
    """Say in a page's head what its first paragraph says, its standfirst."""
    paragraphs = doctree.findall(nodes.paragraph) if doctree else ()
    first = next((p.astext() for p in paragraphs if isinstance(p.parent, nodes.section)), None)
    if first:
        text = shorten(first, 200, placeholder=" …")
        context["metatags"] = context.get("metatags", "") + f'\n<meta name="description" content="{escape(text)}" />'
        context["meta"] = (context.get("meta") or {}) | {"og:description": text}


def mend_the_list_of_works(app: Sphinx, pagename: str, templatename: str, context: Any, doctree: Any) -> None:
    """Leave out docutils' roles of a bibliography: one is deprecated, and a list may not hold the other."""
    if "body" in context:
        body = context["body"].replace('<div role="list" class="citation-list">', '<div class="citation-list">')
        context["body"] = body.replace(' role="doc-biblioentry"', "")


def launch_the_notebook_for_colab(app: Sphinx, pagename: str, templatename: str, context: Any, doctree: Any) -> None:
    """Point the theme's Colab button at the branch whose notebooks begin with the installation."""
    branch = app.config.html_theme_options.get("repository_branch")
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []):
            if button.get("url", "").startswith(COLAB):
                button["url"] = button["url"].replace(f"/blob/{branch}/", f"/blob/{COLAB_BRANCH}/", 1)


def write_notebooks_for_colab(app: Sphinx, exception: Exception | None) -> None:
    """Write each notebook with a first cell that fetches the book and installs the package, beside the HTML."""
    url = repository(app.config)
    if exception or not url:
        return
    for docname in app.env.found_docs:
        source = Path(app.env.doc2path(docname))
        if source.suffix != ".ipynb":
            continue
        folder = f"{urlsplit(url).path.rpartition('/')[2]}/{docname.rpartition('/')[0]}"
        branch = app.config.html_theme_options["repository_branch"]
        cell = nbformat.v4.new_code_cell(
            "# Colab starts with nothing of this book: fetch it, and install the package.\n"
            f"!git clone --quiet --depth 1 --branch {branch} {url}\n"
            f"%cd {folder}\n"
            f"%pip install --quiet '{'../' * docname.count('/')}.[torch,tensorflow,jax]'",
            id="install",
        )
        notebook = nbformat.read(source, as_version=4)
        notebook.cells.insert(0, cell)
        target = Path(app.outdir).parent / "colab" / f"{docname}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)


# Inventories: names of other projects become links where the network is there, and stay names where it is not --------


def fetch_inventories(app: Sphinx, config: Config) -> None:
    """Give intersphinx files instead of addresses, for it takes an address that does not answer for a warning."""
    folder = Path(app.outdir).parent / "inventories"
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for project, (documentation, inventory) in config.intersphinx_mapping.items():
        file = folder / f"{project}.inv"
        if not file.exists() or time() - file.stat().st_mtime > WEEK:
            address = inventory or f"{documentation.rstrip('/')}/objects.inv"
            try:
                request = urllib.request.Request(address, headers={"User-Agent": "Sphinx"})
                with urllib.request.urlopen(request, timeout=5) as answer:
                    content = answer.read()
                if content.startswith(b"# Sphinx inventory"):
                    file.write_bytes(content)
            except OSError as error:
                logger.info(f"no links to the documentation of {project}: {error}")
        if file.exists():
            found[project] = (documentation, str(file))
    config.intersphinx_mapping = found


# The page of versions and running times -------------------------------------------------------------------------------

PACKAGES = ("gradclip", "numpy", "torch", "tensorflow", "keras", "jax", "optax", "matplotlib", "jupyter-book", "nbval")


def find_out_versions_and_times(app: Sphinx, config: Config) -> None:
    """Two tables for {{ versions }} and {{ running_times }}, and {{ too_slow }}."""
    versions = [f"| {package} | {version(package)} |" for package in PACKAGES]
    times = json.loads((ROOT / "book" / "running_times.json").read_text(encoding="utf-8"))
    order = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    rows, too_slow = [], []
    for name, run in sorted(times.items(), key=lambda item: order.index(item[0].removesuffix(".ipynb"))):
        title = next(
            line.removeprefix("# ")
            for cell in nbformat.read(ROOT / name, as_version=4).cells
            for line in cell.source.splitlines()
            if line.startswith("# ")
        )
        page = Path(name).relative_to("book").as_posix()
        too_slow += [f"[{title}](../{page})"] if run["seconds"] > 60 else []
        rows.append(f"| [{title}](../{page}) | {run['seconds']:.0f} s | {run['date']} | {run['machine']} |")
    config.myst_substitutions = config.myst_substitutions | {
        "versions": "\n".join(["| package | version |", "|---|---|", *versions]),
        "too_slow": ", ".join(too_slow) or "none",
        "running_times": "\n".join(["| page | time | run on | machine |", "|---|---:|---|---|", *rows]),
    }
