"""A bundle is whole or absent, verified on opening, and says which key does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from shared.bundle import FILES, Bundle
from shared.config import RunConfig
from shared.errors import ModelUnusable, UsageError


def saved(path: Path, network: nn.Module | None = None, **kwargs: object) -> Bundle:
    state = (network or nn.Linear(3, 2)).state_dict()
    return Bundle.save(path, pipeline="fake", config=RunConfig(seed=3), state_dict=state, **kwargs)  # type: ignore[arg-type]


def test_round_trip_is_exact(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    bundle = saved(tmp_path / "b", network, metrics={"dice": 0.5}, card="# c", schema={"spacing": [1, 1, 2]})
    again = Bundle.open(tmp_path / "b")
    fresh = again.load_into(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    for key, value in network.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value)
    assert not fresh.training
    assert again.config(RunConfig).seed == 3
    assert (again.pipeline, again.metrics, again.card) == ("fake", {"dice": 0.5}, "# c")
    assert again.schema["spacing"] == [1, 1, 2]
    assert again.hash == bundle.hash
    assert {item.name for item in (tmp_path / "b").iterdir()} == set(FILES)
    assert len({item.stat().st_mode for item in (tmp_path / "b").iterdir()}) == 1
    assert [item.name for item in tmp_path.iterdir()] == ["b"]


def test_what_could_not_be_measured_is_null(tmp_path: Path) -> None:
    bundle = saved(tmp_path / "b", metrics={"dice": 0.5, "hd95": float("nan")})
    assert json.loads((bundle.path / "metrics.json").read_text()) == {"dice": 0.5, "hd95": None}
    assert bundle.metrics == pytest.approx({"dice": 0.5, "hd95": float("nan")}, nan_ok=True)


def test_hash_follows_weights_and_config_not_card(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    first = saved(tmp_path / "a", network)
    assert saved(tmp_path / "b", network, card="other").hash == first.hash
    assert saved(tmp_path / "c", nn.Linear(3, 2)).hash != first.hash
    before = first.hash
    assert first.annotate(metrics={"x": 1.0}, card="new").hash == before


def test_half_precision_weights_load_into_float(tmp_path: Path) -> None:
    half = nn.Linear(3, 2).half()
    loaded = saved(tmp_path / "h", half).load_into(nn.Linear(3, 2))
    assert loaded.weight.dtype == torch.float32
    assert torch.equal(loaded.weight.half(), half.weight)


@pytest.mark.parametrize("name", FILES)
def test_absent_file_is_named(tmp_path: Path, name: str) -> None:
    saved(tmp_path / "b")
    (tmp_path / "b" / name).unlink()
    with pytest.raises(ModelUnusable, match=name):
        Bundle.open(tmp_path / "b")


def test_other_network_names_the_first_keys(tmp_path: Path) -> None:
    bundle = saved(tmp_path / "b")
    with pytest.raises(ModelUnusable, match="weight"):
        bundle.load_into(nn.Linear(5, 2))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 1}'])
def test_damaged_schema(tmp_path: Path, text: str) -> None:
    saved(tmp_path / "b")
    (tmp_path / "b" / "schema.json").write_text(text)
    with pytest.raises(ModelUnusable, match=r"schema\.json"):
        Bundle.open(tmp_path / "b")


def test_future_format_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "b")
    path = tmp_path / "b" / "schema.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(ModelUnusable, match="found 99"):
        Bundle.open(tmp_path / "b")


def test_existing_folder_is_kept_unless_asked(tmp_path: Path) -> None:
    first = saved(tmp_path / "b")
    with pytest.raises(UsageError, match="exists"):
        saved(tmp_path / "b")
    assert Bundle.open(tmp_path / "b").hash == first.hash
    assert saved(tmp_path / "b", overwrite=True).hash != first.hash
