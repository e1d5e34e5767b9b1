"""Which families each collector knows. Nothing heavy is imported, so that a configuration can be checked at no cost."""

from __future__ import annotations

from collections.abc import Mapping

from robotics.icrl.envs import names

KNOWN: Mapping[str, tuple[tuple[str, ...], str]] = {
    "explorer": (("darkroom", "darkroom-large"), "it knows rooms with one goal"),
    "population": (names.DARK, "it knows the dark grids only"),
    "q-learning": (names.DARK, "it knows the dark grids only"),
    "noise-distillation": (names.EXPERTS, "no expert is known there"),
}
"""Of collectors that do not know every family: those they know, and why."""


def refusal(collector: str, env: str) -> str:
    """Why a collector cannot play a family's tasks and which can; empty where it can."""
    if collector not in KNOWN or env in KNOWN[collector][0]:
        return ""
    others = ", ".join([*(name for name, (rooms, _) in KNOWN.items() if env in rooms), "sb3"])
    return f"{collector} in {env}; {KNOWN[collector][1]}; choose {others} or random"
