"""What every message to a user must be."""

from __future__ import annotations

from pathlib import Path

LONGEST = 200
"""Characters of a message, not counting the folders of its paths."""


def in_one_line(err: BaseException, root: Path, *words: str) -> None:
    """Assert that the error is one short line holding all `words`; `root` is the folder the test happens to use."""
    text = str(err).replace(f"{root}/", "")
    assert "\n" not in text
    assert len(text) <= LONGEST, f"{len(text)} characters: {text}"
    for word in words:
        assert word in text, text
