"""Pictures: return by episode, paths of episodes, and what a filter keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from robotics.icrl.envs.base import Array, Floats
from robotics.icrl.play import GOOD, Played
from shared.plots.style import LIGHT, colour, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from robotics.icrl.lhf import Scores


def curve_figure(by_seed: Floats, by_task: Floats, spread: Floats, best_is: str = "the optimum") -> Figure:
    """(S, K) normalised returns of each seed, (M, K) of each task; `spread` (2, K) the band; `best_is` what 1 is."""
    figure = new_figure(7.2, 3.8)
    axes = dress(figure.add_subplot())
    episodes = np.arange(1, by_seed.shape[1] + 1)
    for row in by_task[:40]:
        axes.plot(episodes, row, color=LIGHT.grid, linewidth=1.0, zorder=1)
    axes.fill_between(episodes, *spread, color=colour(0), alpha=0.2, linewidth=0, zorder=2)
    axes.plot(
        episodes, by_seed.mean(0), color=colour(0), linewidth=2.0, zorder=3, label="mean of held-out tasks"
    )
    axes.axhline(
        GOOD,
        color=colour(1),
        linewidth=1.0,
        linestyle=(0, (4, 3)),
        label=f"{GOOD:.0%} of the way to {best_is}",
    )
    _episodes(axes, "in context (weights never change)")
    axes.set_ylabel("normalised return")
    axes.set_ylim(min(-0.05, float(by_task.min())), 1.05)
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")
    figure.tight_layout()
    return figure


def _episodes(axes: Axes, of: str) -> None:
    """There is none between two of them."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(f"episode {of}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def paths_figure(played: Played, rows: Sequence[int], titles: Sequence[str], columns: int = 5) -> Figure:
    """First copy of the tasks `rows` in some episodes, from the first to the last: the way through the room, or, where
    nothing is seen from above, the rewards step by step."""
    count = played.returns.shape[2]
    chosen = sorted({round(at) for at in np.geomspace(1, count, min(columns, count))})
    figure = new_figure(1.75 * len(chosen) + 0.4, 1.95 * len(rows) + 0.3)
    for line, (row, title) in enumerate(zip(rows, titles)):
        for at, episode in enumerate(chosen):
            axes = figure.add_subplot(len(rows), len(chosen), line * len(chosen) + at + 1)
            gained = played.returns[row, 0, episode - 1]
            _path(axes, played, row, episode - 1)
            said = f"episode {episode}: {gained:.4g}"
            dress(axes, f"{title}\n{said}" if at == 0 else said, grid=False).title.set_fontsize(7.5)
    figure.tight_layout(h_pad=2.0)
    return figure


def _path(axes: Axes, played: Played, row: int, episode: int) -> None:
    """Places of an episode, later ones darker; goal, key and door as squares."""
    task = played.tasks[row]
    plane = played.family.plane(task)
    if plane is None:
        axes.plot(played.episode("rewards", row, 0, episode), color=colour(0), linewidth=1.1)
        return
    for number, (x, y) in enumerate(plane.marks):
        axes.scatter([x], [y], marker="s", s=70, color=colour(1 + 3 * number), zorder=1)
    way: Array = plane.way(played.episode("obs", row, 0, episode))
    # Steps that lie on each other are moved apart a little, so that a way there and back shows.
    at = way + np.linspace(-plane.apart, plane.apart, len(way))[:, None]
    axes.plot(at[:, 0], at[:, 1], color=colour(0), linewidth=1.1, alpha=0.6, zorder=2)
    axes.scatter(at[:, 0], at[:, 1], c=np.arange(len(way)), cmap="Blues", vmin=-len(way), s=8, zorder=3)
    axes.set_xlim(plane.low, plane.high)
    axes.set_ylim(plane.low, plane.high)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal")


def filter_figure(scores: Mapping[str, Scores]) -> Figure:
    """Returns of the histories before and after the filter, and how often histories are taken by probability."""
    figure = new_figure(8.6, 3.4)
    left, right = dress(figure.add_subplot(1, 2, 1)), dress(figure.add_subplot(1, 2, 2))
    found = list(scores.values())
    least = min(len(r) for one in found for r in one.returns)
    before, after = np.zeros(least), np.zeros(least)
    for one in found:
        scaled = np.array([(r[:least] - one.r_min) / max(one.r_max - one.r_min, 1e-12) for r in one.returns])
        before += scaled.mean(0) / len(found)
        after += np.average(scaled, axis=0, weights=one.weight) / len(found)
    episodes = np.arange(1, least + 1)
    left.plot(episodes, before, color=colour(7), label="before")
    left.plot(episodes, after, color=colour(0), label="after")
    _episodes(left, "of a history")
    left.set_ylabel("share of the best return")
    left.legend(frameon=False, fontsize=8.5, loc="lower right")
    chance = np.concatenate([one.probability for one in found])
    right.scatter(chance, np.concatenate([one.weight for one in found]), s=9, color=colour(0), alpha=0.5)
    right.set_xlabel("probability of being taken in a sweep")
    right.set_ylabel("times taken, or weight")
    figure.tight_layout()
    return figure
