"""CI tests the versions and extras of pyproject.toml."""

import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
FOR_DEVELOPERS = {"test", "dev"}
NOT_TRIED = {"torch"}  # only one CPU build is at hand


def floors() -> dict[str, Version]:
    """Return the lowest supported version of each dependency."""
    lists = [PROJECT["dependencies"], *(EXTRAS[extra] for extra in EXTRAS.keys() - FOR_DEVELOPERS - {"all"})]
    found = {}
    for requirement in map(Requirement, chain(*lists)):
        [floor] = [part.version for part in requirement.specifier if part.operator == ">="]
        found[requirement.name] = Version(floor)
    return found


def oldest() -> dict[str, Version]:
    lines = (ROOT / ".ci" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name: Version(version) for name, version in pins}


def test_the_oldest_versions_that_are_tried_are_the_oldest_that_are_allowed():
    assert oldest() == {name: floor for name, floor in floors().items() if name not in NOT_TRIED}


def test_all_is_every_extra_of_a_user():
    [everything] = map(Requirement, EXTRAS["all"])
    assert everything.name == PROJECT["name"]
    assert everything.extras == EXTRAS.keys() - FOR_DEVELOPERS - {"all"}


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - {"dev"}))
def test_only_the_extras_for_local_models_bring_torch(extra):
    def names(extra: str) -> set[str]:
        found = set(map(Requirement, EXTRAS[extra]))
        ours = [inner for one in found if one.name == PROJECT["name"] for inner in one.extras]
        return {one.name for one in found} | {name for inner in ours for name in names(inner)}

    assert ("torch" in names(extra)) is (extra in ("local", "all"))
