"""Configuration of the documentation site: `make docs` builds it, into build/docs.

The source folder is the root of the repository, so links between pages are the same there and on the site.
"""

import re
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from shutil import copyfile
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import embedkit_core
import llamaindex_embedkit.embedding  # noqa: F401 - autodoc changes BaseModel, and LlamaIndex cannot be imported after it

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[1]
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]

project = "rag-embedkit"
release = embedkit_core.__version__
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/reference/*.rst", "benchmarks/README.md"]
exclude_patterns = [
    ".*",
    "build",
    "dist",
    "examples",
    "langchain_embedkit",
    "llamaindex_embedkit",
    "metapackages",
    "shared",
    "tests",
]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "furo"
html_theme_options = {"source_repository": URLS["Repository"], "source_branch": "main", "source_directory": ""}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_baseurl = URLS["Documentation"]
html_title = f"rag-embedkit {release}"
smartquotes_action = "De"  # not the quotes: quoted values are code
html_use_index = False
html_domain_indices = False
html_copy_source = False
html_show_sphinx = False
pygments_style = "default"  # colors removed and added lines
pygments_dark_style = "monokai"

myst_heading_anchors = 4

default_role = "py:obj"  # a name in backticks is a link if the reference has it
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True

PUBLIC_MODULES = [
    "embedkit_core",
    "embedkit_core.cache",
    "embedkit_core.fleet",
    "embedkit_core.fleet.ray",
    "embedkit_core.frames",
    "embedkit_core.providers",
    "embedkit_core.testing",
    "embedkit_core.tools",
    "langchain_embedkit",
    "llamaindex_embedkit",
]

VECTORS = (r"numpy\.ndarray\[tuple\[~?(typing\.)?Any, \.\.\.\], ~?numpy\.dtype\[~?(typing\.)?Any\]\]", "numpy.ndarray")
SIMPLER = [
    VECTORS,
    (r"\*positional: ~typing\.Never", "*"),  # catches wrong calls, as **unknown
    (r"\*\*unknown: ~typing\.Never", ""),
    (r"( \| [\w.~]+\.(Hidden|Connection|Secret))+\b", ""),  # passed by the library only
    (r"~?[\w.]+\.Annotated\[((?:(?!Annotated).)*?), ~?(?:pydantic\.json_schema|annotated_types)\.[^\]]*\]", r"\1"),
    (r"= ?<.*?>", "= ..."),  # a default without a value
]


def add_navigation(_app: Sphinx, name: str, source: list[str]) -> None:
    """Make the table "Documentation" of the README the navigation of the site."""
    if name != root_doc:
        return
    table = source[0].partition("\n## Documentation\n")[2].partition("\n## ")[0]
    for group, cells in re.findall(r"^\| (\w.*?) \| (.*) \|$", table, re.M):
        pages = [f"{title} <{page}>" for title, page in re.findall(r"\[(.+?)\]\((.+?)\.\w+\)", cells)]
        source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {group}", *pages, "```", ""])


def link_to_repository(app: Sphinx, doctree: nodes.document) -> None:
    """Make links to files that are no pages lead to the repository. MyST warns of files that do not exist."""
    for link in list(doctree.findall(addnodes.download_reference)):
        file = Path(app.env.relfn2path(link["reftarget"])[1]).relative_to(ROOT).as_posix()
        link.replace_self(nodes.reference("", "", *link.children, refuri=f"{URLS['Repository']}/blob/main/{file}"))


def markdown_to_rst(_app: object, _what: str, _name: str, _obj: object, _options: object, lines: list[str]) -> None:
    """Convert the fences of a docstring in Markdown; everything else in ours means the same in both."""
    lines[:] = _converted(lines)


def _converted(lines: list[str]) -> Iterator[str]:
    fence = None
    for line in lines:
        opening = re.match(r"( *)```(\w*)$", line)
        if fence is None and opening:
            fence = opening[1]
            yield from ("", f"{fence}.. code-block:: {opening[2] or 'text'}", "")
        elif line == f"{fence}```":
            fence = None
            yield ""
        else:
            yield line if fence is None else f"    {line}"


def simplify_types(_app: object, _what: str, _name: str, _obj: object, _options: object, lines: list[str]) -> None:
    """Simplify the types that napoleon has added to a docstring."""
    lines[:] = [re.sub(*VECTORS, line) for line in lines]


def simplify_signature(*event: Any) -> tuple[str | None, ...]:
    """Remove what only the library passes, and write the rest so that Sphinx can parse it."""
    return tuple(text and _simplified(text) for text in event[-2:])  # the arguments and what is returned


def _simplified(signature: str) -> str:
    for pattern, replacement in SIMPLER:
        signature = re.sub(pattern, replacement, signature)
    return signature


def check_public_names(_app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of public names that are missing in the reference."""
    documented = env.domains.python_domain.objects
    for module in PUBLIC_MODULES:
        for name in import_module(module).__all__:
            if name != "__version__" and not {f"{module}.{name}", f"embedkit_core.{name}"} & documented.keys():
                logger.warning("docs/reference: no page documents %s.%s", module, name)


class Assets(HTMLParser):
    """Collects the addresses that a browser loads with a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: D102
        if tag != "a" and ("rel", "canonical") not in attrs:
            self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def finish(app: Sphinx, error: Exception | None) -> None:
    """Make the README the index page; warn of pages that load something from another host."""
    if error or app.builder.format != "html":
        return
    outdir = Path(app.outdir)
    copyfile(outdir / f"{root_doc}.html", outdir / "index.html")
    for page in sorted(outdir.rglob("*.html")):
        assets = Assets()
        assets.feed(page.read_text(encoding="utf-8"))
        for address in assets.addresses:
            if re.match(r"(https?:)?//", address):
                logger.warning("%s loads %s from another host", page.name, address)


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("source-read", add_navigation)
    app.connect("doctree-read", link_to_repository, priority=400)  # before downloads are collected
    app.connect("autodoc-process-docstring", markdown_to_rst, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", simplify_types, priority=600)
    app.connect("autodoc-process-signature", simplify_signature)
    app.connect("env-check-consistency", check_public_names)
    app.connect("build-finished", finish)
