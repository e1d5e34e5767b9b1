"""Start from given weights: an SSL encoder, a published checkpoint, or a bundle.

Names are brought to MONAI's; all of the network must fit, or all of its Swin encoder. The order in which patch merging
joins the octants changed with MONAI 1.5 while names and shapes stayed, so that weights of one kind load silently into
the other and come out wrong: here their provenance decides, and where it is unknown the user is asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from medical.brats_seg.config import BratsModelConfig
from medical.brats_seg.weights_file import WeightsFile, read_weights
from shared.errors import ModelUnusable

BUILTIN = "builtin"
"""``model.pretrained`` of this value means the bundle inside the package."""
_ENCODER = "swinViT."
_WRAPPERS = re.compile(r"^(?:module|_orig_mod|network|net|model|student|teacher|backbone|encoder)\.")
_PATCH_EMBED = f"{_ENCODER}patch_embed.proj.weight"
_FIXED = "relative_position_index"
"""A buffer that follows from the window size; old checkpoints may lack it."""


def load_pretrained(network: nn.Module, model: BratsModelConfig) -> str:
    """Copy the tensors of ``model.pretrained`` into `network`, in place; a sentence saying what was taken.

    Raises `ModelUnusable` when the file is damaged, does not fit, or its merging differs from ``model.merging`` or is
    unknown.
    """
    if model.pretrained is None:
        return ""
    shipped = str(model.pretrained) == BUILTIN
    weights = read_weights(Path(__file__).parent / BUILTIN if shipped else model.pretrained)
    wanted = network.state_dict()
    given = _renamed(weights.state, wanted)
    taken = {key: tensor for key, tensor in given.items() if key in wanted}
    _refuse_shapes(weights, taken, wanted)
    _refuse_encoder_of_other_kind(weights, given, wanted)
    part = _part(weights, taken, wanted, given)
    _refuse_not_finite(weights, taken)
    merging = _merging(weights, model) if model.name == "swin-unetr" else ""
    state = {key: tensor.to(wanted[key].dtype) for key, tensor in taken.items()}
    with torch.no_grad():
        network.load_state_dict(state, strict=False)
    left = len(given) - len(taken)
    text = f"{part} from {weights.path.name}: {len(taken)} of {len(wanted)} tensors taken"
    text += f", {left} in the file not used" if left else ""
    text += f"; {merging}" if merging else ""
    return text


# ---------------------------------------------------------------- names


def _renamed(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under MONAI's names where such are recognised."""
    return {_name(key, wanted): tensor for key, tensor in state.items()}


def _name(key: str, wanted: Mapping[str, Tensor]) -> str:
    while key not in wanted and _WRAPPERS.match(key):
        rest = _WRAPPERS.sub("", key)
        if rest.startswith("encoder") and key.startswith("encoder."):
            break
        key = rest
    key = re.sub(r"^(?:swin_vit|swinvit|swinViT)\.", _ENCODER, key)
    key = key.replace(".mlp.fc1.", ".mlp.linear1.").replace(
        ".mlp.fc2.", ".mlp.linear2."
    )  # names of the SSL release
    if key not in wanted and f"{_ENCODER}{key}" in wanted:
        return f"{_ENCODER}{key}"
    if re.match(r"^layers\d", key):  # an encoder layer that this network lacks
        return f"{_ENCODER}{key}"
    return key


# ---------------------------------------------------------------- refusals


def _refuse_shapes(weights: WeightsFile, taken: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    odd = [key for key in wanted if key in taken and taken[key].shape != wanted[key].shape]
    if not odd:
        return
    first = ", ".join(f"{key} {_shape(taken[key])} for {_shape(wanted[key])}" for key in odd[:3])
    raise ModelUnusable(
        f"{weights.path}: {len(odd)} of {len(taken)} tensors have other shapes: {first}; {_hint(taken, wanted)}"
    )


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape))


def _hint(taken: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What to set, as far as the tensors give it away."""
    if _PATCH_EMBED in taken and _PATCH_EMBED in wanted:
        made, asked = taken[_PATCH_EMBED].shape, wanted[_PATCH_EMBED].shape
        if made[0] != asked[0]:
            return f"made with feature_size {made[0]}, you ask {asked[0]}; set model.feature_size={made[0]}"
        if made[1] != asked[1]:
            return f"made for {made[1]} input channels, data.modalities has {asked[1]}; use weights for {asked[1]}"
    table = next((key for key in taken if key.endswith("relative_position_bias_table")), None)
    if table is not None and taken[table].shape != wanted[table].shape:
        size = (round(taken[table].shape[0] ** (1 / 3)) + 1) // 2
        return f"made with window_size {size} or other heads; set model.window_size={size}"
    return "set the model options they were made with"


def _refuse_encoder_of_other_kind(
    weights: WeightsFile, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    """Encoder layers without a place mean another encoder; dropping them silently would leave a torso."""
    if _PATCH_EMBED not in wanted:
        return
    extra = [key for key in given if key.startswith(_ENCODER) and key not in wanted]
    if not extra:
        return
    hint = "set model.stages, model.depths and model.use_v2 as they were made with"
    if any(re.match(r"^swinViT\.layers\dc\.", key) for key in extra):
        hint = "made with use_v2; set model.use_v2=true"
    elif any(key.startswith("swinViT.layers4.") for key in extra):
        hint = "made with 4 stages; set model.stages=4"
    raise ModelUnusable(f"{weights.path}: no place for {', '.join(extra[:3])} ({len(extra)} in all); {hint}")


def _part(
    weights: WeightsFile,
    taken: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
) -> str:
    """Which part is complete: all weights, or the Swin encoder. Anything less is refused."""
    needed = [key for key in wanted if not key.endswith((_FIXED, "num_batches_tracked"))]
    missing = [key for key in needed if key not in taken]
    if not missing:
        return "all weights"
    encoder = [key for key in needed if key.startswith(_ENCODER)]
    rest = [key for key in taken if not key.startswith(_ENCODER)]
    if encoder and not rest and all(key in taken for key in encoder):
        return "Swin encoder"
    if not taken:
        names = ", ".join(list(given)[:3])
        raise ModelUnusable(
            f"{weights.path}: none of its {len(given)} tensors ({names}) has a place; weights of this network wanted; "
            "check model.name and the file"
        )
    hint = (
        "made with fewer stages or without use_v2"
        if encoder and missing[0].startswith(_ENCODER)
        else "made otherwise"
    )
    raise ModelUnusable(
        f"{weights.path}: lacks {', '.join(missing[:3])} ({len(missing)} of {len(needed)}); all weights or a whole "
        f"Swin encoder wanted; {hint}: set the model options they were made with"
    )


def _refuse_not_finite(weights: WeightsFile, taken: Mapping[str, Tensor]) -> None:
    for key, tensor in taken.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelUnusable(
                f"{weights.path}: NaN or infinite values in {key}; finite weights wanted; copy it again"
            )


# ---------------------------------------------------------------- merging


def _merging(weights: WeightsFile, model: BratsModelConfig) -> str:
    """How the merging was settled, as part of a sentence. Raises `ModelUnusable` when it is not."""
    asked = model.merging
    if weights.merging is None:
        if asked != "merging":
            return f"merging {asked} as configured"
        card = weights.path.with_suffix(".json").name
        raise ModelUnusable(
            f"{weights.path}: unknown which patch merging it was trained with; set model.merging=legacy (MONAI "
            "before 1.5: all published Swin UNETR weights) or mergingv2, or confirm the new order with "
            f'{{"merging": "merging"}} in {card} beside it'
        )
    agrees = weights.merging == asked or (asked == "mergingv2" and not weights.explicit)
    if not agrees:
        raise ModelUnusable(
            f"{weights.path}: {weights.origin}, so trained with merging {weights.merging}; model.merging is {asked}; "
            f"set model.merging={weights.merging}"
        )
    return f"merging {asked} ({weights.origin})"
