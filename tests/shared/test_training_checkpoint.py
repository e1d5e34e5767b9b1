"""Checkpoints: whole or absent, verified, plain data."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.errors import ModelUnusable, ResourcesExhausted, UsageError
from shared.training.checkpoint import (
    VerifiedIO,
    manifest_of,
    newest,
    next_path,
    prune,
    read_verified,
    serial_of,
    write_verified,
)
from shared.training.seed import rng_state, set_rng_state, state_sha
from shared.training.sharded import VerifiedFsdp

CONTENT: dict[str, Any] = {
    "weights": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)},
    "numbers": [1, 2.5, True, None, "text", (1, 2)],
}


def save(folder: Path, value: float = 0.0, **facts: Any) -> Path:
    path = next_path(folder)
    write_verified(path, {"x": torch.full((1000,), value)}, facts)
    return path


def flip(path: Path, at: int = -600) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_round_trip_with_numpy_and_paths_made_plain(tmp_path: Path) -> None:
    path = tmp_path / "save-000001.ckpt"
    content = {
        **CONTENT,
        "np": {"f": np.float32(1.5), "a": np.arange(3)},
        "path": Path("x"),
        "hyper_parameters": print,
    }
    write_verified(path, content, {"step": 3})
    back = read_verified(path)
    assert state_sha(back["weights"]) == state_sha(CONTENT["weights"])
    assert back["numbers"] == CONTENT["numbers"]
    assert back["np"]["f"] == 1.5
    assert back["np"]["a"].tolist() == [0, 1, 2]
    assert back["path"] == "x"
    assert "hyper_parameters" not in back
    facts = json.loads(manifest_of(path).read_text())
    assert (facts["step"], facts["bytes"]) == (3, path.stat().st_size)


def test_code_does_not_go_in(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"checkpoint key a\.b\[1\]: Series"):
        import pandas as pd

        write_verified(tmp_path / "save-000001.ckpt", {"a": {"b": [1, pd.Series([1])]}}, {})
    assert newest(tmp_path, print) is None


def test_damage_is_seen_and_the_one_before_used(tmp_path: Path) -> None:
    first, second, third = save(tmp_path, 1.0), save(tmp_path, 2.0), save(tmp_path, 3.0)
    flip(third)
    with pytest.raises(ModelUnusable, match="content differs from its sha256"):
        read_verified(third)
    second.write_bytes(second.read_bytes()[:100])
    said: list[str] = []
    found = newest(tmp_path, said.append)
    assert found is not None
    assert found.path == first
    assert len(said) == 2
    assert all("trying the one before" in line for line in said)
    manifest_of(first).write_text("{")
    with pytest.raises(UsageError, match="3 checkpoints, none usable"):
        newest(tmp_path, said.append)


def test_a_file_without_manifest_never_counts(tmp_path: Path) -> None:
    save(tmp_path, 1.0)
    manifest_of(save(tmp_path, 2.0)).unlink()
    found = newest(tmp_path, print)
    assert found is not None
    assert serial_of(found.path) == 1
    assert next_path(tmp_path).name == "save-000003.ckpt"  # a name is never used twice
    assert newest(tmp_path / "absent", print) is None


def test_two_are_kept_and_the_best_they_need(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_verified(tmp_path / f"best-{step}.ckpt", {"w": torch.ones(1)}, {})
    save(tmp_path, best="best-1.ckpt")
    save(tmp_path, best="best-2.ckpt")
    save(tmp_path, best="best-2.ckpt")
    manifest_of(save(tmp_path)).unlink()
    prune(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == [
        "best-2.ckpt", "save-000002.ckpt", "save-000003.ckpt",
    ]  # fmt: skip


def test_a_disk_that_fills_up_leaves_the_one_before(tmp_path: Path) -> None:
    before = save(tmp_path, 1.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(ResourcesExhausted, match=r"no space left writing it: need 0\.8 MB") as caught:
            write_verified(next_path(tmp_path), {"x": torch.zeros(200_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 8
    assert [path.name for path in tmp_path.glob("*.ckpt")] == [before.name]
    assert read_verified(before)["x"][0] == 1.0


def test_a_full_disk_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ResourcesExhausted, match=r"0\.0 MB free"):
        save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_trouble_with_the_disk_is_not_called_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="input/output error"):
        save(tmp_path)


def test_random_states_survive_the_disk(tmp_path: Path) -> None:
    torch.manual_seed(5)
    np.random.seed(6)
    np.random.standard_normal()  # leaves a cached second number
    write_verified(tmp_path / "save-000001.ckpt", {"rng": rng_state()}, {})
    wanted = torch.rand(3).tolist(), np.random.standard_normal(3).tolist()
    set_rng_state(read_verified(tmp_path / "save-000001.ckpt")["rng"])
    assert (torch.rand(3).tolist(), np.random.standard_normal(3).tolist()) == wanted


def test_sharded_training_writes_the_same_verified_files(tmp_path: Path) -> None:
    """Lightning's FSDP strategy refuses the facts that a checkpoint carries; ours hands both on."""
    strategy = VerifiedFsdp(checkpoint_io=VerifiedIO())
    path = next_path(tmp_path)

    strategy.save_checkpoint(dict(CONTENT), path, storage_options={"step": 7})

    found = newest(tmp_path, lambda text: None)
    assert found is not None and found.path == path
    assert found.facts["step"] == 7
    assert torch.equal(read_verified(path)["weights"]["a"], CONTENT["weights"]["a"])
