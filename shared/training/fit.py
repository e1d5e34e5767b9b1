"""Placeholder signatures so that the other rooms can be built at the same time."""
