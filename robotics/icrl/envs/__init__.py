"""Environments whose task is hidden. Importing this package costs nothing; `register` makes the ids known."""

from __future__ import annotations


def register() -> None:
    """Register ``icrl/Darkroom-v0``, ``DarkroomPermuted``, ``DarkroomLarge`` and ``DarkKeyToDoor`` likewise, and
    ``icrl/Reacher-v0``, ``HalfCheetah``, ``Ant`` and ``Pusher``, also as ``…Dynamics-v0``.

    The same happens for ``gymnasium.make("robotics.icrl.envs.gym_grid:icrl/Darkroom-v0", goal=(4, 2))``.
    Raises `EnvironmentUnfit` where gymnasium or MuJoCo is not installed.
    """
    from shared.errors import need

    need("robotics", "gymnasium", "mujoco")
    import robotics.icrl.envs.gym_grid
    import robotics.icrl.envs.hidden  # noqa: F401
