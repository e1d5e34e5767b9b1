"""Cost of every mixer against the number of tokens, with torch's attention beside it in the same process.

One map, `DIM` channels, `HEADS` heads, float32. A point that the shorter ones predict to take more than `CAP_SECONDS`
a call or `CAP_MIB` is left out and said to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from shared.bench.memory import keep_freed_memory
from shared.bench.model import bench_mixers, specification
from shared.bench.records import Records, fingerprint
from shared.bench.timing import (
    build,
    forward,
    milliseconds,
    peak_mib,
    sdpa,
    step_milliseconds,
    training,
    warm,
)
from shared.errors import UsageError
from shared.nets.layout import Size, count
from shared.nets.registry import accepts, find
from shared.progress import Progress

DIM, HEADS = 256, 4
SEQUENCES: tuple[Size, ...] = tuple((1024 * 2**at,) for at in range(7))
GRIDS: tuple[Size, ...] = ((56,) * 2, (112,) * 2, (224,) * 2, (16,) * 3, (32,) * 3, (64,) * 3)
CAP_SECONDS, CAP_MIB = 60.0, 8 * 1024.0
SKIPPED = "skipped (predicted)"
QUANTITIES = ("forward_ms", "training_ms")
GUESS = 2.0
"""Growth with the number of tokens where only one point is known: attention's."""
Say = Callable[[str], None]


def efficiency(
    records: Records,
    say: Say,
    sizes: Sequence[Size] = SEQUENCES,
    mixers: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Records of every mixer at every size it works in; measured where they are missing."""
    keep_freed_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pairs = [
        (size, name)
        for size in sizes
        for name in ([card.name for card in bench_mixers(len(size))] if mixers is None else mixers)
        if len(size) in find("mixer", name).make.ndims
    ]
    keys = {pair: _key(pair[1], pair[0], device) for pair in pairs}
    todo = [pair for pair in pairs if keys[pair] not in records]
    reference = Reference(device)
    with Progress() as progress, progress.task("efficiency", len(todo)) as shown:
        for size, name in todo:
            try:
                record = measure(name, size, device, reference, _earlier(records, keys[size, name]))
            except UsageError as err:
                say(f"efficiency: without {name} at {_text(size)}: {err}")
                continue
            records.add(keys[size, name], record)
            say(f"efficiency: {name} at {_text(size)}: {_said(record)}")
            shown.advance(f"{name} at {_text(size)}")
    return [records[key] for key in keys.values() if key in records]


def measure(
    name: str, size: Size, device: str, reference: Reference, earlier: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """One mixer at one size: times, ratios to the reference, memory, step; `None` where left out."""
    part = part_of(name, len(size))
    tokens, threads = count(size), torch.get_num_threads()
    record: dict[str, Any] = {"bench": "efficiency", "mixer": name, "part": part, "size": list(size)}
    record |= {
        "tokens": tokens,
        "device": device,
        "threads": threads,
        "matrix_mib": HEADS * tokens**2 * 4 / 2**20,
    }
    expected = {q: predicted(earlier, q, size) for q in (*QUANTITIES, "forward_mib", "training_mib")}
    warm(part, DIM, len(size), device)
    torch.manual_seed(1)
    mixer = build(part, DIM, size).to(device)
    x = torch.randn(1, *size, DIM, device=device)
    for quantity, work in zip(QUANTITIES, (forward(mixer, x), training(mixer, x))):
        memory = quantity.replace("_ms", "_mib")
        fits = expected[quantity] <= CAP_SECONDS * 1e3 and expected[memory] <= CAP_MIB
        record[quantity] = milliseconds(work) if fits else None
        if len(size) == 1 and fits:
            record["sdpa_" + quantity] = reference.milliseconds(tokens, quantity)
    del mixer, x
    heavy = record["training_ms"] is None
    peaks = {} if heavy else peak_mib(part, DIM, size, device)
    record |= {f"{key}_mib": value for key, value in peaks.items() if math.isfinite(value)}
    if len(size) == 1 and find("mixer", name).make.stateful:
        record |= _step(part, tokens, device, earlier)
    return record


def part_of(name: str, ndim: int) -> dict[str, Any]:
    """As in the tasks; on grids a mixer that can work axis by axis does so (whole maps cost what attention costs)."""
    part = specification(name, HEADS)
    if ndim > 1 and accepts("mixer", name, "mode"):
        try:
            split = {**part, "mode": "split"}
            build(split, DIM, (4,) * ndim)
            return split
        except UsageError:
            pass
    return part


def _step(
    part: dict[str, Any], tokens: int, device: str, earlier: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The step's time at the end of `tokens`; a growing state is filled token by token, which is capped too."""
    known = [r for r in earlier if r.get("step_ms") and r["tokens"] < tokens]
    if known:
        last = max(known, key=lambda r: r["tokens"])
        share = tokens / last["tokens"]
        whole = last["step_ms"] * share * tokens if last["state_grows"] else 0.0
        if whole > CAP_SECONDS * 1e3:
            return {"step_ms": None, "state_grows": True}
    elif any(r.get("state_grows") for r in earlier):
        return {"step_ms": None, "state_grows": True}
    time, grows = step_milliseconds(part, DIM, tokens, device)
    return {"step_ms": time, "state_grows": grows}


# ---------------------------------------------------------------- what is expected


def predicted(earlier: Sequence[dict[str, Any]], quantity: str, size: Size) -> float:
    """What smaller maps say of this one: the last value, grown by the power that the last two show (at least 1), by
    attention's where there is one only; 0 where there is none. Maps of as many axes count, else sequences."""
    tokens = count(size)

    def known(ndim: int) -> list[tuple[int, float | None]]:
        smaller = [r for r in earlier if len(r["size"]) == ndim and r["tokens"] < tokens]
        return sorted((r["tokens"], r.get(quantity)) for r in smaller)

    points = known(len(size)) or known(1)
    if points and points[-1][1] is None and quantity in QUANTITIES:
        return math.inf  # left out at a smaller size
    values = [(n, v) for n, v in points if v]
    if not values:
        return 0.0
    (n, value) = values[-1]
    power = GUESS
    if len(values) > 1:
        before = values[-2]
        power = max(math.log(value / before[1]) / math.log(n / before[0]), 1.0) if value > 0 else 1.0
    return value * (tokens / n) ** power


class Reference:
    """torch's attention at each length, timed once in this process."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._known: list[dict[str, Any]] = []

    def milliseconds(self, tokens: int, quantity: str) -> float | None:
        """None where it is predicted to take too long."""
        record = next((r for r in self._known if r["tokens"] == tokens), None)
        if record is None:
            record = {"tokens": tokens, "size": [tokens]}
            self._known.append(record)
        if quantity not in record:
            work = sdpa(tokens, DIM, HEADS, self._device, gradients=quantity == "training_ms")
            fits = predicted(self._known, quantity, (tokens,)) <= CAP_SECONDS * 1e3
            record[quantity] = milliseconds(work) if fits else None
        value: float | None = record[quantity]
        return value


def _earlier(records: Records, key: str) -> list[dict[str, Any]]:
    """Other sizes of the same mixer under the same conditions."""
    bench, name, _, mark = key.split("/")
    return [r for r in records if r["key"].startswith(f"{bench}/{name}/") and r["key"].endswith(mark)]


def _key(name: str, size: Size, device: str) -> str:
    mark = fingerprint(name, DIM, HEADS, device, torch.get_num_threads(), torch.__version__)
    return f"efficiency/{name}/{_text(size)}/{mark}"


def _text(size: Size) -> str:
    return "×".join(map(str, size))


def _said(record: dict[str, Any]) -> str:
    def ms(value: float | None) -> str:
        return SKIPPED if value is None else f"{value:.3g} ms"

    ratio = record.get("sdpa_forward_ms")
    beside = f" (torch's attention {ratio:.3g})" if ratio else ""
    memory = f", {record['training_mib']:.0f} MiB" if "training_mib" in record else ""
    return f"forward {ms(record['forward_ms'])}{beside}, with gradients {ms(record['training_ms'])}{memory}"


# ---------------------------------------------------------------- what follows


def exponent(records: Sequence[Mapping[str, Any]], quantity: str = "forward_ms") -> float | None:
    """b of ms ∝ tokens^b by least squares on logarithms: over 4,096 tokens and more where three points lie there."""
    points = [(r["tokens"], r[quantity]) for r in records if r.get(quantity)]
    long = [p for p in points if p[0] >= 4096]
    chosen = long if len(long) >= 3 else points
    if len(chosen) < 2:
        return None
    xs, ys = [math.log(n) for n, _ in chosen], [math.log(v) for _, v in chosen]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys)) / sum((x - mx) ** 2 for x in xs)


def crossover(records: Sequence[Mapping[str, Any]], quantity: str = "forward_ms") -> int | None:
    """First length from which on the mixer is faster than torch's attention wherever both were timed."""
    both = sorted(
        (r["tokens"], r[quantity] < r["sdpa_" + quantity])
        for r in records
        if r.get(quantity) and r.get("sdpa_" + quantity)
    )
    first = None
    for tokens, faster in reversed(both):
        if not faster:
            break
        first = tokens
    return first
