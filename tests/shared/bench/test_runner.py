"""One rule for all mixers, results that survive an interruption, and a page that hides nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.bench import runner
from shared.bench.model import BenchNet, bench_mixers, plan
from shared.bench.page import write_page
from shared.bench.records import Records, fingerprint
from shared.bench.runner import run_task, train
from shared.bench.tables import summary, uncommented
from shared.bench.tasks import TASKS, Budget, Task
from shared.nets.measure import count_params

TINY = Budget(64, 64, 1)


def tiny(name: str) -> Task:
    return replace(TASKS[name], budgets={"hour": TINY, "full": TINY})


def test_parameter_counts_are_the_calibration_s_and_the_rule_evens_them() -> None:
    digits = TASKS["digits-seq"]
    assert count_params(BenchNet(digits, {"name": "attention", "heads": 4}, 2.0)) == 71_946
    assert count_params(BenchNet(digits, {"name": "pool"}, 2.0)) == 38_666
    assert plan(digits, "attention").ratio == 2.0
    evened = plan(digits, "pool")
    assert evened.fair and evened.ratio > 2 and abs(evened.params - 71_946) <= 129 * 2
    net = BenchNet(digits, evened.part, evened.ratio)
    assert count_params(net) == evened.params


@pytest.mark.parametrize("card", bench_mixers(), ids=lambda card: card.name)
def test_every_mixer_gives_scores_in_every_form_of_answer(card: Any) -> None:
    for name, shape in (("listops-s", (2, 10)), ("retrieval-s", (2, 2)), ("mqar", (2, 32, 64))):
        task = TASKS[name]
        found = plan(task, card.name)
        x = torch.from_numpy(task.split(0, 100).x[:2])
        assert BenchNet(task, found.part, found.ratio).eval()(x).shape == shape


def test_a_training_reports_what_the_table_needs() -> None:
    task = tiny("mqar")
    job = runner.Job(task, TINY, "identity", plan(task, "identity"), 0, "cpu")
    first, again = train(job), train(job)
    assert first["accuracy"] == again["accuracy"] and first["loss"] == again["loss"]
    assert first["steps"] == 2 and first["steps_per_s"] > 0 and first["fair"]
    # Two blocks keep at least input, norms and hidden layer of every token for the way back.
    assert first["peak_mib"] > 2 * 32 * 64 * 64 * 4 * 3 / 2**20
    assert train(replace(job, seed=1))["loss"] != first["loss"]


def test_an_interrupted_bench_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, path, said = tiny("digits-seq"), tmp_path / "results.jsonl", []
    run_task(task, Records(path), said.append, mixers=["identity"], seeds=[0, 1])
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40], encoding="utf-8")  # killed while writing
    trained: list[int] = []

    def counting(job: runner.Job, moved: Any) -> dict[str, Any]:
        trained.append(job.seed)
        return train(job, moved)

    monkeypatch.setattr(runner, "train", counting)
    found = run_task(task, Records(path), said.append, mixers=["identity"], seeds=[0, 1, 2])
    assert trained == [1, 2]
    assert [r["seed"] for r in found if r["mixer"] == "identity"] == [0, 1, 2]
    assert {r["mixer"] for r in found} == {"identity", "majority", "bag", "nearest"}
    assert len(list(Records(path))) == 6 and any("1 of 3 trainings done before" in text for text in said)


def test_results_belong_to_the_mixer_s_source_and_the_budget() -> None:
    assert fingerprint("pool", TINY) == fingerprint("pool", TINY)
    assert len({fingerprint("pool", TINY), fingerprint("attention", TINY), fingerprint("pool", 1)}) == 3


def test_the_page_flags_what_is_below_the_bag_until_it_is_explained(tmp_path: Path) -> None:
    records, comments = Records(tmp_path / "r.jsonl"), tmp_path / "comments.yaml"
    for name, accuracy in (("majority", 0.1), ("bag", 0.3), ("nearest", 0.2)):
        records.add(name, {"task": "listops-s", "mixer": name, "accuracy": accuracy, "budget": "hour"})
    common = {
        "task": "listops-s",
        "budget": "hour",
        "device": "cpu",
        "params": 70_000,
        "ratio": 2.0,
        "fair": True,
    }
    common |= {"steps_per_s": 5.0, "peak_mib": 20.0, "loss": 1.0}
    for name, values in (("attention", (0.4, 0.5, 0.6)), ("pool", (0.2, 0.2, 0.2))):
        for seed, value in enumerate(values):
            records.add(
                f"{name}{seed}",
                {**common, "mixer": name, "seed": seed, "accuracy": value, "part": {"name": name}},
            )
    page = tmp_path / "docs" / "nets-bench.md"
    assert write_page(records, page, comments) == ["listops-s/pool"]
    text = page.read_text(encoding="utf-8")
    assert "| attention | 0.500 ± 0.100 | 70,000 |" in text and "| pool | 0.200 ± 0.000 ▼ |" in text
    assert (
        "bag of tokens, linear 0.300" in text and (tmp_path / "docs/img/nets-tasks.png").stat().st_size > 5000
    )
    comments.write_text("listops-s: {pool: sees three neighbours}\n", encoding="utf-8")
    assert write_page(records, page, comments) == []
    assert "sees three neighbours" in page.read_text(encoding="utf-8")
    assert uncommented(list(records), {"any": {"pool": "-"}}) == []
    assert [row["below"] for row in summary(TASKS["listops-s"], list(records))] == [False, True]


@pytest.mark.slow
def test_the_digits_tell_mixers_apart(tmp_path: Path) -> None:
    names = [card.name for card in bench_mixers()]
    wanted = [name for name in ("hyena", "pool", "identity") if name in names]
    found = run_task(
        TASKS["digits-seq"], Records(tmp_path / "r.jsonl"), print, budget="hour", mixers=wanted, seeds=[0]
    )
    accuracy = {r["mixer"]: r["accuracy"] for r in found}
    assert accuracy["pool"] > accuracy["identity"] > accuracy["bag"]
    assert accuracy.get("hyena", 1.0) > accuracy["pool"]
