"""Weights a user brings: which are taken, which are refused with one clear line, and how the merging is settled."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medical.brats_seg.config import BratsConfig, BratsModelConfig
from medical.brats_seg.model import build_network
from medical.brats_seg.weights import load_pretrained
from shared.bundle import Bundle
from shared.errors import ModelUnusable, SuiteError

CODE_RAN = "code-ran"


def config(path: Path | None, **options: Any) -> BratsModelConfig:
    return BratsModelConfig(
        **{"feature_size": 12, "stages": 2, "merging": "legacy", "pretrained": path, **options}
    )


def network(seed: int = 1, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(config(None, **options), 4, 3)


@pytest.fixture(scope="module")
def source() -> dict[str, Tensor]:
    return network(0).state_dict()


def same(net: nn.Module, state: Mapping[str, Tensor], part: str = "") -> bool:
    return all(torch.equal(v, state[k]) for k, v in net.state_dict().items() if k.startswith(part))


def refusal(path: Path, **options: Any) -> str:
    net = network(**{k: v for k, v in options.items() if k != "merging"})
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(SuiteError) as caught:
        load_pretrained(net, config(path, **options))
    assert isinstance(caught.value, ModelUnusable) and caught.value.exit_code == 5
    assert same(net, before), "a refused file must leave the network as it was"
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


# ---------------------------------------------------------------- taken


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".safetensors"])
def test_all_weights(tmp_path: Path, source: dict[str, Tensor], suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    save_file(source, path) if suffix == ".safetensors" else torch.save(source, path)
    net = network()
    text = load_pretrained(net, config(path))
    assert same(net, source)
    assert (
        text
        == f"all weights from w{suffix}: {len(source)} of {len(source)} tensors taken; merging legacy as configured"
    )


@pytest.mark.parametrize("holder", ["state_dict", "model_state_dict", "model", "network"])
@pytest.mark.parametrize("prefix", ["", "module.", "network.", "_orig_mod.module."])
def test_holders_and_prefixes(tmp_path: Path, source: dict[str, Tensor], holder: str, prefix: str) -> None:
    torch.save({"epoch": 3, holder: {f"{prefix}{k}": v for k, v in source.items()}}, tmp_path / "w.pt")
    net = network()
    load_pretrained(net, config(tmp_path / "w.pt"))
    assert same(net, source)


def test_no_file_is_no_load() -> None:
    net = network()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert load_pretrained(net, config(None)) == ""
    assert same(net, before)


def _old_names(key: str) -> str:
    return key.replace(".mlp.linear1.", ".mlp.fc1.").replace(".mlp.linear2.", ".mlp.fc2.")


@pytest.mark.parametrize(
    "rename",
    [
        lambda k: k,
        lambda k: k.replace("swinViT.", "swin_vit."),
        lambda k: k.replace("swinViT.", "module.swin_vit."),
        lambda k: k.replace("swinViT.", "module."),
        lambda k: _old_names(k.replace("swinViT.", "module.")),
        lambda k: k.replace("swinViT.", ""),
        lambda k: f"model.{k}",
    ],
    ids=["swinViT", "swin_vit", "module.swin_vit", "module", "ssl-release", "bare", "model"],
)
def test_encoder_only(tmp_path: Path, source: dict[str, Tensor], rename: Callable[[str], str]) -> None:
    state = {rename(k): v for k, v in source.items() if k.startswith("swinViT.")}
    heads = {"module.rotation_head.weight": torch.zeros(4, 8), "module.contrastive_head.bias": torch.zeros(8)}
    torch.save({"state_dict": state | heads}, tmp_path / "ssl.pt")
    net = network()
    decoder = {k: v.clone() for k, v in net.state_dict().items() if not k.startswith("swinViT.")}
    text = load_pretrained(net, config(tmp_path / "ssl.pt"))
    assert text.startswith(
        f"Swin encoder from ssl.pt: {len(state)} of {len(source)} tensors taken, 2 in the file not used"
    )
    assert same(net, source, "swinViT.")
    assert all(torch.equal(net.state_dict()[k], v) for k, v in decoder.items())


def test_official_checkpoint_with_numpy_scalars(tmp_path: Path, source: dict[str, Tensor]) -> None:
    """The official trainer saves ``best_acc`` as a numpy number, here also under numpy 1's module names."""
    content = {"epoch": 299, "best_acc": np.float64(0.8854), "acc": np.float32(0.5), "state_dict": source}
    torch.save(content, tmp_path / "new.pt")
    with zipfile.ZipFile(tmp_path / "new.pt") as new, zipfile.ZipFile(tmp_path / "model.pt", "w") as old:
        for name in new.namelist():
            data = new.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in data
                data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(name, data)
    for name in ("new.pt", "model.pt"):
        net = network()
        load_pretrained(net, config(tmp_path / name))
        assert same(net, source)
    with pytest.raises(Exception, match="numpy"):
        torch.load(tmp_path / "new.pt", weights_only=True)  # the allowance ends with our call


def test_half_precision_is_widened(tmp_path: Path, source: dict[str, Tensor]) -> None:
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in source.items()}, tmp_path / "w.safetensors"
    )
    net = network()
    load_pretrained(net, config(tmp_path / "w.safetensors"))
    assert all(p.dtype == torch.float32 for p in net.parameters())
    assert same(net, {k: v.half().to(v.dtype) if v.is_floating_point() else v for k, v in source.items()})


def test_missing_index_buffers_are_no_fault(tmp_path: Path, source: dict[str, Tensor]) -> None:
    torch.save({k: v for k, v in source.items() if "relative_position_index" not in k}, tmp_path / "w.pt")
    net = network()
    assert "all weights" in load_pretrained(net, config(tmp_path / "w.pt"))
    assert same(net, source)


def test_segresnet_has_no_merging(tmp_path: Path) -> None:
    options = {"name": "segresnet", "norm": "group", "merging": "merging"}
    state = network(0, **options).state_dict()
    torch.save(state, tmp_path / "w.pt")
    net = network(**options)
    assert load_pretrained(net, config(tmp_path / "w.pt", **options)).endswith("tensors taken")
    assert same(net, state)


# ---------------------------------------------------------------- rows 49 to 53 of the list of bad inputs


class Payload:
    """Pickles into a call that leaves a file behind if anything ever runs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (str(self.folder / CODE_RAN),)


@pytest.mark.parametrize("zipped", [True, False], ids=["weights-49-zip", "weights-49-legacy"])
def test_pickled_code_never_runs(tmp_path: Path, source: dict[str, Tensor], zipped: bool) -> None:
    path = tmp_path / "w.pt"
    torch.save({"state_dict": source, "x": Payload(tmp_path)}, path, _use_new_zipfile_serialization=zipped)
    text = refusal(path)
    assert "contains code (posix.mkdir)" in text and "never run" in text and "save_file" in text
    assert not (tmp_path / CODE_RAN).exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_weights_49_plain_pickle(tmp_path: Path, protocol: int) -> None:
    import pickle

    (tmp_path / "w.ckpt").write_bytes(pickle.dumps(Payload(tmp_path), protocol=protocol))
    assert "contains code (posix.mkdir)" in refusal(tmp_path / "w.ckpt")
    assert not (tmp_path / CODE_RAN).exists()


def test_weights_49_whole_module(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "w.pt")
    assert "contains code (medical.brats_seg.model.ShallowSwinUNETR)" in refusal(tmp_path / "w.pt")


NOT_CHECKPOINTS: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda good: good[: len(good) // 2],
    "cut-short": lambda good: good[:100],
    "empty": lambda good: b"",
    "text": lambda good: b"<html>404: not found</html>\n" * 20,
    "one-byte": lambda good: b"\x80",
    "zip-magic": lambda good: b"PK\x03\x04" + bytes(200),
    "pickle-magic": lambda good: b"\x80\x02" + bytes(200),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "damage", list(NOT_CHECKPOINTS), ids=[f"weights-50-{key}" for key in NOT_CHECKPOINTS]
)
def test_not_a_checkpoint(tmp_path: Path, source: dict[str, Tensor], damage: str, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    save_file(source, path) if suffix == ".safetensors" else torch.save(source, path)
    path.write_bytes(NOT_CHECKPOINTS[damage](path.read_bytes()))
    assert "not a checkpoint" in refusal(path)


def test_weights_50_no_tensors(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": 1}}, tmp_path / "w.pt")
    assert "not a checkpoint (no tensors in it)" in refusal(tmp_path / "w.pt")


def test_weights_50_not_a_file(tmp_path: Path) -> None:
    assert "not found" in refusal(tmp_path / "absent.pt")
    assert "not a regular file" in refusal(tmp_path)


def flip(path: Path, value: Tensor) -> None:
    """Change one byte in the stored bytes of `value`."""
    content = bytearray(path.read_bytes())
    at = bytes(content).index(value.numpy().tobytes()[:64])
    content[at + 1] ^= 1
    path.write_bytes(bytes(content))


def test_weights_51_flipped_byte_in_a_torch_file(tmp_path: Path, source: dict[str, Tensor]) -> None:
    path = tmp_path / "w.pt"
    torch.save(source, path)
    flip(path, source["swinViT.patch_embed.proj.weight"])
    torch.load(path, weights_only=True)  # torch does not notice
    assert "content differs from its checksum" in refusal(path)


def test_weights_51_flipped_byte_against_a_card(tmp_path: Path, source: dict[str, Tensor]) -> None:
    from shared.io.hashes import sha256_file

    path = tmp_path / "w.safetensors"
    save_file(source, path)
    (tmp_path / "w.json").write_text(json.dumps({"sha256": sha256_file(path), "merging": "legacy"}))
    assert "merging legacy (stated with the weights)" in load_pretrained(network(), config(path))
    flip(path, source["swinViT.patch_embed.proj.weight"])
    assert "content differs from the sha256 in its card" in refusal(path)


def bundle(folder: Path, state: dict[str, Tensor], **options: Any) -> Bundle:
    return Bundle.save(
        folder, pipeline="brats-seg", config=BratsConfig(model=config(None, **options)), state_dict=state
    )


@pytest.mark.parametrize("inner", ["", "weights.safetensors"])
def test_weights_51_bundle(tmp_path: Path, source: dict[str, Tensor], inner: str) -> None:
    bundle(tmp_path / "b", source)
    net = network()
    assert "merging legacy (its bundle)" in load_pretrained(net, config(tmp_path / "b" / inner))
    assert same(net, source)
    flip(tmp_path / "b" / "weights.safetensors", source["swinViT.patch_embed.proj.weight"])
    with pytest.raises(ModelUnusable, match="content differs"):
        load_pretrained(net, config(tmp_path / "b" / inner))


MISFITS = [
    ("feature-size", {"feature_size": 24}, ["patch_embed.proj.weight 12×4×2×2×2 for 24×4×2×2×2", "feature_size=12"]),
    ("window", {"window_size": 4}, ["relative_position_bias_table 2197×3 for 343×3", "set model.window_size=7"]),
    ("more-stages", {"stages": 3}, ["set the model options"]),
    ("other-network", {"name": "segresnet", "norm": "group"}, ["has a place", "check model.name"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"), [row[1:] for row in MISFITS], ids=[f"weights-52-{row[0]}" for row in MISFITS]
)
def test_other_configuration(
    tmp_path: Path, source: dict[str, Tensor], options: dict[str, Any], said: list[str]
) -> None:
    torch.save(source, tmp_path / "w.pt")
    text = refusal(tmp_path / "w.pt", **options)
    for part in said:
        assert part in text, text
    assert len(text) - len(str(tmp_path)) < 500


def test_weights_52_channels(tmp_path: Path) -> None:
    torch.save(build_network(config(None), 1, 3).state_dict(), tmp_path / "w.pt")
    assert "made for 1 input channels, data.modalities has 4" in refusal(tmp_path / "w.pt")


def test_weights_52_deeper_encoder(tmp_path: Path) -> None:
    deep = {k: v for k, v in network(stages=4).state_dict().items() if k.startswith("swinViT.")}
    torch.save(deep, tmp_path / "w.pt")
    text = refusal(tmp_path / "w.pt")
    assert "no place for swinViT.layers3." in text and "set model.stages=4" in text


def test_weights_52_v2_encoder(tmp_path: Path) -> None:
    state = {k: v for k, v in network(stages=4, use_v2=True).state_dict().items() if k.startswith("swinViT.")}
    torch.save(state, tmp_path / "w.pt")
    assert "set model.use_v2=true" in refusal(tmp_path / "w.pt", stages=4)


def test_weights_52_half_a_decoder(tmp_path: Path, source: dict[str, Tensor]) -> None:
    torch.save({k: v for k, v in source.items() if not k.startswith("decoder1.")}, tmp_path / "w.pt")
    assert "lacks decoder1." in refusal(tmp_path / "w.pt")


def test_weights_52_not_finite(tmp_path: Path, source: dict[str, Tensor]) -> None:
    bad = {k: v.clone() for k, v in source.items()}
    bad["out.conv.conv.bias"][1] = torch.nan
    torch.save(bad, tmp_path / "w.pt")
    assert "NaN or infinite values in out.conv.conv.bias" in refusal(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "start",
    [
        (2**40).to_bytes(8, "little"),
        (2**63).to_bytes(8, "little"),
        (10).to_bytes(8, "little") + b"not json!!",
        b"{}",
    ],
    ids=["weights-53-header-2^40", "weights-53-header-2^63", "weights-53-no-json", "weights-53-short"],
)
def test_safetensors_header(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(start)
    assert "not a checkpoint" in refusal(path)


# ---------------------------------------------------------------- provenance decides the merging


@pytest.mark.parametrize(
    ("metadata", "asked", "outcome"),
    [
        ({"monai_version": "1.3.2"}, "legacy", "merging legacy (made with MONAI 1.3.2)"),
        ({"monai_version": "1.3.2"}, "merging", "so trained with merging legacy; model.merging is merging; set"),
        ({"monai_version": "1.4.0"}, "merging", "set model.merging=legacy"),
        ({"monai_version": "1.5.0"}, "merging", "merging merging (made with MONAI 1.5.0)"),
        ({"monai_version": "1.10.0"}, "merging", "merging merging"),
        ({"monai_version": "1.6.1"}, "legacy", "set model.merging=merging"),
        ({"monai_version": "1.3.2"}, "mergingv2", "merging mergingv2"),
        ({"monai_version": "1.3.2", "merging": "mergingv2"}, "mergingv2", "merging mergingv2 (stated"),
        ({"merging": "legacy"}, "mergingv2", "set model.merging=legacy"),
        ({"merging": "merging"}, "merging", "merging merging (stated with the weights)"),
        ({}, "merging", "unknown which patch merging it was trained with; set model.merging=legacy"),
        ({}, "legacy", "merging legacy as configured"),
        ({}, "mergingv2", "merging mergingv2 as configured"),
    ],
    ids=lambda value: "-".join(value.values()) or "unknown" if isinstance(value, dict) else None,
)  # fmt: skip
@pytest.mark.parametrize("how", ["metadata", "card", "checkpoint"])
def test_merging(
    tmp_path: Path, source: dict[str, Tensor], metadata: dict[str, str], asked: str, outcome: str, how: str
) -> None:
    path = tmp_path / ("w.pt" if how == "checkpoint" else "w.safetensors")
    if how == "checkpoint":
        torch.save({"state_dict": source, **metadata}, path)
    else:
        save_file(source, path, metadata=metadata if how == "metadata" else None)
    if how == "card":
        path.with_suffix(".json").write_text(json.dumps(metadata))
    if outcome.startswith("merging"):
        assert outcome in load_pretrained(network(), config(path, merging=asked))
    else:
        assert outcome in refusal(path, merging=asked)


@pytest.mark.parametrize("name", ["fold1_f48_ep300_4gpu_dice0_9059/model.pt", "model_swinvit.pt"])
def test_published_names_are_legacy(tmp_path: Path, source: dict[str, Tensor], name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    torch.save({"epoch": 299, "best_acc": np.float64(0.9), "state_dict": source}, path)
    assert "merging legacy (published as" in load_pretrained(network(), config(path))
    assert "set model.merging=legacy" in refusal(path, merging="merging")


def test_confirmed_by_the_card_that_the_message_names(tmp_path: Path, source: dict[str, Tensor]) -> None:
    torch.save(source, tmp_path / "w.pt")
    assert '{"merging": "merging"} in w.json' in refusal(tmp_path / "w.pt", merging="merging")
    (tmp_path / "w.json").write_text('{"merging": "merging"}')
    assert "all weights" in load_pretrained(network(), config(tmp_path / "w.pt", merging="merging"))


@pytest.mark.parametrize(
    ("card", "said"),
    [("[", "not JSON"), ('{"merging": "new"}', "found 'new'"), ('{"monai_version": "x"}', "found 'x'")],
)
def test_bad_cards(tmp_path: Path, source: dict[str, Tensor], card: str, said: str) -> None:
    torch.save(source, tmp_path / "w.pt")
    (tmp_path / "w.json").write_text(card)
    with pytest.raises(SuiteError, match=said):
        load_pretrained(network(), config(tmp_path / "w.pt"))


def test_loaded_network_computes_as_its_source(tmp_path: Path, source: dict[str, Tensor]) -> None:
    torch.save({"state_dict": source}, tmp_path / "w.pt")
    net, original = network(), network(0)
    load_pretrained(net, config(tmp_path / "w.pt"))
    x = torch.randn(1, 4, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(net.eval()(x), original.eval()(x))
