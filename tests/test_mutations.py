"""The known bugs of `mutations.py` can be put in: what a change to the code would otherwise break unseen."""

import mutations
import pytest


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_known_bug_has_its_place_and_tests(mutation):
    assert not mutations.misplaced(mutation, mutations.ROOT)
    for word in mutation.tests.split():
        if word.startswith("test_"):  # the others are options of pytest
            name, *function = word.split("::")
            text = (mutations.ROOT / "tests" / name).read_text(encoding="utf-8")
            assert not function or f"def {function[-1].split('[')[0]}(" in text
