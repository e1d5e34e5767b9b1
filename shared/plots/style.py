"""How figures look: one font, a colour-blind-safe palette, light (pages) and dark (radiology, sky) grounds.

Figures are made without pyplot, so there is no global state, no window and no leak when thousands are drawn.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart with every common form of colour blindness; black left to the axes.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A6A00", "#666666")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
FONTS = ("Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans")


@dataclass(frozen=True, slots=True)
class Ground:
    """Colours of a figure's background, text and lines."""

    face: str
    text: str
    muted: str
    grid: str


LIGHT = Ground("#ffffff", "#1d2430", "#5b6575", "#e4e8ee")
DARK = Ground("#0b0d10", "#e8ebef", "#99a2ae", "#2a3038")


def colour(index: int) -> str:
    """The palette's colour for series number `index`; colours repeat, then `dash` tells series apart."""
    return PALETTE[index % len(PALETTE)]


def dash(index: int) -> Any:
    """Line style for series number `index`: solid for the first palette's worth, then dashed."""
    return DASHES[(index // len(PALETTE)) % len(DASHES)]


def new_figure(width: float = 7.2, height: float = 4.0, ground: Ground = LIGHT) -> Figure:
    """An empty figure, `width` × `height` inches, bound to the Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor=ground.face)
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, title: str = "", ground: Ground = LIGHT, grid: bool = True) -> Axes:
    """`axes` in the house style: title at the left, thin left and bottom spines, quiet grid, readable ticks."""
    axes.set_title(title, loc="left", color=ground.text, fontsize=10, fontweight="bold")
    axes.set_facecolor(ground.face)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(ground.muted)
        axes.spines[side].set_linewidth(0.8)
    axes.tick_params(colors=ground.muted, labelsize=8.5, width=0.8, length=3)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(ground.text)
        label.set_fontsize(9.5)
    if grid:
        axes.grid(True, color=ground.grid, linewidth=0.8, zorder=0)
        axes.set_axisbelow(True)
    return axes


def fonts() -> Any:
    """Text settings for ``matplotlib.rc_context``: the first family that is installed is used."""
    from matplotlib import font_manager

    known = {font.name for font in font_manager.fontManager.ttflist}
    return {"font.family": "sans-serif", "font.sans-serif": [name for name in FONTS if name in known]}


def png_bytes(figure: Figure, dpi: int = 144) -> bytes:
    """The figure as PNG bytes, the same for the same figure (no date or version inside)."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(fonts()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script no font here has
        figure.savefig(
            buffer, format="png", dpi=dpi, facecolor=figure.get_facecolor(), metadata={"Software": None}
        )
    return buffer.getvalue()


def save_png(figure: Figure, path: Path, dpi: int = 144) -> Path:
    """Write the figure as PNG at `path`, whole or not at all."""
    from shared.io.atomic import atomic_write_bytes

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, png_bytes(figure, dpi))
    return path
