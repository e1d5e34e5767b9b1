"""Which families each collector knows. Nothing heavy is imported, so that a configuration can be checked at no cost."""

from __future__ import annotations

from collections.abc import Mapping

from robotics.icrl.envs import names

_GRIDS_ONLY = (names.DARK, "it knows the dark grids only", "noise-distillation, sb3 or random")
KNOWN: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "explorer": (
        ("darkroom", "darkroom-large"), "it knows rooms with one goal", "noise-distillation, sb3 or random"
    ),
    "population": _GRIDS_ONLY,
    "q-learning": _GRIDS_ONLY,
    "noise-distillation": (names.EXPERTS, "no expert is known there", "sb3 or random"),
}  # fmt: skip
"""Of collectors that do not know every family: those they know, why, and what to choose in continuous control."""


def refusal(collector: str, env: str) -> str:
    """Why a collector cannot play a family's tasks and what can; empty where it can."""
    if collector not in KNOWN:
        return ""
    rooms, what, others = KNOWN[collector]
    if env in rooms:
        return ""
    return f"{collector} in {env}; {what}; choose {'another' if env in names.DARK else others}"
