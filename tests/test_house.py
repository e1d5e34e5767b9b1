"""The tree's own rules: short files and functions, types on public functions, no code from data, no machine paths."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pipelines._guard import PACKAGES

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
MAX_FILE, MAX_FUNCTION = 600, 80
BANNED = {
    r"\byaml\.(unsafe_)?load\((?!text, Loader=_StrictLoader)": "safe YAML only",
    r"weights_only\s*=\s*False": "weights_only=True always",
    r"\bpickle\.loads?\b|\bcloudpickle\b|allow_pickle\s*=\s*True": "no pickle",
    r"(?<![.\w])(eval|exec)\(": "no code from strings",
    r"(?<![\w.])(/work/|/root/|/home/\w)": "no machine path",
    r"\b(TODO|FIXME)\b": "an issue instead",
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_keeps_the_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    faults = [] if text.count("\n") <= MAX_FILE else [f"{text.count(chr(10))} lines"]
    for pattern, why in BANNED.items():
        faults += [f"{match.group()!r}: {why}" for match in re.finditer(pattern, text)]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno
            if length > MAX_FUNCTION:
                faults.append(f"{node.name}: {length} lines")
            untyped = [a.arg for a in node.args.args if a.annotation is None and a.arg not in ("self", "cls")]
            if not node.name.startswith("_") and untyped:
                faults.append(f"{node.name}: no type for {', '.join(untyped)}")
    assert not faults
