"""torchvision beside a torch it was not compiled for.

timm imports torchvision, and torchmetrics, Lightning and others do so wherever it is installed. PyPI's wheel is made
for the CUDA build of torch; beside the CPU build its compiled operators do not load, and the import stops with
"operator torchvision::nms does not exist", although nobody here wants these operators. `mend_torchvision` makes that
import succeed. A torchvision that works is loaded as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")
"""Those whose schemas torchvision's Python half expects of its compiled half on import."""
_libraries: list[Any] = []
"""torch forgets the schemas of a library that nobody holds."""


class _MendingLoader(Loader):
    """Runs torchvision's own loader; where the operators are missing, again, with their schemas declared.

    Calling such an operator still fails, with torchvision's own words ("Couldn't load custom C++ ops …").
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:  # resources, source, is_package
        return getattr(self.inner, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        try:
            self.inner.exec_module(module)
        except RuntimeError as err:
            if "operator torchvision::" not in str(err):
                raise
            for name in [name for name in sys.modules if name.startswith("torchvision.")]:
                del sys.modules[name]  # half loaded
            _declare()
            self.inner.exec_module(module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _MendingLoader(spec.loader)
        return spec


def _declare() -> None:
    if _libraries:
        return
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in _OPERATORS:
        library.define(name + _SCHEMA)
    _libraries.append(library)


def mend_torchvision() -> None:
    """From now on importing torchvision succeeds in this process. Loads nothing itself; again changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
