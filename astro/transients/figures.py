"""Pictures of a classification and of single light curves; numbers come in, figures go out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from astro.transients.lightcurve import Floats, LightCurve, around
from astro.transients.metrics import confusion, ranking, reliability
from astro.transients.t2 import Inputs
from shared.plots.style import LIGHT, colour, dash, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion_figure(labels: NDArray[Any], p: Floats, names: Sequence[str]) -> Figure:
    counts = confusion(labels, p)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(3.6, 0.62 * len(names) + 1.8)
    figure = new_figure(side + 0.6, side)
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(*share.shape):
        ink = "white" if share[i, j] > 0.6 else LIGHT.text
        axes.text(j, i, f"{share[i, j]:.2f}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), [f"{n} ({c})" for n, c in zip(names, counts.sum(1))])
    axes.set_xlabel("most probable class")
    axes.set_ylabel("truth (objects)")
    dress(axes, "Confusion", grid=False)
    figure.tight_layout()
    return figure


def ranking_figure(labels: NDArray[Any], p: Floats, names: Sequence[str]) -> Figure:
    figure = new_figure(9.2, 4.2)
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    auc, precision = ranking(labels, p)
    for k, name in enumerate(names):
        if not np.isfinite(auc[k]):
            continue
        style: dict[str, Any] = {"color": colour(k), "linestyle": dash(k), "linewidth": 1.5}
        wrong, found, _ = roc_curve(labels == k, p[:, k])
        pure, complete, _ = precision_recall_curve(labels == k, p[:, k])
        left.plot(wrong, found, label=f"{name} {auc[k]:.3f}", **style)
        right.plot(complete, pure, label=f"{name} {precision[k]:.3f}", **style)
    left.plot([0, 1], [0, 1], color=LIGHT.muted, linewidth=0.8)
    places: tuple[tuple[Any, str, str, str, Any], ...] = (
        (left, "ROC; area below", "false positive rate", "completeness", "lower right"),
        (right, "Purity; average precision", "completeness", "purity", "lower left"),
    )
    for axes, title, x, y, where in places:
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_ylim(0, 1.02)
        dress(axes, title)
        if np.isfinite(auc).any():
            axes.legend(facecolor="white", edgecolor="none", framealpha=0.85, fontsize=8, loc=where)
    figure.tight_layout()
    return figure


def reliability_figure(labels: NDArray[Any], p: Floats) -> Figure:
    found = reliability(labels, p)
    figure = new_figure(4.6, 4.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], color=LIGHT.muted, linewidth=0.8)
    known = found.number > 0
    top.plot(found.sure[known], found.right[known], marker="o", markersize=4, color=colour(0))
    top.set_ylabel("share right")
    top.set_ylim(0, 1.02)
    dress(top, f"Reliability, ECE {found.ece:.3f}")
    width = 1 / len(found.number)
    bottom.bar((np.arange(len(found.number)) + 0.5) * width, found.number, width * 0.9, color=colour(0))
    bottom.set_xlabel("probability of the most probable class")
    bottom.set_ylabel("objects")
    dress(bottom)
    figure.tight_layout()
    return figure


def days_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    figure = new_figure(6.4, 3.6)
    axes = figure.add_subplot()
    places = range(len(rows))
    for k, (key, name) in enumerate((("accuracy", "accuracy"), ("balanced_accuracy", "balanced accuracy"))):
        axes.plot(places, [row[key] for row in rows], marker="o", markersize=4, color=colour(k), label=name)
    axes.set_xticks(places, ["all" if np.isinf(row["days"]) else f"{row['days']:g}" for row in rows])
    axes.set_xlabel("days since first detection")
    axes.set_ylim(0, 1.02)
    dress(axes, "What was known when")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.tight_layout()
    return figure


def curve_figure(
    curves: Sequence[LightCurve],
    inputs: Inputs,
    bands: Sequence[str],
    maps: NDArray[Any],
    titles: Sequence[str],
) -> Figure:
    """One panel an object: points with errors, the process's mean and deviation in `bands`, the activation map behind:
    `maps` (N, L), evenly spaced over the same times."""
    figure = new_figure(8.6, 2.6 * len(curves) + 0.3)
    for row, (curve, title) in enumerate(zip(curves, titles)):
        axes = figure.add_subplot(len(curves), 1, row + 1)
        cut = curve.taken(around(curve.time, curve.detected))
        times = cut.time[0] + np.linspace(0, float(inputs.duration[row]), inputs.mean.shape[1])
        back = axes.twinx()
        places = np.linspace(times[0], times[-1], maps.shape[1])
        back.fill_between(places, maps[row], color=LIGHT.grid, linewidth=0, zorder=0)
        back.set_ylim(0, max(float(maps[row].max()), 1e-9) * 1.05)
        back.axis("off")
        axes.set_zorder(back.get_zorder() + 1)
        axes.patch.set_visible(False)
        for k, band in enumerate(bands):
            here = cut.band == band
            if not here.any():
                continue
            style: dict[str, Any] = {"color": colour(k)}
            axes.errorbar(
                cut.time[here],
                cut.flux[here],
                cut.error[here],
                fmt="o",
                markersize=2.5,
                linewidth=0.7,
                **style,
            )
            mean, sd = inputs.mean[row, :, k].numpy(), inputs.sd[row, :, k].numpy()
            axes.plot(times, mean, linewidth=1.2, label=band, **style)
            axes.fill_between(times, mean - sd, mean + sd, alpha=0.15, linewidth=0, **style)
        axes.set_ylabel("flux")
        dress(axes, title)
        axes.set_facecolor("none")
        axes.legend(frameon=False, fontsize=7, ncols=6, loc="upper right")
        axes.ticklabel_format(axis="x", useOffset=False)
    axes.set_xlabel("MJD")
    figure.tight_layout()
    return figure
