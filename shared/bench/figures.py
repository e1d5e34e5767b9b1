"""Figures of the benches, from their records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shared.bench.baselines import NAMES
from shared.bench.tables import Record, by_mixer, summary, thousands
from shared.bench.tasks import TASKS
from shared.plots.style import LIGHT, colour, dash, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = {"majority": ":", "bag": "--", "nearest": "-."}


def cost_figure(records: Sequence[Record]) -> Figure:
    """Milliseconds of a pass, and its peak memory with gradients, against length; both axes logarithmic."""
    figure = new_figure(10.5, 4.8)
    found = by_mixer(records, 1)
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    reference = {
        r["tokens"]: r["sdpa_forward_ms"] for rows in found.values() for r in rows if r.get("sdpa_forward_ms")
    }
    for axes, quantity in ((left, "forward_ms"), (right, "training_mib")):
        for at, (name, rows) in enumerate(found.items()):
            points = [(r["tokens"], r[quantity]) for r in rows if r.get(quantity)]
            _line(axes, points, name, color=colour(at), linestyle=dash(at))
    _line(
        left,
        sorted(reference.items()),
        "torch's attention alone (right: its matrix)",
        color=LIGHT.text,
        linestyle=":",
    )
    matrix = {r["tokens"]: r["matrix_mib"] for rows in found.values() for r in rows}
    limit = max((r.get("training_mib") or 0.0 for rows in found.values() for r in rows), default=0.0)
    shown = [point for point in sorted(matrix.items()) if point[1] <= 4 * limit]
    _line(right, shown, "attention's matrix", color=LIGHT.text, linestyle=":")
    for axes, title, label in (
        (left, "One pass, 256 channels, one sample", "ms"),
        (right, "Peak memory of a pass with gradients", "MiB"),
    ):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(matrix), [thousands(n) for n in sorted(matrix)])
        axes.set_yscale("log")
        axes.set_xlabel("tokens")
        axes.set_ylabel(label)
        dress(axes, title)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower center", frameon=False, fontsize=8, ncols=min(len(labels), 6) or 1
    )
    figure.tight_layout(pad=1.0, w_pad=2.0, rect=(0, 0.06 + 0.04 * (len(labels) > 6), 1, 1))
    return figure


def _line(axes: Axes, points: Sequence[tuple[float, float]], label: str, **style: Any) -> None:
    if points:
        axes.plot(*zip(*points), label=label, marker="o", markersize=3.2, linewidth=1.5, **style)


def tasks_figure(records: Sequence[Record]) -> Figure:
    """One panel a task: accuracy of every mixer with its spread over the seeds, and the baselines as lines."""
    tables = {task.name: summary(task, records) for task in TASKS.values()}
    tables = {name: rows for name, rows in tables.items() if rows}
    columns = min(3, max(len(tables), 1))
    lines = -(-len(tables) // columns) or 1
    figure = new_figure(4.0 * columns, 2.9 * lines + 0.4)
    handles: dict[str, Any] = {}
    for at, (name, rows) in enumerate(tables.items()):
        axes = figure.add_subplot(lines, columns, at + 1)
        names = [row["mixer"] for row in reversed(rows)]
        values = [row["accuracy"] for row in reversed(rows)]
        axes.errorbar(
            values,
            range(len(names)),
            xerr=[row["sd"] or 0.0 for row in reversed(rows)],
            fmt="o",
            color=colour(0),
            markersize=4,
            capsize=2,
        )
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        for place, baseline in enumerate(NAMES):
            if baseline in rows[0]:
                handles[NAMES[baseline]] = axes.axvline(
                    rows[0][baseline], color=colour(place + 1), linestyle=LINES[baseline], linewidth=1.2
                )
        axes.set_xlim(0, 1.02)
        dress(axes, name)
    if handles:
        figure.legend(
            list(handles.values()), list(handles), loc="lower center", ncols=3, frameon=False, fontsize=8
        )
    figure.tight_layout(pad=1.0, rect=(0, 0.06, 1, 1))
    return figure
