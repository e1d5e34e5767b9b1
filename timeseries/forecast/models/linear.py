"""Linear, NLinear and DLinear (arXiv 2205.13504; cure-lab/LTSF-Linear ``models/*.py``): one matrix from the past to the
horizon, used for every channel or one a channel.

Beyond the paper: exogenous columns have linear maps of their own (shared weights share them too: a column then moves
every channel alike; `individual` lifts that), quantiles are further outputs, and missing inputs are interpolated inside
the window (`interpolate`).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from timeseries.forecast.windows import Inputs

Kind = Literal["linear", "nlinear", "dlinear"]


class Maps(nn.Module):
    """Affine maps from I inputs to O outputs, one a group: weight (G, O, I), bias (G, O) or none. Drawn uniformly from
    ±1/√I, as torch's Linear. In memory the outputs of an input lie together, which the merge of dlinear needs."""

    def __init__(self, groups: int, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        bound = inputs**-0.5
        drawn = torch.empty(groups, outputs, inputs).uniform_(-bound, bound)
        self.weight = nn.Parameter(drawn.mT.contiguous().mT)
        self.bias = nn.Parameter(torch.empty(groups, outputs).uniform_(-bound, bound)) if bias else None


class LinearFamily(nn.Module):
    """(B, L, C) windows to (B, Q, H, C), as the paper's model of that `kind`:

    linear: y = W x + b. nlinear: the last value is subtracted first and added to the output. dlinear: two maps, of the
    moving average over `kernel` steps (ends repeated) and of what is left; both are linear, so they are applied as the
    one map W = W_s (I − M) + W_t M in training and inference alike.

    Parameters: Q·H·(L + 1), for dlinear twice that; each of P past columns adds Q·H·L, each of F future ones
    Q·H·(L + H); `individual` multiplies all by C.
    """

    def __init__(
        self,
        kind: Kind,
        length: int,
        horizon: int,
        channels: int,
        past: int = 0,
        future: int = 0,
        quantiles: int = 1,
        individual: bool = False,
        kernel: int = 25,
    ) -> None:
        super().__init__()
        if kind == "dlinear" and (kernel % 2 == 0 or kernel > length):
            raise ValueError(f"kernel {kernel}; an odd one of at most {length} steps wanted")
        self.kind, self.length, self.horizon, self.channels = kind, length, horizon, channels
        self.quantiles, self.individual, self.kernel = quantiles, individual, kernel
        groups, outputs = channels if individual else 1, quantiles * horizon
        self.direct = Maps(groups, length, outputs) if kind != "dlinear" else None
        self.seasonal = Maps(groups, length, outputs) if kind == "dlinear" else None
        self.trend = Maps(groups, length, outputs) if kind == "dlinear" else None
        self.past = Maps(groups, past * length, outputs, bias=False) if past else None
        self.future = Maps(groups, future * (length + horizon), outputs, bias=False) if future else None
        self._kept: tuple[Any, tuple[Tensor, Tensor]] | None = None

    def forward(self, inputs: Inputs) -> Tensor:
        """(B, Q, H, C)"""
        x = interpolate(inputs.x, inputs.mask)
        last = x[:, -1:] if self.kind == "nlinear" else None
        x = x if last is None else x - last
        if self.direct is None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            seasonal, trend, seasonal_bias, trend_bias = self._branches()
            out: Tensor = _Decomposed.apply(x, seasonal, trend, seasonal_bias + trend_bias, self.kernel)
        else:
            out = _each(x, *self.maps())
        for maps, columns in ((self.past, inputs.past), (self.future, inputs.future)):
            if maps is not None:
                out = out + _all(columns.mT.flatten(1), maps.weight)
        out = out if last is None else out + last
        return out.unflatten(1, (self.quantiles, self.horizon))

    def squared_error_step(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean squared error of windows (B, L, C) and answers (B, H, C) of which nothing is missing, its gradients
        stored in the parameters: what ``backward`` would leave there, in two thirds of the time. For models without
        exogenous columns and of one output (`plain`)."""
        with torch.no_grad():
            last = x[:, -1:] if self.kind == "nlinear" else None
            x = x if last is None else x - last
            weight, bias = self._now()
            error = _each(x, weight, bias)
            error = (error if last is None else error.add_(last)).sub_(y)
            loss = error.square().mean()
            merged, shift = _gradients(error.mul_(2 / error.numel()), x, len(weight))
            if self.direct is not None:
                assert self.direct.bias is not None
                self.direct.weight.grad, self.direct.bias.grad = merged, shift
            else:
                seasonal, trend, seasonal_bias, trend_bias = self._branches()
                trend.grad = moving_average(merged.mT, self.kernel).mT
                seasonal.grad = merged.sub_(trend.grad)
                seasonal_bias.grad, trend_bias.grad = shift, shift.clone()
            return loss

    @property
    def plain(self) -> bool:
        """Whether the window alone gives a single forecast."""
        return self.quantiles == 1 and self.past is None and self.future is None

    def maps(self) -> tuple[Tensor, Tensor]:
        """The one map of the window (after nlinear's subtraction): weight (G, Q·H, L) and bias (G, Q·H), G = C if
        individual, else 1. dlinear's is merged once and kept until the weights change; no gradient flows through it."""
        if self.direct is not None or torch.compiler.is_compiling():
            return self._now()
        state = tuple((p.data_ptr(), p._version, p.dtype) for p in self._branches())
        if self._kept is None or self._kept[0] != state:
            self._kept = state, self._now()
        return self._kept[1]

    def _now(self) -> tuple[Tensor, Tensor]:
        """As `maps`, from the weights as they are."""
        if self.direct is not None:
            assert self.direct.bias is not None
            return self.direct.weight, self.direct.bias
        seasonal, trend, seasonal_bias, trend_bias = (p.detach() for p in self._branches())
        return _merge(seasonal, trend, self.kernel), seasonal_bias + trend_bias

    def train(self, mode: bool = True) -> LinearFamily:
        """As in torch; forgets the merged map."""
        self._kept = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._kept = None
        return super()._apply(*args, **kwargs)

    def _branches(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter, nn.Parameter]:
        assert self.seasonal is not None and self.trend is not None
        assert self.seasonal.bias is not None and self.trend.bias is not None
        return self.seasonal.weight, self.trend.weight, self.seasonal.bias, self.trend.bias

    @torch.no_grad()
    def effective_weight(self) -> Tensor:
        """(C or 1, H, L): how much each step of the window counts in each step of the forecast (the median's);
        nlinear's subtraction is included, whose rows sum to 1."""
        weight = self.maps()[0].unflatten(1, (self.quantiles, self.horizon))[:, self.quantiles // 2].clone()
        if self.kind == "nlinear":
            weight[:, :, -1] += 1 - weight.sum(2)
        return weight

    @torch.no_grad()
    def assign(
        self, weight: Tensor, bias: Tensor, past: Tensor | None = None, future: Tensor | None = None
    ) -> None:
        """Set the one map of `maps` and those of the exogenous columns (G, Q·H, P·L) and (G, Q·H, F·(L + H)).

        dlinear's two branches are not determined by the map they add up to; theirs become the smallest ones (least sum
        of squares), [W_s W_t] = W (AᵀA)⁻¹ Aᵀ with A = [I − M; M], and each gets half of the bias.
        """
        pairs: list[tuple[Tensor | None, Tensor | None]]
        if self.direct is not None:
            pairs = [(self.direct.weight, weight), (self.direct.bias, bias)]
        else:
            average = moving_average(torch.eye(self.length, dtype=weight.dtype), self.kernel)
            rest = torch.eye(self.length, dtype=weight.dtype) - average
            smallest = torch.linalg.solve(
                rest.T @ rest + average.T @ average, torch.cat([rest.T, average.T], 1)
            )
            seasonal, trend = (weight @ smallest).chunk(2, 2)
            pairs = list(zip(self._branches(), (seasonal, trend, bias / 2, bias / 2)))
        pairs += [
            (maps.weight, w) for maps, w in ((self.past, past), (self.future, future)) if maps is not None
        ]
        for parameter, value in pairs:
            if parameter is not None and value is not None:
                parameter.copy_(value)


def moving_average(steps: Tensor, kernel: int) -> Tensor:
    """(…, L, C) to (…, L, C): mean of `kernel` steps around each, both ends repeated (official ``moving_avg``)."""
    side = kernel // 2
    shape = *steps.shape[:-2], side, steps.shape[-1]
    return _boxes(
        torch.cat([steps[..., :1, :].expand(shape), steps, steps[..., -1:, :].expand(shape)], -2), kernel
    ).div_(kernel)


def _merge(seasonal: Tensor, trend: Tensor, kernel: int) -> Tensor:
    """W_s + (W_t − W_s) M for (G, O, L) weights, M the matrix of `moving_average`. Sums of neighbours: a product with
    the L × L matrix costs three times as much."""
    side = kernel // 2
    if not side:
        return trend.clone()
    first, second = seasonal.mT, trend.mT
    spread = _boxes(F.pad(second - first, (0, 0, kernel - 1, kernel - 1)), kernel)
    out = torch.add(first, spread[:, side:-side], alpha=1 / kernel)
    out[:, 0].add_(spread[:, :side].sum(1), alpha=1 / kernel)
    out[:, -1].add_(spread[:, -side:].sum(1), alpha=1 / kernel)
    return out.mT


class _Decomposed(torch.autograd.Function):
    """dlinear in training, as one operation: autograd's own steps through the merge cost as much as the products. With
    G the gradient of the merged map, those of W_s and W_t are G − G Mᵀ and G Mᵀ, the moving average of G's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seasonal: Tensor, trend: Tensor, bias: Tensor, kernel: int) -> Tensor:
        weight = _merge(seasonal, trend, kernel)
        ctx.save_for_backward(x, weight)
        ctx.kernel = kernel
        return _each(x, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        merged, bias = _gradients(grad, x, len(weight))
        average = moving_average(merged.mT, ctx.kernel).mT
        back = None
        if ctx.needs_input_grad[0]:
            back = _each(grad, weight.mT, weight.new_zeros(len(weight), x.shape[1]))
        return back, merged - average, average, bias, None


def _gradients(grad: Tensor, x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Of the weight (G, O, L) and bias (G, O) of `_each`, from that of its result (B, O, C)."""
    if groups == 1:
        rows = grad.mT.reshape(-1, grad.shape[1])
        return (x.mT.reshape(-1, x.shape[1]).mT @ rows)[None].mT, rows.sum(0)[None]
    return (x.permute(2, 1, 0) @ grad.permute(2, 0, 1)).mT, grad.sum(0).mT


def _boxes(steps: Tensor, kernel: int) -> Tensor:
    """(…, N, C) to (…, N − kernel + 1, C): sums of `kernel` neighbours."""
    return steps.unfold(-2, kernel, 1).sum(-1)


def _each(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Every channel of (B, L, C) through its map: (B, O, C), the steps of a channel contiguous."""
    if len(weight) == 1:
        rows = x.mT.reshape(-1, x.shape[1])
        return F.linear(rows, weight.flatten(0, 1), bias.flatten()).view(x.shape[0], x.shape[2], -1).mT
    return torch.baddbmm(bias[:, None], x.permute(2, 0, 1), weight.mT).permute(1, 2, 0)


def _all(columns: Tensor, weight: Tensor) -> Tensor:
    """Exogenous values (B, I) through every group's map: (B, O, G)."""
    return F.linear(columns, weight.flatten(0, 1)).unflatten(1, weight.shape[:2]).mT


def interpolate(x: Tensor, mask: Tensor) -> Tensor:
    """(B, L, C) with missing values on the line between their neighbours in time, equal to the nearest value at the
    ends of the window (so the last step holds the last valid value), and 0 where a channel has none at all."""
    # An exported graph takes windows with gaps and without.
    fixed = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if not fixed and (mask[(0,) * mask.ndim] if not any(mask.stride()) and mask.numel() else mask).all():
        return x
    length = x.shape[1]
    steps = torch.arange(length, device=x.device)[None, :, None]
    before = _latest(torch.where(mask, steps, -1))
    after = length - _latest(torch.where(mask, length - steps, 0).flip(1)).flip(1)
    left = torch.where(before < 0, after, before).clamp(max=length - 1)
    right = torch.where(after == length, before, after).clamp(min=0)
    share = (steps - left) / (right - left).clamp(min=1)
    start = x.gather(1, left)
    return start + (x.gather(1, right) - start) * share.to(x.dtype)


def _latest(steps: Tensor) -> Tensor:
    """Running maximum over time of (B, L, C) whole numbers of at least −1. (ONNX has no ``cummax``.)"""
    reach = 1
    while reach < steps.shape[1]:
        steps = torch.maximum(steps, F.pad(steps, (0, 0, reach, 0), value=-1)[:, :-reach])
        reach *= 2
    return steps
