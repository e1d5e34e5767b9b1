"""Second moments of all windows of a series, without making the windows: Σ_s x[s+i]·x[s+j] over windows s obeys
G[i+1, j+1] = G[i, j] − x[i]·x[j] + x[N+i]·x[N+j], so one row and one column of lags (by FFT) give the rest; for C
channels of T rows and windows of D steps C·(T log T + L·D) operations instead of C·T·L·D.

A missing value (NaN) leaves out the products it is in: `pairs` and `seen` count those that are there, by the same
recurrence on the mask, and means are over these (pairwise-complete moments; exact where nothing is missing).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from timeseries.forecast.series import Floats
from timeseries.forecast.windows import Part, Prepared

CHUNK_BYTES = 64 * 2**20
"""Working memory for the channels that are transformed at once."""
DIRECT_WINDOWS = 16
"""So few new windows are multiplied out one by one."""


class Moments:
    """Sums over windows of D = L + H steps, for G groups: every channel one (`individual`), or all in one.

    Exogenous columns give the E = P·L + F·D features of a window, column by column: past ones at offsets 0 … L − 1,
    future ones at 0 … D − 1.
    """

    def __init__(
        self,
        length: int,
        horizon: int,
        channels: int,
        past: int = 0,
        future: int = 0,
        individual: bool = False,
    ) -> None:
        self.length, self.horizon, self.channels = length, horizon, channels
        self.past, self.future, self.individual = past, future, individual
        self.depth = depth = length + horizon
        self.spans = (length,) * past + (depth,) * future
        """Offsets of every exogenous column."""
        groups, extra = channels if individual else 1, sum(self.spans)
        self.windows = 0
        """Windows counted, of each channel."""
        self.products = np.zeros((groups, length, depth))
        """(G, L, D): Σ x[s+i]·x[s+j]"""
        self.pairs: Floats | None = None
        """(G, L, D): how many of these products there are; None where nothing is missing."""
        self.sums = np.zeros((groups, depth))
        """(G, D): Σ x[s+j]"""
        self.squares = np.zeros((groups, depth))
        self.seen: Floats | None = None
        """(G, D): how many of these values there are; None where nothing is missing."""
        self.cross = np.zeros((groups, extra, depth))
        """(G, E, D): Σ e·x[s+j]"""
        self.extra_products = np.zeros((extra, extra))
        """(E, E): Σ e·e' over windows, once, whatever the number of channels."""
        self.extra_sums = np.zeros(extra)
        self._rows: list[_Rows] = []

    @classmethod
    def of(
        cls,
        prepared: Sequence[Prepared],
        length: int,
        horizon: int,
        individual: bool = False,
        until: Part = "train",
    ) -> Moments:
        """Of all windows in the rows of several scaled series up to the end of a part."""
        one = prepared[0]
        shape = one.x.shape[1], one.past.shape[1], one.future.shape[1]
        found = cls(length, horizon, *shape, individual)
        for one in prepared:
            found.add(*rows_of(one, 0, getattr(one.borders, until)))
        return found

    @property
    def each(self) -> int:
        """Channels in a group."""
        return 1 if self.individual else self.channels

    # ------------------------------------------------------------ rows come and go

    def add(self, x: NDArray[np.floating], extra: NDArray[np.floating] | None = None) -> int:
        """Count the windows of another series: (T, C) scaled rows, NaN where missing, and (T, P + F) exogenous ones.
        Returns its number. The arrays are referred to, not copied."""
        self._rows.append(_Rows(x, self._extra(x, extra)))
        self._count(x, self._rows[-1].extra, 1)
        return len(self._rows) - 1

    def update(
        self, x: NDArray[np.floating], extra: NDArray[np.floating] | None = None, series: int = 0
    ) -> None:
        """Rows (k, C) that come after the last one of a series: k windows more, L·D operations each and channel."""
        rows = self._rows[series]
        rows.append(x, self._extra(x, extra))
        begin = max(len(rows.x) - len(x) - self.depth + 1, 0)
        self._count(rows.x[begin:], rows.extra[begin:], 1)

    def downdate(self, rows: int, series: int = 0) -> None:
        """Forget the oldest `rows` rows of a series, and the windows that begin there. Raises `ValueError` if it has
        fewer."""
        kept = self._rows[series]
        if not 0 <= rows <= len(kept.x):
            raise ValueError(f"{rows} rows to forget; series {series} has {len(kept.x)}")
        end = rows + self.depth - 1
        self._count(kept.x[:end], kept.extra[:end], -1)
        kept.drop(rows)

    def _extra(self, x: NDArray[np.floating], extra: NDArray[np.floating] | None) -> NDArray[np.floating]:
        given = np.empty((len(x), 0)) if extra is None else extra
        if x.shape[1:] != (self.channels,) or given.shape != (len(x), len(self.spans)):
            wanted = f"(rows, {self.channels}) and (rows, {len(self.spans)})"
            raise ValueError(f"rows of shape {x.shape} and {given.shape}; {wanted} wanted")
        return given

    # ------------------------------------------------------------ counting

    def _count(self, x: NDArray[np.floating], extra: NDArray[np.floating], sign: int) -> None:
        """Add (or take away) all windows of these rows."""
        windows = len(x) - self.depth + 1
        if windows < 1:
            return
        if self.pairs is None and not np.isfinite(x).all():  # what was counted so far was complete
            self.pairs = np.full_like(self.products, self.windows * self.each)
            self.seen = np.full_like(self.sums, self.windows * self.each)
        total = np.zeros(len(x))
        size = self._chunk(len(x))
        for first in range(0, self.channels, size):
            chunk = np.ascontiguousarray(x[:, first : first + size].T, dtype=np.float64)
            there = np.isfinite(chunk)
            groups = slice(first, first + len(chunk)) if self.individual else slice(0, 1)
            whole = bool(there.all())
            if not whole:
                chunk = np.where(there, chunk, 0.0)
            self.products[groups] += sign * self._gram(chunk, windows)
            self.sums[groups] += sign * self._pool(_sliding(chunk, windows))
            self.squares[groups] += sign * self._pool(_sliding(chunk**2, windows))
            if self.pairs is not None and self.seen is not None:
                every = windows * (1 if self.individual else len(chunk))
                mask = there.astype(np.float64)
                self.pairs[groups] += sign * (every if whole else np.rint(self._gram(mask, windows)))
                self.seen[groups] += sign * (every if whole else self._pool(_sliding(mask, windows)))
            if self.individual:
                self._count_cross(chunk, extra, windows, groups, sign)
            else:
                total += chunk.sum(0)
        if self.spans:
            if not self.individual:
                self._count_cross(total[None], extra, windows, slice(0, 1), sign)
            self._count_extra(np.asarray(extra, np.float64), windows, sign)
        self.windows += sign * windows

    def _chunk(self, rows: int) -> int:
        """Channels at once: copies and spectra take about 64 bytes a row, a group's products 8 a number."""
        return max(1, CHUNK_BYTES // (64 * rows + (16 * self.length * self.depth if self.individual else 0)))

    def _pool(self, values: Floats) -> Floats:
        """Channels into groups."""
        return values if self.individual else values.sum(0, keepdims=True)

    def _gram(self, x: Floats, windows: int) -> Floats:
        return cross_products(x, x, windows, self.length, self.depth, not self.individual)

    def _count_cross(
        self, x: Floats, extra: NDArray[np.floating], windows: int, groups: slice, sign: int
    ) -> None:
        at = 0
        for column, span in enumerate(self.spans):
            e = np.broadcast_to(np.asarray(extra[:, column], np.float64), x.shape)
            self.cross[groups, at : at + span] += sign * cross_products(
                e, x, windows, span, self.depth, False
            )
            at += span

    def _count_extra(self, extra: Floats, windows: int, sign: int) -> None:
        starts = np.cumsum([0, *self.spans])
        for a, (row, rows) in enumerate(zip(starts, self.spans)):
            one = extra[None, :, a]
            self.extra_sums[row : row + rows] += sign * _sliding(one, windows)[0, :rows]
            for b, (column, columns) in enumerate(zip(starts, self.spans)):
                if b < a:
                    continue
                block = sign * cross_products(one, extra[None, :, b], windows, rows, columns, False)[0]
                self.extra_products[row : row + rows, column : column + columns] += block
                if b > a:
                    self.extra_products[column : column + columns, row : row + rows] += block.T


def rows_of(one: Prepared, first: int, last: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Scaled rows of a series as `Moments` takes them, missing ones NaN, and its exogenous columns."""
    x, mask = one.x[first:last], one.mask[first:last]
    return x if mask.all() else np.where(mask, x, np.nan), np.concatenate(
        [one.past[first:last], one.future[first:last]], 1
    )


class _Rows:
    """The rows of a series whose windows are counted; room at the end grows by half, so a row costs O(C)."""

    def __init__(self, x: NDArray[np.floating], extra: NDArray[np.floating]) -> None:
        self._held = [x, extra]
        self._first, self._end = 0, len(x)

    @property
    def x(self) -> NDArray[np.floating]:
        return self._held[0][self._first : self._end]

    @property
    def extra(self) -> NDArray[np.floating]:
        return self._held[1][self._first : self._end]

    def append(self, x: NDArray[np.floating], extra: NDArray[np.floating]) -> None:
        size = self._end - self._first
        if self._end + len(x) > len(self._held[0]):
            room = (size + len(x)) * 3 // 2
            for number, old in enumerate((self.x, self.extra)):
                grown = np.zeros((room, old.shape[1]))
                grown[:size] = old
                self._held[number] = grown
            self._first, self._end = 0, size
        for held, new in zip(self._held, (x, extra)):
            held[self._end : self._end + len(new)] = new
        self._end += len(x)

    def drop(self, rows: int) -> None:
        self._first += rows


def cross_products(a: Floats, b: Floats, windows: int, rows: int, columns: int, pooled: bool) -> Floats:
    """(G, rows, columns): Σ_s a[s+i]·b[s+j] over `windows` windows, channel by channel of (C, T), G = C, or summed over
    the channels, G = 1."""
    if windows <= DIRECT_WINDOWS:
        return _direct(a, b, windows, rows, columns, pooled)
    across = _lags(a, b, windows, columns, pooled)
    down = across if a is b else _lags(b, a, windows, rows, pooled)
    out = np.empty((len(across), rows, columns))
    out[:, 0] = across
    out[:, :, 0] = down[:, :rows]
    step = _steps(a, b, windows, rows, columns, pooled)
    for i in range(1, rows):
        np.add(out[:, i - 1, :-1], step(i - 1), out=out[:, i, 1:])
    return out


def _steps(
    a: Floats, b: Floats, windows: int, rows: int, columns: int, pooled: bool
) -> Callable[[int], Floats]:
    """i ↦ (G, columns − 1): a[N+i]·b[N+j] − a[i]·b[j], what a window further along the diagonal changes."""
    late_a, early_a = a[:, windows : windows + rows - 1], a[:, : rows - 1]
    late_b, early_b = b[:, windows : windows + columns - 1], b[:, : columns - 1]
    if pooled:
        change = late_a.T @ late_b - early_a.T @ early_b
        return lambda i: change[None, i]
    return lambda i: late_a[:, i, None] * late_b - early_a[:, i, None] * early_b


def _direct(a: Floats, b: Floats, windows: int, rows: int, columns: int, pooled: bool) -> Floats:
    left = np.stack([a[:, s : s + rows] for s in range(windows)], 1)  # (C, N, rows)
    right = np.stack([b[:, s : s + columns] for s in range(windows)], 1)
    if pooled:
        return (left.reshape(-1, rows).T @ right.reshape(-1, columns))[None]
    return left.transpose(0, 2, 1) @ right


def _lags(a: Floats, b: Floats, windows: int, depth: int, pooled: bool) -> Floats:
    """(G, depth): Σ_{s < windows} a[s]·b[s+j]"""
    reach = windows + depth - 1
    size = scipy.fft.next_fast_len(reach, real=True)
    spectrum = scipy.fft.rfft(a[:, :windows], size).conj() * scipy.fft.rfft(b[:, :reach], size)
    if pooled:
        spectrum = spectrum.sum(0, keepdims=True)
    found: Floats = scipy.fft.irfft(spectrum, size)[:, :depth]
    return found


def _sliding(x: Floats, windows: int) -> Floats:
    """(C, T) to (C, T − windows + 1): Σ_{s < windows} x[s+j]"""
    first = x[:, :windows].sum(1, keepdims=True)
    change = np.cumsum(x[:, windows:] - x[:, : x.shape[1] - windows], 1)
    return np.concatenate([first, first + change], 1)
