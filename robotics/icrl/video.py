"""First and last episode of the first task's first copy as a film: GIF, or MP4 where ffmpeg is there.

Grids and the arm of Reacher are drawn from what was observed. Other environments play the actions again and render
them; MuJoCo's need a graphics library for that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robotics.icrl.play import Played
from shared.errors import EnvironmentUnfit, UsageError, named_line
from shared.io.atomic import atomic_path

Image = NDArray[np.uint8]
_SECONDS_AT_MOST = 0.15
_FILM_SECONDS = 12.0
"""A film of more steps than fit in so long goes faster than `_SECONDS_AT_MOST` a step, to 25 pictures a second."""


def write_films(played: Played, folder: Path, kinds: Sequence[str]) -> list[str]:
    """``rollout.gif`` and ``rollout.mp4`` in `folder`, those of `kinds`; a line for each that cannot be made."""
    if not kinds:
        return []
    try:
        pictures = _pictures(played)
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


def _pictures(played: Played) -> list[Image]:
    task, family = played.tasks[0], played.family
    last = played.returns.shape[2] - 1
    found: list[Image] = []
    for number in sorted({0, last}):
        obs, rewards = (played.episode(name, 0, 0, number) for name in ("obs", "rewards"))
        frames = family.frames(task, obs, rewards)
        if frames is None:
            return _rendered(played, {0, last})
        found += frames
    return found


def _rendered(played: Played, wanted: set[int]) -> list[Image]:
    """The first copy's actions played again from its seed."""
    from robotics.icrl.envs.gym_batch import GymBatch

    task = played.tasks[0]
    batch = GymBatch([task], 1, played.seed, render_mode="rgb_array")
    found: list[Image] = []
    try:
        batch.reset()
        if hasattr(batch.first_copy, "mujoco_renderer"):
            _require_gl(task.family.name)
        for number in range(max(wanted) + 1):
            for action in played.episode("actions", 0, 0, number):
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
    except Exception as err:  # noqa: BLE001  MuJoCo and a user's environment may raise anything
        raise UsageError(f"{name}: no film, it cannot be rendered ({named_line(err)})") from None
    if image.ndim != 3 or image.dtype != np.uint8:
        raise UsageError(
            f"{name}: no film, render_mode rgb_array gives no (height, width, 3) picture; mend its render"
        )
    return image[..., :3]
