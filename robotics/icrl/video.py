"""Some episodes of a task's first copy as a film, with the context beneath: GIF, or MP4 where ffmpeg is there.

Grids and the arm of Reacher are drawn from what was observed. Other environments play the actions again and render
them; MuJoCo's need a graphics library for that. The strip beneath is the context, a column a step, now at its right
end: dark where an episode begins, the more orange the higher the reward.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robotics.icrl.envs.base import RAISED
from robotics.icrl.models.config import ModelConfig
from robotics.icrl.play import Played
from shared.errors import EnvironmentUnfit, UsageError, named_line
from shared.io.atomic import atomic_path

Image = NDArray[np.uint8]
_SECONDS_AT_MOST = 0.15
_FILM_SECONDS = 12.0
"""A film of more steps than fit in so long goes faster than `_SECONDS_AT_MOST` a step, to 25 pictures a second."""


STRIP = 14
"""Pixels of its height."""
_OLD, _NONE, _GOOD, _BEGIN = (250, 250, 250), (214, 214, 210), (220, 120, 0), (70, 70, 70)


def write_films(
    played: Played,
    folder: Path,
    kinds: Sequence[str],
    model: ModelConfig,
    task: int = 0,
    episodes: Sequence[int] = (),
) -> list[str]:
    """``rollout.gif`` and ``rollout.mp4`` in `folder`, those of `kinds`, of `episodes` (from 0; none: the first and the
    last) of one task's first copy; a line for each that cannot be made. `model` says how long a context is."""
    if not kinds:
        return []
    chosen = sorted({*episodes} or {0, played.returns.shape[2] - 1})
    try:
        pictures = [*map(_beneath, _pictures(played, task, chosen), _strips(played, model, task, chosen))]
    except (EnvironmentUnfit, UsageError) as err:
        return [str(err)]
    notes = []
    for kind in kinds:
        try:
            _write(np.stack(pictures), folder / f"rollout.{kind}")
        except EnvironmentUnfit as err:
            notes.append(str(err))
    return notes


def _write(pictures: Image, path: Path) -> None:
    import imageio.v3 as imageio

    seconds = float(np.clip(_FILM_SECONDS / len(pictures), 0.04, _SECONDS_AT_MOST))
    if path.suffix == ".mp4":
        _require_ffmpeg()
    with atomic_path(path) as temp:
        if path.suffix == ".gif":
            imageio.imwrite(temp, pictures, extension=".gif", duration=seconds * 1000, loop=0)
        else:
            even = pictures[:, : pictures.shape[1] // 2 * 2, : pictures.shape[2] // 2 * 2]
            keys: dict[str, Any] = {"plugin": "FFMPEG", "codec": "libx264", "macro_block_size": 1}
            imageio.imwrite(temp, even, extension=".mp4", fps=1 / seconds, **keys)


def _require_ffmpeg() -> None:
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise EnvironmentUnfit(
            "predict.mp4: no film, ffmpeg is not there; pip install imageio-ffmpeg, or set predict.gif=true"
        ) from None


def context_lengths(steps: int, model: ModelConfig) -> list[int]:
    """Steps in the context at each step, this one included, as a rollout keeps them."""
    found, length = [], 0
    for _ in range(steps):
        length = (model.kept if length == model.context else length) + 1
        found.append(length)
    return found


def _strips(played: Played, model: ModelConfig, task: int, wanted: Sequence[int]) -> Iterator[Image]:
    """(1, context, 3) of each step of the episodes `wanted`."""
    row = task * played.copies
    number, place = (each[row] for each in played.place)
    gained = played.rollout.rewards[row].astype(float)
    share = (gained - gained.min()) / max(float(np.ptp(gained)), 1e-12) * bool(gained.any())
    colours = np.asarray(_NONE) + share[:, None] * (np.asarray(_GOOD, float) - _NONE)
    colours[place == 0] = _BEGIN
    lengths = context_lengths(len(number), model)
    for at in np.flatnonzero(np.isin(number, wanted)):
        strip = np.full((1, model.context, 3), _OLD, np.uint8)
        seen = colours[at + 1 - lengths[at] : at + 1]
        strip[0, model.context - len(seen) :] = seen
        yield strip


def _beneath(picture: Image, strip: Image) -> Image:
    """The strip as wide as the picture, below it."""
    columns = np.arange(picture.shape[1]) * strip.shape[1] // picture.shape[1]
    return np.concatenate([picture, np.repeat(strip[:, columns], STRIP, 0)])


def _pictures(played: Played, row: int, wanted: Sequence[int]) -> list[Image]:
    task, family = played.tasks[row], played.family
    found: list[Image] = []
    for number in wanted:
        obs, rewards = (played.episode(name, row, 0, number) for name in ("obs", "rewards"))
        frames = family.frames(task, obs, rewards)
        if frames is None:
            return _rendered(played, row, wanted)
        found += frames
    return found


def _rendered(played: Played, row: int, wanted: Sequence[int]) -> list[Image]:
    """The first copy's actions played again from its seed."""
    from robotics.icrl.envs.gym_batch import GymBatch

    task = played.tasks[row]
    batch = GymBatch([task], 1, played.seed, render_mode="rgb_array")
    found: list[Image] = []
    try:
        batch.reset()
        if hasattr(batch.first_copy, "mujoco_renderer"):
            _require_gl(task.family.name)
        for number in range(max(wanted) + 1):
            for action in played.episode("actions", row, 0, number):
                if number in wanted and not batch.broken:
                    found.append(_picture(batch, task.family.name))
                batch.step(np.asarray(action)[None, None])
    finally:
        batch.close()
    if not found:
        raise UsageError(f"{task.family.name}: no film; {batch.broken.get(0, 'nothing to show')}")
    if len(sizes := {picture.shape for picture in found}) > 1:
        raise UsageError(
            f"{task.family.name}: no film, its pictures differ in size ({sorted(sizes)[:2]}); mend its render"
        )
    return found


def _require_gl(name: str) -> None:
    """Raises `EnvironmentUnfit` where MuJoCo has nothing to draw with: to try would end the process."""
    chosen, libraries = os.environ.get("MUJOCO_GL", "").lower(), {"egl": "EGL", "osmesa": "OSMesa"}
    if chosen in ("", "glfw") and (sys.platform != "linux" or os.environ.get("DISPLAY")):
        return
    there = [each for each, library in libraries.items() if chosen in ("", each) and find_library(library)]
    if not there:
        raise EnvironmentUnfit(
            f"{name}: no film, MuJoCo has no OpenGL library to draw with; install libosmesa6, or libegl1 and "
            "libegl-mesa0; everything else is there"
        )
    os.environ.setdefault("MUJOCO_GL", there[0])


def _picture(batch: Any, name: str) -> Image:
    try:
        image = np.asarray(batch.render())
    except RAISED as err:
        raise UsageError(f"{name}: no film, it cannot be rendered ({named_line(err)})") from None
    if image.ndim != 3 or image.dtype != np.uint8:
        raise UsageError(
            f"{name}: no film, render_mode rgb_array gives no (height, width, 3) picture; mend its render"
        )
    return image[..., :3]
