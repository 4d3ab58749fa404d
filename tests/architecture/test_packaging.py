"""The metadata in pyproject.toml, and files that repeat parts of it."""

import importlib
import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from packaging.requirements import Requirement

import embedkit_core

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]


def test_each_dependency_has_one_floor():
    lists = [PROJECT["dependencies"], *(EXTRAS[extra] for extra in EXTRAS.keys() - {"all"})]
    floors: dict[str, set[str]] = {}
    for requirement in map(Requirement, chain(*lists)):
        [floor] = [part.version for part in requirement.specifier if part.operator == ">="]
        floors.setdefault(requirement.name, set()).add(floor)
    assert {name: found for name, found in floors.items() if len(found) > 1} == {}


def test_all_is_every_extra():
    [everything] = map(Requirement, EXTRAS["all"])
    assert everything.name == PROJECT["name"]
    assert everything.extras == EXTRAS.keys() - {"all"}


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - {"all"}))
def test_only_the_extra_for_local_models_brings_torch(extra):
    assert ("torch" in {Requirement(line).name for line in EXTRAS[extra]}) is (extra == "local")


def test_metapackages_have_the_version_of_the_project_and_need_it():
    found = {}
    for path in (ROOT / "metapackages").glob("*/pyproject.toml"):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        [needed] = map(Requirement, project["dependencies"])
        assert needed.name == PROJECT["name"]
        assert str(needed.specifier) == f">={project['version']}"
        found[project["name"]] = (project["version"], *needed.extras)
    assert found == {
        "langchain-embedkit": (embedkit_core.__version__, "langchain"),
        "llama-index-embeddings-embedkit": (embedkit_core.__version__, "llamaindex"),
    }


def test_llamahub_names_the_embedding_classes_that_can_be_imported():
    """LlamaIndex's registry reads this table: its tools import the classes from `import_path`."""
    path = ROOT / "metapackages/llama-index-embeddings-embedkit/pyproject.toml"
    hub = tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["llamahub"]
    assert hub.keys() == {"contains_example", "import_path", "class_authors"}
    module = importlib.import_module(hub["import_path"])
    exported = {name: getattr(module, name) for name in module.__all__}
    models = {name for name, cls in exported.items() if isinstance(cls, type) and issubclass(cls, BaseEmbedding)}
    assert hub["class_authors"].keys() == models
    assert set(hub["class_authors"].values()) == {PROJECT["urls"]["Repository"].split("/")[-2]}


def test_the_addresses_of_the_project_are_those_of_its_metadata():
    planned = {PROJECT["urls"]["Repository"], PROJECT["urls"]["Documentation"].rstrip("/")}
    pattern = re.compile(
        r"https://(?:github|raw\.githubusercontent)\.com/[\w-]+/rag-embedkit|https://[\w-]+\.github\.io/[\w-]+"
    )
    places = ["*.md", "*.toml", "*.cff", ".github/**/*.yml", "docs/**/*.md", "docs/**/*.py", "metapackages/**/*.*"]
    texts = [path.read_text(encoding="utf-8") for place in places for path in ROOT.glob(place)]
    addresses = {address for text in texts for address in pattern.findall(text) if "rag-embedkit" in address}
    assert {one.replace("raw.githubusercontent", "github") for one in addresses} == planned


def test_pre_commit_uses_the_tools_of_ci():
    hooks = set(re.findall(r'"([\w-]+==[\d.]+)"', (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")))
    assert hooks
    assert hooks <= set(PYPROJECT["dependency-groups"]["lint"])
