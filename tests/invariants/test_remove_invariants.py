"""The list in `remove_invariants.py` matches the code, the tests and CONTRIBUTING.md."""

import re
from pathlib import Path

import pytest
from remove_invariants import CORE, INVARIANTS, ROOT


@pytest.mark.parametrize(
    "invariant",
    INVARIANTS,
    ids=lambda invariant: f"{invariant.number}-{invariant.file}-{INVARIANTS.index(invariant)}",
)
def test_the_code_of_an_invariant_occurs_once_and_its_test_exists(invariant):
    assert (ROOT / CORE / invariant.file).read_text(encoding="utf-8").count(invariant.code) == 1
    assert invariant.without != invariant.code
    assert (ROOT / "tests" / invariant.test).is_file()


def test_every_invariant_that_can_be_removed_is_in_the_table():
    table = (Path(ROOT) / "CONTRIBUTING.md").read_text(encoding="utf-8")
    numbered = {int(number) for number in re.findall(r"^\| (\d+) \|", table, re.M)}
    assert {invariant.number for invariant in INVARIANTS} <= numbered
