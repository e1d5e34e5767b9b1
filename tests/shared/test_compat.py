"""timm and torchvision beside a torch that torchvision's compiled half was not made for, each in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from shared.errors import EnvironmentUnfit
from shared.nets import compat

BROKEN = """
import torch
torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: dets)
from . import ops
"""
"""What a torchvision whose operators did not load does on import, on torch alone."""


def run(code: str, *folders: Path) -> str:
    path = f"import sys; sys.path[:0] = {[str(f) for f in folders]}\n"
    done = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def torchvision(folder: Path, text: str) -> Path:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("import torchvision.early\n" + text)
    (package / "early.py").write_text("import builtins\nbuiltins.loads = getattr(builtins, 'loads', 0) + 1\n")
    (package / "ops.py").write_text("name = __name__\n")
    return folder


def test_missing_operators_are_declared_and_the_import_tried_again(tmp_path: Path) -> None:
    code = "import shared, torchvision; print(torchvision.ops.name, loads, torchvision.early.__name__)"
    assert run(code, torchvision(tmp_path, BROKEN)) == "torchvision.ops 2 torchvision.early"


def test_an_import_that_failed_before_ours_is_mended_too(tmp_path: Path) -> None:
    code = "\n".join(
        [
            "try:",
            "    import torchvision",
            "except RuntimeError as err:",
            "    print(err)",
            "import shared",
            "import torchvision",
            "print(torchvision.ops.name)",
        ]
    )
    said = run(code, torchvision(tmp_path, BROKEN)).splitlines()
    assert said == ["operator torchvision::nms does not exist", "torchvision.ops"]


def test_a_torchvision_that_works_is_untouched(tmp_path: Path) -> None:
    code = "import shared, torchvision, sys; print(loads, 'torch' in sys.modules)"
    assert run(code, torchvision(tmp_path, "")) == "1 False"


def test_another_error_of_torchvision_stays_one(tmp_path: Path) -> None:
    code = "import shared\ntry:\n    import torchvision\nexcept RuntimeError as err:\n    print(err)"
    assert run(code, torchvision(tmp_path, "raise RuntimeError('disk on fire')")) == "disk on fire"


def test_the_light_modules_stay_light() -> None:
    assert run("import shared.config, sys; print('torch' in sys.modules, 'torchvision' in sys.modules)") == (
        "False False"
    )


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is an optional extra")
def test_timm_and_what_else_imports_torchvision() -> None:
    code = (
        "from shared.nets.compat import import_timm; print(len(import_timm().list_models()) > 1000); "
        "import torchmetrics, torchvision"
    )
    assert run(code) == "True"


def test_without_timm_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentUnfit, match=r"timm: not installed; the 'nets' extra.*\.\[nets\]"):
        compat.import_timm()
