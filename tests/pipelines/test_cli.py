"""The command line: instant, one line an error, the promised exit codes, one JSON object."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import _guard, cli, registry
from shared.config import parse_yaml
from shared.distributed.signals import Stopped
from shared.errors import EnvironmentUnfit, UsageError
from tests.contract.conftest import call

HEAVY = (
    "torch",
    "monai",
    "mlflow",
    "pytorch_lightning",
    "ray",
    "matplotlib",
    "nibabel",
    "scipy",
    "pandas",
    "numpy",
)


@pytest.mark.parametrize("argument", ["--help", "list"])
def test_start_imports_nothing_heavy(argument: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.argv = ['pipelines', {argument!r}]\n"
        "from pipelines.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.rstrip().endswith("HEAVY []")


def test_list_json_is_one_object(tmp_path: Path) -> None:
    done = call(tmp_path, "list", "--json")
    rows = json.loads(done.stdout)["rows"]
    assert [row["name"] for row in rows] == registry.names()
    assert {"task", "inputs", "models", "presets", "weights", "status"} <= set(rows[0])


def test_show_is_the_resolved_configuration(tmp_path: Path) -> None:
    name = registry.names()[0]
    done = call(tmp_path, "show", name, "-s", "train.lr=1e-4", "--preset", "smoke")
    assert parse_yaml(done.stdout, "show")["train"]["lr"] == 1e-4


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("show", "brats-sg"), 2, "did you mean brats-seg"),
        (("show", "brats-seg", "-s", "train.epoch=3"), 2, "did you mean train.epochs"),
        (("show", "brats-seg", "--preset", "tiny"), 2, "smoke"),
        (("show", "brats-seg", "--config", "absent.yaml"), 2, "absent.yaml"),
        (("run", "brats-seg", "--data", "absent"), 2, "absent: not found"),
        (("check", "brats-seg", "--data", "absent"), 2, "absent: not found"),
        (("predict", "brats-seg"), 2, "inputs"),
        (("nonsense",), 2, "nonsense"),
        (("predict", "brats-seg", ".", "-o", "out", "-m", "absent-model"), 5, "absent-model"),
    ],
)
def test_usage_errors_are_one_line(tmp_path: Path, args: tuple[str, ...], code: int, words: str) -> None:
    started = time.monotonic()
    done = call(tmp_path, *args)
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert words.lower() in lines[0].lower()
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 60


def test_closed_pipe_is_quiet(tmp_path: Path) -> None:
    command = f"{sys.executable} -m pipelines show brats-seg | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.startswith("seed")
    assert done.stderr == ""


def test_guard_finds_our_packages_in_one_place() -> None:
    assert _guard.strangers() == {}


def test_guard_refuses_a_foreign_package(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "__init__.py").write_text("")
    done = call(tmp_path, "list")  # python -m puts the current folder first
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr


def test_no_dependency_owns_one_of_our_names() -> None:
    from importlib.metadata import packages_distributions

    owners = packages_distributions()
    for name in _guard.PACKAGES:
        assert set(owners.get(name, ["domain-pipelines"])) == {"domain-pipelines"}


def test_registry_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean brats-seg"):
        registry.load("brats_seg")


@pytest.mark.parametrize("command", ["list", "show brats-seg"])
def test_a_reader_that_is_gone_is_quiet(command: str, tmp_path: Path) -> None:
    command = f"({sys.executable} -m pipelines {command}; echo $? > code) | exec true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stderr == ""
    assert (tmp_path / "code").read_text().strip() == "0"


def test_any_text_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    cli.table([{"path": "[/b] [red]", "value": float("nan")}], ("path", "value"))
    assert "[/b] [red]" in capsys.readouterr().out
    cli.emit({"value": float("nan"), "path": Path("\udcff")}, True)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "value": None,
        "path": "\udcff",
    }


@pytest.mark.parametrize(
    ("args", "words"),
    [(("sample", "brats-seg", "-o", "file/x"), "file"), (("run", "brats-seg", "--preset", "smoke"), "runs")],
)
def test_a_place_that_cannot_be_written_is_the_users_matter(
    args: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    for name in ("file", "runs"):
        (tmp_path / name).write_text("in the way")
    done = call(tmp_path, *args)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("*.log"))


def test_sigterm_is_swallowed_by_no_except_exception() -> None:
    with pytest.raises(Stopped):
        try:
            cli._terminate(15, None)
        except Exception:  # noqa: BLE001 - as libraries do
            pytest.fail("swallowed")


@pytest.mark.parametrize(
    "target", ["absent_package:PIPELINE", "pipelines.batch:ABSENT", "pipelines.batch:Summary"]
)
def test_a_broken_registration_is_named(target: str) -> None:
    with pytest.raises(EnvironmentUnfit, match=target):
        registry.load_object(target)


def test_without_a_command_there_is_help(tmp_path: Path) -> None:
    done = call(tmp_path)
    assert done.returncode == 2
    assert "predict" in done.stdout + done.stderr
    assert "error" not in done.stderr
