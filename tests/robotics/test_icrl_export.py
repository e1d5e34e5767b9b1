"""An agent as a file for other programs: what it has seen goes in, its policy at every step comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.export import export
from robotics.icrl.config import IcrlConfig
from robotics.icrl.models.incontext import Context, InContext
from robotics.icrl.pipeline import PIPELINE
from shared.bundle import Bundle
from shared.errors import UsageError

SMALL = {"dim": 16, "depth": 1, "heads": 2, "context": 8}


def made(folder: Path, env: str, collector: str, **model: Any) -> tuple[Path, Any]:
    torch.manual_seed(0)
    config = PIPELINE.complete(
        IcrlConfig.model_validate(
            {"data": {"env": env, "collector": collector}, "model": {**SMALL, **model}},
        )
    )
    network = PIPELINE.task(config).network.eval()
    path = folder / "bundle"
    Bundle.save(path, pipeline="icrl", config=config, state_dict=network.state_dict())
    return path, network


@torch.no_grad()
def step_by_step(network: InContext, context: Context) -> list[Any]:
    """The policies that a rollout sees, which computes one step at a time."""
    state, found = network.trunk.init_state(len(context.obs)), []
    for at in range(context.obs.shape[1]):
        now = [None if each is None else each[:, at] for each in context[:5]]
        hidden, state = network.trunk.step(network.embed(*now), state)
        found.append(network.act_on(hidden))
    return found


def test_an_onnx_file_answers_as_a_rollout_does(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path, network = made(tmp_path, "darkroom", "explorer", method="dicp")
    result = export(PIPELINE, path, "onnx", tmp_path / "model.onnx")
    assert result["inputs"]["obs"] == ["batch", 8, 2] and "to_go" not in result["inputs"]
    assert result["outputs"] == ["logits", "reward", "observation"]
    session = onnxruntime.InferenceSession(result["output"], providers=["CPUExecutionProvider"])
    context = Context.example(network.config, network.spaces, 5)
    given = {name: each.numpy() for name, each in context._asdict().items() if each is not None}
    logits, reward, observation = session.run(None, given)
    for at, policy in enumerate(step_by_step(network, context)):
        np.testing.assert_allclose(logits[:, at], policy.logits.numpy(), atol=1e-5)
    with torch.no_grad():
        world = network.imagine(network.trunk(network.embed(*context[:5])), context.action)
    np.testing.assert_allclose(reward, world.reward.numpy(), atol=1e-5)
    np.testing.assert_allclose(observation[..., :9], world.logits[0].numpy(), atol=1e-5)
    # What has not been seen yet may be anything.
    given["obs"][:, 5:] = given["before_reward"][:, 5:] = 0
    np.testing.assert_allclose(session.run(None, given)[0][:, :5], logits[:, :5], atol=1e-5)


def test_reals_and_returns_to_go_as_a_torch_program(tmp_path: Path) -> None:
    path, network = made(tmp_path, "reacher", "noise-distillation", method="dt")
    result = export(PIPELINE, path, "torch", tmp_path / "model.pt2")
    assert result["outputs"] == ["mean", "log_variance"] and result["inputs"]["to_go"] == ["batch", 8]
    context = Context.example(network.config, network.spaces, 4)
    program = torch.export.load(tmp_path / "model.pt2").module()
    mean, spread = program(*[each for each in context if each is not None])
    for at, policy in enumerate(step_by_step(network, context)):
        torch.testing.assert_close(mean[:, at], policy.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(spread[:, at], policy.log_variance, rtol=1e-5, atol=1e-5)


def test_published_tokens_are_not_exported(tmp_path: Path) -> None:
    path, _ = made(tmp_path, "darkroom", "explorer", legacy=True)
    with pytest.raises(UsageError, match="icrl: this model cannot be exported"):
        export(PIPELINE, path, "torch", tmp_path / "model.pt2")
