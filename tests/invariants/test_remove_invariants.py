"""The list of laws that `remove_invariants.py` takes away fits the code and the tests as they are."""

import re
from pathlib import Path

import pytest
from remove_invariants import CORE, LAWS, ROOT


@pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{law.number}-{law.file}-{LAWS.index(law)}")
def test_the_code_of_a_law_stands_once_and_its_test_is_there(law):
    assert (ROOT / CORE / law.file).read_text(encoding="utf-8").count(law.code) == 1
    assert law.without != law.code
    assert (ROOT / "tests" / law.test).is_file()


def test_every_law_that_can_be_removed_is_in_the_table():
    table = (Path(ROOT) / "CONTRIBUTING.md").read_text(encoding="utf-8")
    numbered = {int(number) for number in re.findall(r"^\| (\d+) \|", table, re.M)}
    assert {law.number for law in LAWS} <= numbered
