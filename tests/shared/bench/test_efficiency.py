"""Cost against length: counted work and sizes, predictions, what is left out; never the clock."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shared.bench import efficiency as bench
from shared.bench.efficiency import SKIPPED, Reference, crossover, efficiency, exponent, predicted
from shared.bench.memory import live_peak
from shared.bench.page import write_page
from shared.bench.records import Records
from shared.bench.tables import grids_table, memory_table, steps_table, times_table
from shared.bench.timing import build, live_mib, peak_mib, step_milliseconds

ATTENTION = {"name": "attention", "heads": 4}


def record(tokens: int, **values: Any) -> dict[str, Any]:
    base = {
        "bench": "efficiency",
        "mixer": "attention",
        "part": ATTENTION,
        "size": [tokens],
        "tokens": tokens,
    }
    return {**base, "device": "cpu", "threads": 1, "matrix_mib": 4 * tokens**2 * 4 / 2**20, **values}


def macs(part: dict[str, Any], tokens: int, dim: int = 64) -> int:
    """On the meta device: the counter knows torch's fused CPU attention not."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        build(part, dim, (tokens,))(torch.zeros(1, tokens, dim))
    return counter.get_total_flops() // 2


def test_counted_work_of_attention_is_quadratic_and_its_memory_is_not() -> None:
    for tokens in (128, 512):
        assert macs(ATTENTION, tokens) == 4 * tokens * 64**2 + 2 * tokens**2 * 64
    sizes = {n: live_mib(ATTENTION, 64, (n,)) for n in (256, 1024)}
    assert math.log(sizes[1024] / sizes[256]) / math.log(4) == pytest.approx(1, abs=0.05)
    whole = build(ATTENTION, 64, (512,))
    x = torch.zeros(1, 512, 64)
    with torch.no_grad():
        score = live_peak(lambda: whole.matrix(x), [x, *whole.parameters()])
    assert score >= 4 * 512**2 * 4  # the matrix itself, when it is asked for


def test_live_memory_counts_what_is_held_and_forgets_what_is_freed() -> None:
    x = torch.zeros(1000)

    def work() -> None:
        for _ in range(10):
            y = x + 1
            y.add_(1)
            y[:10].view(2, 5)

    assert live_peak(work, [x]) in (4000, 8000)  # the old y lives until the new one is bound


def test_predictions_follow_the_last_power_and_stay_left_out() -> None:
    assert predicted([], "forward_ms", (1024,)) == 0
    one = [record(1024, forward_ms=10.0)]
    assert predicted(one, "forward_ms", (4096,)) == pytest.approx(160)
    two = [*one, record(2048, forward_ms=20.0)]
    assert predicted(two, "forward_ms", (8192,)) == pytest.approx(80)
    assert predicted(two, "forward_ms", (64, 64)) == pytest.approx(40)  # grids begin from the sequences
    assert predicted([*two, record(4096, forward_ms=None)], "forward_ms", (8192,)) == math.inf


def test_exponent_and_crossover() -> None:
    rows = [
        record(n, forward_ms=100 + n / 100, sdpa_forward_ms=(n / 1024) ** 2 * 10)
        for n in (1024, 2048, 4096, 8192)
    ]
    assert crossover(rows) == 4096
    assert crossover(rows[:2]) is None
    square = [record(n, forward_ms=3e-6 * n**2) for n in (4096, 8192, 16384)]
    assert exponent([record(1024, forward_ms=500.0), *square]) == pytest.approx(2)
    assert exponent(square[:1]) is None


def test_points_that_would_cost_too_much_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "DIM", 16)
    monkeypatch.setattr(bench, "peak_mib", lambda *_: {"forward": 1.0, "training": 3.0})
    records, said = Records(tmp_path / "r.jsonl"), []
    first = efficiency(records, said.append, [(32,), (64,), (4, 4)], ["attention", "pool"])
    assert [(r["mixer"], r["tokens"]) for r in first[:4]] == [
        ("attention", 32), ("pool", 32), ("attention", 64), ("pool", 64)
    ]  # fmt: skip
    assert all(r["forward_ms"] > 0 and r["training_ms"] > 0 and r["training_mib"] == 3.0 for r in first)
    assert first[2]["state_grows"] and first[2]["step_ms"] > 0 and "step_ms" not in first[1]
    assert all(r["sdpa_forward_ms"] > 0 for r in first[:4]) and "sdpa_forward_ms" not in first[4]
    said.clear()
    monkeypatch.setattr(bench, "CAP_SECONDS", 0.0)
    again = efficiency(records, said.append, [(32,), (128,)], ["attention"])
    assert again[0] == first[0] and again[1]["forward_ms"] is None and again[1]["training_ms"] is None
    assert len(said) == 1 and SKIPPED in said[0]
    page = tmp_path / "page.md"
    write_page(records, page, tmp_path / "none.yaml")
    text = page.read_text(encoding="utf-8")
    assert SKIPPED in text and "| attention | grows |" in text and "| mixer | 4×4 |" in text


def test_the_reference_is_timed_once_and_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Reference("cpu")
    time = reference.milliseconds(64, "forward_ms")
    assert time is not None and time > 0 and reference.milliseconds(64, "forward_ms") == time
    monkeypatch.setattr(bench, "CAP_SECONDS", 0.0)
    assert reference.milliseconds(128, "forward_ms") is None


def test_steps_fill_a_growing_state() -> None:
    time, grows = step_milliseconds(ATTENTION, 16, 80, "cpu")
    assert time > 0 and grows


def test_a_process_s_growth_is_at_least_what_it_takes() -> None:
    """In a fresh process: one that ran other tests has free memory to fall back on."""
    code = "import torch; from shared.bench.memory import peak_growth as g; print(g(lambda: torch.ones(2**24).sum()))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 60 < float(said) / 2**20 < 4000


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own() -> None:
    peaks = peak_mib(ATTENTION, 64, (8192,), "cpu")
    assert (
        4 < peaks["forward"] <= peaks["training"] < 500
    )  # 8,192 × 64 floats are 2 MiB; the matrix would be 1,024


def test_tables_name_what_was_skipped() -> None:
    rows = [
        record(1024, forward_ms=10.0, training_ms=40.0, sdpa_forward_ms=20.0, training_mib=12.0, step_ms=0.5,
               state_grows=True),
        record(2048, forward_ms=None, training_ms=None, step_ms=None, state_grows=True),
    ]  # fmt: skip
    assert f"| attention | 10 (2×) | {SKIPPED} | 1k |" in times_table(rows, "forward_ms")
    assert f"| attention | 12 | {SKIPPED} |" in memory_table(rows)
    assert f"| attention | grows | 0.50 | {SKIPPED} |" in steps_table(rows)
    assert grids_table(rows).strip() == ""
