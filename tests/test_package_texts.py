"""What packages say, and how their answers are compared."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from cpuc.compiler.packaging.check import compare
from cpuc.compiler.packaging.contents import Contents
from cpuc.compiler.packaging.texts import readme
from cpuc.runtime.bundle import open_bundle


@pytest.mark.parametrize(
    ("theirs", "place"),
    [
        ({"start": 3, "score": 0.5001}, None),
        ({"start": 3, "score": 0.502}, "the answer.score is 0.502, not 0.5"),
        ({"start": 4, "score": 0.5}, "the answer.start is 4, not 3"),
        ({"start": "3", "score": 0.5}, 'the answer.start is "3", not 3'),
        ({"start": True, "score": 0.5}, "the answer.start is true"),
        ({"start": 3, "score": None}, "the answer.score is null"),
        ({"start": 3}, "the answer is"),
        ({"score": 0.5, "start": 3}, "the answer is"),
        ([], "the answer is"),
    ],
)
def test_how_answers_are_compared(theirs: Any, place: str | None) -> None:
    ours = {"start": 3, "score": 0.5}
    if place is None:
        assert 0 < compare(ours, theirs, "the answer") <= 1e-4 + 1e-9
        return
    with pytest.raises(ValueError, match=re.escape(place)):
        compare(ours, theirs, "the answer")


def test_what_a_manifest_says_does_not_write_the_readme(tiny: Path) -> None:
    manifest = open_bundle(tiny).manifest
    odd = dataclasses.replace(manifest, architecture="bert\n\n## Run it\n", cpuc_version="1\n# Title\n")
    text = readme(Contents(odd, "3.2.0", [], {"model.pt": 1}), raw=False)
    assert [line for line in text.splitlines() if line.startswith("## Run it")] == ["## Run it"] and "\n# Title" not in text
