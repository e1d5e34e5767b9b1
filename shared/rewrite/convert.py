"""Pre-LN to Pre-RMSNorm and Pre-CRMSNorm without loss (Jiang et al. 2023, arXiv 2305.14858).

A layer norm takes the mean off its input. If everything that writes the residual stream writes vectors of mean 0, there
is no mean to take off, and LN is RMSNorm (section 3.1):

    LayerScale γ:      W ← diag(γ) W,  b ← γ b              (the last linear map of its branch)
    LN's w and β:      W ← W diag(w),  b ← b + W β           (the linear maps that read it)
    writers:           W ← W − mean over outputs,  b ← b − mean b;  position codes and class tokens likewise

A vector of mean 0 is known by C − 1 of its channels (section 3.2, CRMSNorm): writers lose their last row, readers take
W_j ← W_j − W_C. The final norm keeps w and β and gives all C channels again, so that features and head stay as they
were; so does a norm whose readers are not known.

What a map is before any norm differs by that token's mean (and lacks the last channel). Dropout on the stream acts in
training only; outputs are equal in evaluation.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from shared.nets.measure import count_params
from shared.rewrite.norms import Centred, CentredPosition, Crms, DropLast, Rms
from shared.rewrite.registry import Report, register
from shared.rewrite.streams import Branch, Slot, Stream, refuse, streams_of

Form = Literal["rms", "crms"]


@register(
    "prermsnorm", paper="Pre-RMSNorm and Pre-CRMSNorm Transformers, Jiang et al. 2023, arXiv 2305.14858"
)
def apply(
    model: nn.Module, data: Tensor | None = None, *, form: Form = "rms", trainable: bool = False
) -> tuple[nn.Module, Report]:
    """A copy of `model` with RMSNorm (`rms`) or CRMSNorm (`crms`) in place of layer norms, that computes the same.

    `model`: a `Backbone` of order preln or parallel, or timm's VisionTransformer. With `trainable` (rms only) the means
    are taken off at every step by a parametrisation and nothing is folded: gradients and so training are those of the
    layer-norm network; `apply` again afterwards bakes that in. With `data`, inputs of the model, the report holds the
    largest difference of outputs. Raises `UsageError` with the layer that cannot be converted.
    """
    if form not in ("rms", "crms"):
        refuse("form", repr(form), "rms or crms", "correct it")
    if trainable and form == "crms":
        refuse("form", "crms to be trained", "rms", "set form: rms, or convert after training")
    new = copy.deepcopy(model)
    streams = streams_of(new)
    for stream in streams:
        _bake(stream)
    _check(streams)
    with torch.no_grad():
        for stream in streams:
            _convert(stream, form, trainable)
    branches = [branch for stream in streams for branch in stream.branches]
    report: Report = {
        "form": form,
        "norms": len(branches) + len(streams),
        "folded": 0 if trainable else sum(bool(branch.readers) for branch in branches),
        "params_before": count_params(model),
        "params_after": count_params(new),
    }
    if data is not None:
        report["max_difference"] = _difference(model, new, data)
    return new, report


def _convert(stream: Stream, form: Form, trainable: bool) -> None:
    drop = int(form == "crms")
    for branch in stream.branches:
        if trainable:
            gamma = _gamma(branch.scale)
            _parametrise(branch.writers, gamma)
        else:
            _fold_scale(branch)
            _centre(branch.writers, drop if branch.readers else 0)
        branch.scale.set(DropLast() if drop and not branch.readers else nn.Identity())
        _exchange_norm(stream.dim, branch, form, trainable)
    for code in stream.codes:
        if trainable:
            parametrize.register_parametrization(code.owner, code.attribute, Centred(-1))
        else:
            value = code.get()
            centred = value.double() - value.double().mean(-1, keepdim=True)
            code.set(_like(value, centred[..., : stream.dim - drop]))
    if trainable:
        _parametrise(stream.sources, None)
    else:
        _centre(stream.sources, drop)
    if stream.position is not None:
        inner = stream.position.get()
        if not isinstance(inner, CentredPosition):
            stream.position.set(CentredPosition(inner, stream.dim, drop))
        else:
            inner.drop = drop
    stream.exit.set(_norm(stream.exit.get(), stream.dim, form, affine=True, restore=True))


def _exchange_norm(dim: int, branch: Branch, form: Form, trainable: bool) -> None:
    norm = branch.norm.get()
    fold = bool(branch.readers) and not trainable
    if fold:
        _fold_affine(norm, branch.readers)
        if form == "crms":
            _fold_last(branch.readers)
    branch.norm.set(_norm(norm, dim, form, affine=not fold, restore=not branch.readers))


def _norm(norm: Any, dim: int, form: Form, *, affine: bool, restore: bool) -> nn.Module:
    weight, bias = (norm.weight, norm.bias) if affine else (None, None)
    made: nn.Module
    made = (
        Rms(dim, norm.eps, weight, bias)
        if form == "rms"
        else Crms(dim, norm.eps, weight, bias, restore=restore)
    )
    return made.train(norm.training)


# ---------------------------------------------------------------- the algebra


def _fold_scale(branch: Branch) -> None:
    gamma = _gamma(branch.scale)
    if gamma is None:
        return
    for writer in branch.writers:
        weight, bias = _tensors(writer)
        _store(
            writer,
            weight * gamma.double().view(-1, *[1] * (weight.ndim - 1)),
            bias if bias is None else bias * gamma,
        )


def _fold_affine(norm: Any, readers: Sequence[nn.Module]) -> None:
    for reader in readers:
        weight, bias = _tensors(reader)
        if norm.bias is not None:
            offset = weight @ norm.bias.double()
            bias = offset if bias is None else bias + offset
        _store(reader, weight if norm.weight is None else weight * norm.weight.double(), bias)


def _fold_last(readers: Sequence[nn.Module]) -> None:
    for reader in readers:
        weight, bias = _tensors(reader)
        _store(reader, weight[:, :-1] - weight[:, -1:], bias)


def _centre(writers: Sequence[nn.Module], drop: int) -> None:
    for writer in writers:
        weight, bias = _tensors(writer)
        keep = weight.shape[0] - drop
        weight = weight - weight.mean(0, keepdim=True)
        _store(writer, weight[:keep], None if bias is None else (bias - bias.mean())[:keep])


def _parametrise(writers: Sequence[nn.Module], gamma: nn.Parameter | None) -> None:
    for writer in writers:
        for key in ("weight", "bias"):
            if getattr(writer, key) is not None:
                parametrize.register_parametrization(writer, key, Centred(0, gamma))


def _gamma(scale: Slot) -> nn.Parameter | None:
    """LayerScale's factor, ours and timm's."""
    gamma = getattr(scale.get(), "gamma", None)
    return gamma if isinstance(gamma, nn.Parameter) else None


def _tensors(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in double precision."""
    return module.weight.double(), None if module.bias is None else module.bias.double()


def _store(module: Any, weight: Tensor, bias: Tensor | None) -> None:
    """New values, maybe of another shape, in the module's own type."""
    old = module.weight
    module.weight = _like(old, weight)
    module.bias = None if bias is None else _like(old, bias)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    else:
        module.out_channels = weight.shape[0]


def _like(old: Tensor, value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(old.dtype).contiguous(), requires_grad=old.requires_grad)


def _bake(stream: Stream) -> None:
    """Undo the parametrisation of a `trainable` conversion, keeping the values it made."""
    owners: list[Any] = [m for branch in stream.branches for m in branch.writers]
    owners += [*stream.sources, *(code.owner for code in stream.codes)]
    for owner in owners:
        if not parametrize.is_parametrized(owner):
            continue
        values = {key: getattr(owner, key).detach() for key in owner.parametrizations}
        # Not remove_parametrizations: it edits the class, which torch lets a deep copy share with its original.
        owner.__class__ = parametrize.type_before_parametrizations(owner)
        del owner.parametrizations
        for key, value in values.items():
            owner.register_parameter(key, nn.Parameter(value))


# ---------------------------------------------------------------- what cannot be converted


def _check(streams: Sequence[Stream]) -> None:
    norms: dict[int, str] = {}
    roles: dict[int, str] = {}
    for stream in streams:
        for slot in [*(branch.norm for branch in stream.branches), stream.exit]:
            norm = slot.get()
            if not isinstance(norm, nn.LayerNorm | Rms):
                refuse(slot.name, type(norm).__name__, "LayerNorm")
            if isinstance(norm, nn.LayerNorm) and tuple(norm.normalized_shape) != (stream.dim,):
                refuse(
                    slot.name,
                    f"a norm over {tuple(norm.normalized_shape)}",
                    f"one over the {stream.dim} channels",
                )
            if id(norm) in norms:
                refuse(slot.name, f"the same norm as {norms[id(norm)]}, of another input", "a norm each")
            norms[id(norm)] = slot.name
        for branch in stream.branches:
            scale = branch.scale.get()
            if not isinstance(scale, nn.Identity) and _gamma(branch.scale) is None:
                refuse(branch.scale.name, type(scale).__name__, "a factor a channel, or none")
            _check_maps(stream, branch.readers, nn.Linear, f"after {branch.norm.name}", roles)
            _check_maps(stream, branch.writers, nn.Linear | _CONVS, f"after {branch.norm.name}", roles)
        _check_maps(stream, stream.sources, nn.Linear | _CONVS, "at the start", roles)


_CONVS = nn.Conv1d | nn.Conv2d | nn.Conv3d


def _check_maps(
    stream: Stream, modules: Sequence[nn.Module], kinds: Any, where: str, roles: dict[int, str]
) -> None:
    for module in modules:
        name = stream.name(module)
        if not isinstance(module, kinds):
            refuse(name, type(module).__name__, "a linear map")
        weight = id(module.weight)
        if weight in roles:
            refuse(name, f"weights used {roles[weight]} and {where}", "weights of its own")
        roles[weight] = where


def _difference(old: nn.Module, new: nn.Module, data: Tensor) -> float:
    was = old.training
    try:
        with torch.no_grad():
            return float((old.eval()(data) - new.eval()(data)).abs().max())
    finally:
        old.train(was)
        new.train(was)
