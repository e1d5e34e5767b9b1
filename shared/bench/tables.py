"""Markdown tables of the benches, from their records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from shared.bench.baselines import NAMES
from shared.bench.efficiency import SKIPPED, crossover, exponent
from shared.bench.tasks import TASKS, Task

Record = Mapping[str, Any]
Comments = Mapping[str, Mapping[str, str]]
"""Task → mixer → remark; the mixer's remark under "any" serves all tasks."""


def summary(task: Task, records: Iterable[Record]) -> list[dict[str, Any]]:
    """One row a mixer: mean and standard deviation over the seeds, beside the lines of the baselines; best first.
    Where records of several budgets lie side by side, the last one's counts."""
    mine = [r for r in records if r.get("task") == task.name]
    mine = [r for r in mine if r["budget"] == mine[-1]["budget"]]
    latest = {(r["mixer"], r.get("seed")): r for r in mine}
    lines = {name: latest[name, None]["accuracy"] for name in NAMES if (name, None) in latest}
    rows = []
    for name in sorted({mixer for mixer, _ in latest} - set(NAMES)):
        found = [r for (mixer, _), r in latest.items() if mixer == name]
        values = [r["accuracy"] for r in found]
        last = found[-1]
        rows.append(
            {
                "mixer": name,
                "accuracy": mean(values),
                "sd": stdev(values) if len(values) > 1 else None,
                "seeds": len(values),
                **{key: last[key] for key in ("params", "ratio", "fair", "part", "budget", "device")},
                "steps_per_s": mean(r["steps_per_s"] for r in found),
                "peak_mib": last["peak_mib"],
                "diverged": sum(r["loss"] is None for r in found),
                "below": task.positional and mean(values) < lines.get("bag", 0.0),
                **lines,
            }
        )
    return sorted(rows, key=lambda row: -row["accuracy"])


def task_table(task: Task, records: Sequence[Record], comments: Comments) -> str:
    """Empty where nothing was trained."""
    rows = summary(task, records)
    if not rows:
        return ""
    size = task.budgets[rows[0]["budget"]]
    lines = ", ".join(f"{NAMES[name]} {rows[0][name]:.3f}" for name in NAMES if name in rows[0])
    out = [
        f"### {task.name}",
        "",
        f"{task.says[0].upper()}{task.says[1:]}. {size.train:,} samples × {size.epochs}, {size.steps:,} steps of "
        f"{size.batch}, {size.test:,} to test. Lines: {lines}.",
        "",
        "| mixer | accuracy | parameters | feed-forward ratio | steps/s | peak MiB a step | remark |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = f" ± {row['sd']:.3f}" if row["sd"] is not None else ""
        flag = " ▼" if row["below"] else ""
        unfair = "" if row["fair"] else " (outside ±10 %)"
        cells = [
            row["mixer"],
            f"{row['accuracy']:.3f}{spread}{flag}",
            f"{row['params']:,}{unfair}",
            *(
                f"{row[key]:.{digits}f}"
                for key, digits in (("ratio", 2), ("steps_per_s", 1), ("peak_mib", 1))
            ),
            _remark(task.name, row, comments),
        ]
        out.append(_row(cells))
    return "\n".join(out) + "\n"


def _remark(task: str, row: Record, comments: Comments) -> str:
    parts = []
    if row["seeds"] != 3:
        parts.append(f"{row['seeds']} seed" + ("s" if row["seeds"] > 1 else ""))
    options = {k: v for k, v in row["part"].items() if k not in ("name", "heads")}
    if options:
        parts.append(", ".join(f"{key} {value}" for key, value in options.items()))
    if row["diverged"]:
        parts.append(f"loss not finite in {row['diverged']} of {row['seeds']} runs")
    said = comments.get(task, {}).get(row["mixer"]) or (
        comments.get("any", {}).get(row["mixer"]) if row["below"] else None
    )
    if said:
        parts.append(said)
    elif row["below"]:
        parts.append("below the bag of tokens: no order used at this budget")
    return "; ".join(parts)


def uncommented(records: Sequence[Record], comments: Comments) -> list[str]:
    """``task/mixer`` of every mixer below its bag-of-tokens line that nobody has explained."""
    return [
        f"{task.name}/{row['mixer']}"
        for task in TASKS.values()
        for row in summary(task, records)
        if row["below"] and row["mixer"] not in {**comments.get("any", {}), **comments.get(task.name, {})}
    ]


# ---------------------------------------------------------------- efficiency


def by_mixer(records: Iterable[Record], ndim: int) -> dict[str, list[Record]]:
    """The latest record of each mixer and size of `ndim` axes, sizes rising."""
    latest = {
        (r["mixer"], *r["size"]): r
        for r in records
        if r.get("bench") == "efficiency" and len(r["size"]) == ndim
    }
    out: dict[str, list[Record]] = {}
    for key in sorted(latest):
        out.setdefault(key[0], []).append(latest[key])
    return out


def times_table(records: Iterable[Record], quantity: str) -> str:
    """Milliseconds by length with the ratio to torch's attention (> 1: faster than it), crossover and exponent."""
    found = by_mixer(records, 1)
    lengths = sorted({r["tokens"] for rows in found.values() for r in rows})
    if not lengths:
        return ""
    out = [_row(["mixer", *(thousands(n) for n in lengths), "faster from", "ms ∝ Lᵇ, b ="])]
    out.append("|" + "---|" * (len(lengths) + 3))
    reference = {
        r["tokens"]: r["sdpa_" + quantity]
        for rows in found.values()
        for r in rows
        if r.get("sdpa_" + quantity)
    }
    out.append(
        _row(["*torch's attention alone*", *(_ms(reference.get(n)) for n in lengths), "", _power(reference)])
    )
    for name, rows in found.items():
        at = {r["tokens"]: r for r in rows}
        cells = [_cell(at.get(n), quantity) for n in lengths]
        first, power = crossover(rows, quantity), exponent(rows, quantity)
        out.append(
            _row(
                [
                    name,
                    *cells,
                    "–" if first is None else thousands(first),
                    "–" if power is None else f"{power:.2f}",
                ]
            )
        )
    return "\n".join(out) + "\n"


def _power(reference: Mapping[int, float]) -> str:
    power = exponent([{"tokens": n, "forward_ms": v} for n, v in reference.items()])
    return "–" if power is None else f"{power:.2f}"


def _cell(record: Record | None, quantity: str) -> str:
    if record is None:
        return "–"
    value, beside = record[quantity], record.get("sdpa_" + quantity)
    return f"{_ms(value)} ({_times(beside / value)})" if value and beside else _ms(value)


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}×" if ratio >= 10 else f"{ratio:.2g}×"


def _ms(value: float | None) -> str:
    if value is None:
        return SKIPPED
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def memory_table(records: Iterable[Record]) -> str:
    """Peak MiB with gradients by length, beside what attention's matrix alone would take."""
    found = by_mixer(records, 1)
    lengths = sorted({r["tokens"] for rows in found.values() for r in rows})
    matrix = {r["tokens"]: r["matrix_mib"] for rows in found.values() for r in rows}
    out = [_row(["mixer", *(thousands(n) for n in lengths)]), "|" + "---|" * (len(lengths) + 1)]
    out.append(_row(["*matrix of H L² numbers*", *(f"{matrix[n]:,.0f}" for n in lengths)]))
    for name, rows in found.items():
        at = {r["tokens"]: r.get("training_mib") for r in rows}
        out.append(_row([name, *(SKIPPED if at.get(n) is None else f"{at[n]:,.0f}" for n in lengths)]))
    return "\n".join(out) + "\n"


def steps_table(records: Iterable[Record]) -> str:
    """Milliseconds of one step at the end of L tokens; empty where nothing streams."""
    found = {name: rows for name, rows in by_mixer(records, 1).items() if "state_grows" in rows[0]}
    if not found:
        return ""
    lengths = sorted({r["tokens"] for rows in found.values() for r in rows})
    out = [_row(["mixer", "state", *(thousands(n) for n in lengths)]), "|" + "---|" * (len(lengths) + 2)]
    for name, rows in found.items():
        at = {r["tokens"]: r for r in rows}
        state = "grows" if any(r["state_grows"] for r in rows) else "constant"
        out.append(_row([name, state, *(_ms(at[n]["step_ms"]) if n in at else "–" for n in lengths)]))
    return "\n".join(out) + "\n"


def grids_table(records: Sequence[Record]) -> str:
    """Forward / with gradients, in milliseconds, and MiB, on maps of two and three axes."""
    out: list[str] = []
    for ndim in (2, 3):
        found = by_mixer(records, ndim)
        sizes = sorted({tuple(r["size"]) for rows in found.values() for r in rows})
        if not sizes:
            continue
        out += [
            "",
            _row(["mixer", *("×".join(map(str, size)) for size in sizes)]),
            "|" + "---|" * (len(sizes) + 1),
        ]
        for name, rows in found.items():
            at = {tuple(r["size"]): r for r in rows}
            mode = rows[0]["part"].get("mode")
            out.append(_row([f"{name} ({mode})" if mode else name, *(_grid(at.get(size)) for size in sizes)]))
    return "\n".join(out).strip() + "\n"


def _grid(record: Record | None) -> str:
    if record is None:
        return "–"
    if record["forward_ms"] is None:
        return SKIPPED
    memory = f", {record['training_mib']:,.0f} MiB" if record.get("training_mib") is not None else ""
    training = "–" if record["training_ms"] is None else _ms(record["training_ms"])
    return f"{_ms(record['forward_ms'])} / {training}{memory}"


def thousands(count: int) -> str:
    """4096 → ``4k``."""
    return f"{count // 1024}k" if count % 1024 == 0 else str(count)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
