"""Names of all families of tasks. Nothing is imported here, so that a configuration can be checked at no cost."""

from __future__ import annotations

import difflib

DARK = ("darkroom", "darkroom-permuted", "darkroom-large", "dark-key-to-door")
_BODIES = ("reacher", "half-cheetah", "ant", "pusher")
CONTROL = (*_BODIES, *(f"{name}-dynamics" for name in _BODIES))
ML1_TASKS = (
    "assembly", "basketball", "bin-picking", "box-close", "button-press", "button-press-topdown",
    "button-press-topdown-wall", "button-press-wall", "coffee-button", "coffee-pull", "coffee-push", "dial-turn",
    "disassemble", "door-close", "door-lock", "door-open", "door-unlock", "drawer-close", "drawer-open",
    "faucet-close", "faucet-open", "hammer", "hand-insert", "handle-press", "handle-press-side", "handle-pull",
    "handle-pull-side", "lever-pull", "peg-insert-side", "peg-unplug-side", "pick-out-of-hole", "pick-place",
    "pick-place-wall", "plate-slide", "plate-slide-back", "plate-slide-back-side", "plate-slide-side", "push",
    "push-back", "push-wall", "reach", "reach-wall", "shelf-place", "soccer", "stick-pull", "stick-push", "sweep",
    "sweep-into", "window-close", "window-open",
)  # fmt: skip
"""Meta-World's, of its version 3, without the ``-v3`` at their end."""
ML1 = tuple(f"ml1-{task}" for task in ML1_TASKS)
EXPERTS = (*DARK, "reacher", "reacher-dynamics", *ML1)
"""Families in which someone knows what to do."""
ROOMS = (*DARK, *CONTROL, *ML1)


def others(name: str) -> str:
    """What to write instead of a name that is unknown: the nearest ones, or all that are not Meta-World's."""
    near = difflib.get_close_matches(name, ROOMS, 3, 0.75)
    few = [*DARK, *CONTROL, f"ml1-TASK ({len(ML1)} of Meta-World's, such as ml1-reach)"]
    return " or ".join(near) or f"one of {', '.join(few)}"
