"""Progress on terminals and in logs: what is written, when, and by whom."""

from __future__ import annotations

import io
import threading

from shared.progress import Progress, clock_text


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_log_gets_a_line_every_30_seconds_and_one_at_the_end() -> None:
    clock, out = Clock(), io.StringIO()
    with Progress(out, clock=clock) as progress:
        task = progress.task("predict", 100)
        for done in range(1, 101):
            clock.now += 1.0
            task.update(done, f"case {done}")
    assert out.getvalue().splitlines() == [
        "predict: 30/100 (30 %), 1:10 left; case 30",
        "predict: 60/100 (60 %), 0:40 left; case 60",
        "predict: 90/100 (90 %), 0:10 left; case 90",
        "predict: 100/100 (100 %), done in 1:40; case 100",
    ]


def test_steps_done_before_a_resume_are_no_speed() -> None:
    clock = Clock()
    task = Progress(io.StringIO(), clock=clock).task("train", 100, done=80)
    assert task.remaining is None
    clock.now += 10.0
    task.advance()
    assert task.remaining == 190.0


def test_a_task_left_early_says_so_and_closes_once() -> None:
    clock, out = Clock(), io.StringIO()
    task = Progress(out, clock=clock).task("train", 0)
    task.close()
    task.close()
    task.update(5)
    assert out.getvalue() == "train: 0/0, done in 0:00\n"
    clock, out = Clock(), io.StringIO()
    with Progress(out, clock=clock) as progress:
        progress.task("train", 10).update(4, "loss 0.5")
    assert out.getvalue() == "train: 4/10 (40 %), stopped after 0:00; loss 0.5\n"


def test_terminal_shows_bars_and_lines_side_by_side() -> None:
    out = io.StringIO()
    with Progress(out, terminal=True) as one, Progress(out, terminal=True) as two:
        first, second = one.task("[red]outer", 2), two.task("inner", 4)
        second.update(3, "loss 0.25")
        second.close()
        first.update(2)
    text = out.getvalue()
    assert "[red]outer" in text
    assert "inner" in text
    assert (
        text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    )  # one display: cursor hidden and given back once


def test_hidden_in_helpers_and_whole_under_threads() -> None:
    out = io.StringIO()
    Progress(out, shown=False).task("train", 3).update(3)
    assert out.getvalue() == ""
    task = Progress(out).task("predict", 400)
    threads = [threading.Thread(target=lambda: [task.update(i) for i in range(101)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    task.close()
    assert out.getvalue().startswith("predict: 100/400 (25 %), stopped after")


def test_a_closed_stream_stops_nothing() -> None:
    out = io.StringIO()
    task = Progress(out).task("predict", 1)
    out.close()
    task.update(1)
    task.close()


def test_clock_text() -> None:
    assert [clock_text(s) for s in (0, 65, 3725.4)] == ["0:00", "1:05", "1:02:05"]
