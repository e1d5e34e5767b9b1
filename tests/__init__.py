"""Tests. `shared` comes first: it mends a torchvision that does not load beside a CPU build of torch."""

import shared  # noqa: F401
