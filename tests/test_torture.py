"""The short form of `tests/torture.py`: a few cases of most sections, with the same seed each time."""

import os

import pytest

if os.name == "nt":
    pytest.skip("fork and POSIX signals", allow_module_level=True)

import torture

SHARES = {"inputs": 0.02, "fuzz": 0.03, "kills": 0.04, "disk": 0.08, "signals": 0.04, "together": 0.08}


@pytest.mark.parametrize("section", SHARES)
def test_a_little_of_each_section_holds(section):
    tried, failed = torture.torture([section], SHARES[section])
    assert tried[section] and not failed, torture.table(tried, failed)


def test_the_table_counts_what_did_not_hold():
    assert torture.table({"a": 3}, {"a": ["x: y"]}).splitlines()[2:] == ["| a | 3 | 2 |", "a: x: y"]
