"""The known bugs of `mutations.py` can be put in: what a change to the code would otherwise break unseen."""

import ast

import mutations
import pytest


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_known_bug_has_its_place_and_tests(mutation):
    assert not mutations.misplaced(mutation, mutations.ROOT)
    if mutation.file.endswith(".py"):  # a mutant that Python cannot read fails every test
        ast.parse((mutations.ROOT / mutation.file).read_text(encoding="utf-8").replace(mutation.old, mutation.new))
    for word in mutation.tests.split():
        name, *function = word.split("::")
        text = (mutations.ROOT / "tests" / name).read_text(encoding="utf-8")
        assert not function or f"def {function[-1].split('[')[0]}(" in text
