"""Strict YAML, typed overrides, and errors that name the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import (
    Config,
    RunConfig,
    TrainConfig,
    config_hash,
    flatten,
    merge,
    parse_set,
    parse_yaml,
    read_yaml,
    resolve,
    to_yaml,
)
from shared.errors import UsageError


def test_scientific_notation_is_a_number() -> None:
    assert parse_yaml("lr: 1e-3", "x") == {"lr": 1e-3}
    assert parse_set("train.lr=3E-4") == (("train", "lr"), 3e-4)
    with pytest.raises(UsageError, match=r"a\.b=\{c:1\}: no blank after the colon; c: 1 wanted"):
        parse_set("a.b={c:1}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "line 2: duplicate key 'a'"),
        ("a: &x [1]\nb: *x", "aliases are not allowed"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a:\n\t- 1", "line 2"),
        ("a: [" * 30 + "]" * 30, "more than 20 levels"),
        ("a: " + "x" * 1_000_001, "at most 1 MB"),
    ],
)
def test_hostile_yaml_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_yaml(text, "file.yaml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("file.yaml")


def test_layers_and_sets_in_order() -> None:
    config = resolve(
        RunConfig,
        [("a", {"train": {"epochs": 3, "lr": 0.1}}), ("b", {"train": {"epochs": 4}})],
        ["train.lr=2e-2", "seed=7"],
    )
    assert (config.train.epochs, config.train.lr, config.seed) == (4, 0.02, 7)


@pytest.mark.parametrize(
    ("key", "near"),
    [("train.learning_rate=1", "train"), ("train.epoch=1", "train.epochs"), ("epochs=1", "train.epochs")],
)
def test_unknown_key_names_the_nearest(key: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"unknown key .*{near}"):
        resolve(RunConfig, [], [key])


def test_wrong_value_names_key_value_and_range() -> None:
    with pytest.raises(UsageError, match=r"train\.epochs: found 0; .*greater than or equal to 1"):
        resolve(RunConfig, [], ["train.epochs=0"])


def test_frozen_and_round_trip(tmp_path: Path) -> None:
    config = resolve(RunConfig, [], ["train.clip_norm=1.5"])
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(config))
    again = resolve(RunConfig, [(str(path), read_yaml(path))])
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert config_hash(again) != config_hash(RunConfig())
    assert flatten(config)["train.clip_norm"] == 1.5


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"- 1\n- 2\n"])
def test_unreadable_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"c\.yaml"):
        read_yaml(path)
    with pytest.raises(UsageError, match=r"absent\.yaml"):
        read_yaml(tmp_path / "absent.yaml")


@given(st.integers(1, 10**6), st.floats(1e-8, 1e3, allow_nan=False))
def test_any_valid_value_survives_yaml(epochs: int, lr: float) -> None:
    class Root(Config):
        train: TrainConfig = TrainConfig()

    config = resolve(Root, [], [f"train.epochs={epochs}", f"train.lr={lr!r}"])
    assert resolve(Root, [("y", parse_yaml(to_yaml(config), "y"))]) == config


def test_merge_changes_neither() -> None:
    base, over = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(base, over) == {"a": {"b": 1, "c": 2}}
    assert (base, over) == ({"a": {"b": 1}}, {"a": {"c": 2}})
