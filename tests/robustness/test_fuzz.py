"""300 damaged inputs a reader; `make fuzz` takes 10,000."""

from __future__ import annotations

import pytest

from support.fuzzing import MOST, READERS, fuzz


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_end_in_errors_of_ours(name: str) -> None:
    counts = fuzz(READERS[name], 300)
    assert (counts.raw, counts.slow, counts.wrong) == (0, 0, 0), counts.examples
    assert counts.grown_mib < MOST and counts.refused > 0 and counts.refused + counts.accepted == 300
