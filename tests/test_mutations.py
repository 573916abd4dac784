"""The list of mutations fits the source, the tests and the documentation.

That each is noticed is shown by ``python -m tests.mutations``, which takes minutes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import mutations
from tests.mutations import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.mechanism)
def test_a_mutation_changes_one_place_and_names_a_test(mutation: Mutation, tmp_path: Path) -> None:
    module = mutations.SOURCE / "predictpool" / mutation.module
    assert module.read_text().count(mutation.before) == 1
    changed = mutations.mutated(mutation, tmp_path) / "predictpool" / mutation.module
    compile(changed.read_text(), str(changed), "exec")
    file, _, test = mutation.node.partition("::")
    assert f"def {test}(" in (ROOT / file).read_text()


def test_the_documentation_has_the_list() -> None:
    page = (ROOT / "docs" / "explanation" / "reliability.md").read_text()
    assert page.endswith(mutations.table() + "\n")
