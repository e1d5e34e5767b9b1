"""The arm of Reacher: where its tip is, how to get it to a goal, and how it looks from above.

An observation is (cos a, cos b, sin a, sin b, ȧ, ḃ) of the two joints' angles, rad and rad/s, then the tip's place
(x, y); lengths are metres. It is Reacher-v5's own without the target: there the tip is seen from the target.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robotics.icrl.envs.base import Array

LINKS = (0.1, 0.11)
"""Shoulder to elbow, elbow to fingertip."""
_STIFF, _DAMP = 2.0, 0.19
"""Of the controller: 20 rad/s, critically damped, as a full action accelerates a joint by 200 rad/s²."""
_PIXELS, _HALF = 240, 0.24
_COLOURS = {"floor": (236, 236, 232), "arm": (70, 70, 70), "tip": (0, 90, 181), "goal": (220, 120, 0)}


def _angles(obs: ArrayLike) -> tuple[Array, Array]:
    seen = np.asarray(obs)
    return np.arctan2(seen[..., 2], seen[..., 0]), np.arctan2(seen[..., 3], seen[..., 1])


def joints(obs: ArrayLike) -> Array:
    """(…, 8) observations → (…, 3, 2) places of shoulder, elbow and fingertip."""
    a, b = _angles(obs)
    elbow = LINKS[0] * np.stack([np.cos(a), np.sin(a)], -1)
    tip = elbow + LINKS[1] * np.stack([np.cos(a + b), np.sin(a + b)], -1)
    return np.stack([np.zeros_like(elbow), elbow, tip], -2)


def fingertip(obs: ArrayLike) -> Array:
    """(…, 8) observations → (…, 2) places."""
    return np.asarray(obs)[..., 6:8]


def pull(obs: ArrayLike, goal: Sequence[float]) -> NDArray[np.float32]:
    """(…, 8) observations → (…, 2) actions of an expert: inverse kinematics, of both ways to bend the elbow the one
    that turns the joints less, and a proportional-derivative controller."""
    seen = np.asarray(obs)
    a, b = _angles(seen)
    far = np.clip(np.hypot(goal[0], goal[1]), abs(LINKS[0] - LINKS[1]) + 1e-6, sum(LINKS) - 1e-6)
    bend = np.arccos(np.clip((far**2 - LINKS[0] ** 2 - LINKS[1] ** 2) / (2 * LINKS[0] * LINKS[1]), -1, 1))
    found = []
    for b_wanted in (bend, -bend):
        reach = np.arctan2(LINKS[1] * np.sin(b_wanted), LINKS[0] + LINKS[1] * np.cos(b_wanted))
        turn = np.arctan2(goal[1], goal[0]) - reach - a
        found.append(np.stack([(turn + np.pi) % (2 * np.pi) - np.pi, b_wanted - b], -1))
    shorter = np.abs(found[0]).max(-1) <= np.abs(found[1]).max(-1)
    error = np.where(shorter[..., None], found[0], found[1])
    return np.clip(_STIFF * error - _DAMP * seen[..., 4:6], -1, 1).astype(np.float32)


def draw_arm(obs: ArrayLike, goal: Sequence[float]) -> NDArray[np.uint8]:
    """(8,) observation → (240, 240, 3) picture, x to the right and y upwards."""
    side = (np.arange(_PIXELS) + 0.5) / _PIXELS * 2 * _HALF - _HALF
    at = np.stack(np.meshgrid(side, -side), -1)
    image = np.empty((_PIXELS, _PIXELS, 3), np.uint8)
    image[:] = _COLOURS["floor"]
    image[np.hypot(*np.moveaxis(at - np.asarray(goal), -1, 0)) < 0.012] = _COLOURS["goal"]
    shoulder, elbow, tip = joints(obs)
    for begin, end in ((shoulder, elbow), (elbow, tip)):
        along = np.clip((at - begin) @ (end - begin) / ((end - begin) @ (end - begin)), 0, 1)
        image[np.linalg.norm(at - begin - along[..., None] * (end - begin), axis=-1) < 0.006] = _COLOURS[
            "arm"
        ]
    image[np.linalg.norm(at - tip, axis=-1) < 0.01] = _COLOURS["tip"]
    return image
