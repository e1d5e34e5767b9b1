"""The table behind `pipelines zoo`: every part of the library with what it can do and what it costs, measured here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from shared.errors import EnvironmentUnfit, UsageError
from shared.nets.registry import Card, Kind, cards, nearest
from shared.pipeline import NetworkUse

KINDS: tuple[Kind, ...] = ("backbone", "mixer", "feedforward", "stem", "down", "position", "norm", "head")
REWRITE = "rewrite"
"""Kind of the tools of `shared.rewrite`, which turn a built network into another."""
MIXER_DIM, MIXER_SIZES = 64, {1: (1024,), 2: (32, 32), 3: (16, 8, 8)}
"""Mixers are measured alone, on 1,024 tokens of 64 channels."""


def zoo(use: NetworkUse | None = None, kind: str | None = None) -> list[dict[str, Any]]:
    """One row a part: name, kind, paper, dims, causal, streaming, masks, params, macs, at, cost, source.

    Networks are measured at their published input, or at `use`'s, for which parts that cannot serve are left out.
    `kind` chooses one of `KINDS` or `REWRITE`. Raises `UsageError` for another.
    """
    if kind is not None and kind not in (*KINDS, REWRITE):
        raise UsageError(f"zoo: found kind {kind!r}; {nearest(kind, (*KINDS, REWRITE))}")
    asked = use.kinds if use is not None and use.kinds else (*KINDS, REWRITE)
    chosen = [one for one in KINDS if one in asked and kind in (None, one)]
    rows = [row for one in chosen for card in cards(one) for row in _row(card, use)]
    return rows + (_rewrites() if REWRITE in asked and kind in (None, REWRITE) else [])


def _rewrites() -> list[dict[str, Any]]:
    from shared.rewrite import papers

    same = {"dims": [1, 2, 3], "causal": "can be", "streaming": False, "masks": True, "cost": ""}
    return [
        {"name": name, "kind": REWRITE, **same, "source": "ours", "paper": paper}
        for name, paper in papers().items()
    ]


def _row(card: Card, use: NetworkUse | None) -> Iterable[dict[str, Any]]:
    facts = _facts(card)
    forms = facts.pop("forms")
    if use is not None:
        fits = use.ndim in facts["dims"] and use.causal in forms
        if not fits or use.streaming > facts["streaming"]:
            return
    yield {
        "name": card.name,
        "kind": card.kind,
        **facts,
        **_costs(card, use, facts["dims"]),
        "cost": card.cost,
        "source": card.source,
        "paper": card.paper,
    }


def _facts(card: Card) -> dict[str, Any]:
    """dims, causal forms, streaming, masks; of a backbone what all its mixers share."""
    if card.kind == "backbone" and card.source != "ours":
        return {
            "dims": [card.published["ndim"]],
            "forms": {False},
            "causal": "",
            "streaming": False,
            "masks": False,
        }
    parts = _mixers(card) if card.kind == "backbone" else [card.make]
    every = [set(getattr(part, "ndims", {1, 2, 3})) for part in parts]
    forms = set.intersection(*(_forms(part) for part in parts))
    if card.kind == "backbone":
        forms &= {bool(card.make.get("causal", False))}
    dims = sorted(set.intersection(*every))
    return {
        "dims": [1] if forms == {True} else dims,
        "forms": forms,
        "causal": {frozenset({True}): "always", frozenset({False}): ""}.get(frozenset(forms), "can be"),
        "streaming": all(getattr(p, "stateful", getattr(p, "per_token", False)) is True for p in parts),
        "masks": all(getattr(p, "masks", True) is True for p in parts),
    }


def _forms(part: Any) -> set[bool]:
    """Values of `causal` that a network may have with this part; a stem or downsampling may by its options."""
    from shared.nets.stems.base import Down, Stem  # torch is loaded when parts are wanted, not before

    ahead = getattr(part, "looks_ahead", False) and not issubclass(part, Stem | Down)
    return {False} if ahead else set(getattr(part, "causal_forms", {False, True}))


def _mixers(card: Card) -> list[Any]:
    from shared.nets.registry import find, split

    named = [m for stage in card.make["mixers"] for m in (stage if isinstance(stage, list) else [stage])]
    return [find("mixer", split(part)[0]).make for part in named]


def _costs(card: Card, use: NetworkUse | None, dims: Sequence[int]) -> dict[str, Any]:
    """Parameters and multiply-accumulates of one input, on the meta device: nothing is computed."""
    import torch

    from shared.nets.backbones.factory import create_backbone
    from shared.nets.backbones.pyramid import Backbone
    from shared.nets.measure import count_macs, count_mixer_macs, count_params
    from shared.nets.registry import make

    if card.kind not in ("backbone", "mixer"):
        return {}
    if card.kind == "mixer":
        ndim = use.ndim if use else (2 if 2 in dims else dims[0])
        size, causal = MIXER_SIZES[ndim], bool(use and use.causal) or False not in card.make.causal_forms
        with torch.device("meta"):
            mixer: Any = make("mixer", card.name, MIXER_DIM, ndim, size=size, causal=causal)
        macs = count_mixer_macs(mixer.to("meta"), MIXER_DIM, size)
        return {"params": count_params(mixer), "macs": macs, "at": f"{MIXER_DIM}×{_times(size)}"}
    published = card.published
    where = use or NetworkUse(published["ndim"], published["in_chans"], tuple(published["img_size"]))
    classes = 0 if use else published["num_classes"]
    try:
        with torch.device("meta"):
            network = create_backbone(
                card.name, ndim=where.ndim, in_chans=where.in_chans, num_classes=classes, img_size=where.size
            )
    except EnvironmentUnfit:  # a wrapped library that is not installed: listed, not measured
        return {}
    # Tables made from numpy arrays do not follow the device they are built under.
    macs = count_macs(network.to("meta"), where.in_chans, where.size)
    streaming = {"streaming": network.streams} if isinstance(network, Backbone) else {}
    return {
        **streaming,
        "params": count_params(network),
        "macs": macs,
        "at": f"{where.in_chans}×{_times(where.size)}",
    }


def _times(size: Sequence[int]) -> str:
    return "×".join(map(str, size))
