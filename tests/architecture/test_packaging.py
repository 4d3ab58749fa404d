"""CI tests the versions and extras of pyproject.toml."""

import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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
