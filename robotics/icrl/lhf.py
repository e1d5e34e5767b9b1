"""Learning-history filtering (LHF, arXiv 2505.15143): which learning histories a model is trained on, and how often.

A history of one task is given by its episodic returns R_1 … R_K. With R_max, the best episodic return to be had in the
task,

    Improvement = (mean R + (max R − min R)) / (2 R_max)                                             in [0, 1]
    Stability   = 1 + mean{R_{k+1} − R_k : R_{k+1} < R_k} / R_max                                    in [0, 1]
    U           = Improvement + λ Stability                                     λ = 1 in the paper's main results
    P           = (U − min U) / (max U − min U)           over the histories of the task; U may first become
                  softmax(U / α) over them

`filter` sweeps over the task's histories again and again, and takes one whenever a uniform draw is at most its P, until
as many are taken as there were: P = 1 is taken in every sweep, P = 0 never. `reweight` multiplies each history's loss
by P / mean P instead: the same expectation without the draw's variance (ours).

Where the text leaves a case open, ours: a history that never falls has stability 1; where all U are equal P is 1 for
all; returns that are negative or not bounded by R_max are first (R − R_min) / (R_max − R_min).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import DataInvalid, Fault, UsageError

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
Mode = Literal["filter", "reweight"]

# ---------------------------------------------------------------- the equations


def improvement(returns: ArrayLike, r_max: float) -> Floats:
    """(…, K) returns → (…): (mean R + (max R − min R)) / (2 R_max), high for histories that are good and get better."""
    r = np.asarray(returns, np.float64)
    return np.asarray((r.mean(-1) + r.max(-1) - r.min(-1)) / (2 * r_max))


def stability(returns: ArrayLike, r_max: float) -> Floats:
    """(…, K) returns → (…): 1 + (mean of the negative successive differences) / R_max; 1 where none is negative."""
    falls = np.minimum(np.diff(np.asarray(returns, np.float64), axis=-1), 0)
    return np.asarray(1 + falls.sum(-1) / np.maximum((falls < 0).sum(-1), 1) / r_max)


def unified(returns: ArrayLike, r_max: float, stability_weight: float = 1.0) -> Floats:
    """(…, K) returns → (…): U = Improvement + λ Stability."""
    return improvement(returns, r_max) + stability_weight * stability(returns, r_max)


def softened(scores: ArrayLike, temperature: float) -> Floats:
    """(N,) scores U of one task → softmax(U / α), the paper's option; a low α prefers the best more."""
    u = np.asarray(scores, np.float64) / temperature
    share = np.exp(u - u.max())
    return np.asarray(share / share.sum())


def probabilities(scores: ArrayLike) -> Floats:
    """(N,) scores of one task → (N,): (U − min U) / (max U − min U); all 1 where all scores are equal.

    Equal to within rounding: a spread below 1e-12 of the scores' size says nothing.
    """
    u = np.asarray(scores, np.float64)
    spread = u.max() - u.min()
    if spread <= 1e-12 * max(np.abs(u).max(), 1.0):
        return np.ones_like(u)
    return np.asarray((u - u.min()) / spread)


def resample(probability: ArrayLike, random: np.random.Generator) -> Whole:
    """Numbers of the N histories taken, in order, N of them, by sweeps over all. The last sweep is cut where the number
    is reached, as published, so that histories that come early are taken a little more often.

    Draws are in (0, 1], so that P = 1 is always taken and P = 0 never. Raises ValueError where all P are 0.
    """
    p = np.asarray(probability, np.float64)
    if not (p > 0).any():
        raise ValueError("every probability is 0; one above 0 wanted")
    sweeps: list[Whole] = []
    found = 0
    while found < len(p):
        sweeps.append(np.flatnonzero(1 - random.random(len(p)) <= p))
        found += len(sweeps[-1])
    return np.concatenate(sweeps)[: len(p)]


def weights(probability: ArrayLike) -> Floats:
    """(N,) P → (N,): P / mean P, the factor of each history's loss; its mean is 1."""
    p = np.asarray(probability, np.float64)
    return np.asarray(p / p.mean())


# ---------------------------------------------------------------- a whole set of tasks


@dataclass(frozen=True, slots=True)
class Rule:
    """How histories are scored and used.

    `stability_weight` is λ (the paper tries 0, .5, 1, 2, 1000); `temperature` α (.0625 to 1), none = no softmax.
    """

    mode: Mode = "filter"
    stability_weight: float = 1.0
    temperature: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("filter", "reweight"):
            raise UsageError(f"filter.mode: found {self.mode!r}; filter or reweight wanted; correct it")
        if not 0 <= self.stability_weight < np.inf:
            raise UsageError(
                f"filter.stability_weight: found {self.stability_weight}; 0 or more wanted; correct it"
            )
        if self.temperature is not None and not 0 < self.temperature < np.inf:
            raise UsageError(f"filter.temperature: found {self.temperature}; above 0 wanted; correct it")


@dataclass(frozen=True)
class Scores:
    """The N histories of one task. `taken` lists the chosen ones (with `reweight` each that has a weight, once);
    `weight` says how much each counts: how often it is taken, or the factor of its loss."""

    task: str
    returns: list[Floats]
    r_min: float
    r_max: float
    improvement: Floats
    stability: Floats
    unified: Floats
    probability: Floats
    taken: Whole
    weight: Floats
    notes: tuple[str, ...] = ()

    @property
    def multiplicity(self) -> Whole:
        """(N,) how often each history is in the new set."""
        return np.bincount(self.taken, minlength=len(self.returns)).astype(np.int64)

    def rows(self) -> list[dict[str, Any]]:
        """One mapping a history, for a table; `returns` are its episodes' returns."""
        return [
            {
                "task": self.task,
                "history": at,
                "episodes": len(r),
                "mean_return": float(r.mean()),
                "best_return": float(r.max()),
                "improvement": float(self.improvement[at]),
                "stability": float(self.stability[at]),
                "unified": float(self.unified[at]),
                "probability": float(self.probability[at]),
                "multiplicity": int(self.multiplicity[at]),
                "weight": float(self.weight[at]),
                "returns": " ".join(f"{value:g}" for value in r),
            }
            for at, r in enumerate(self.returns)
        ]


def score_task(
    task: str,
    returns: Sequence[ArrayLike],
    rule: Rule,
    random: np.random.Generator,
    *,
    r_max: float | None = None,
    r_min: float | None = None,
) -> Scores:
    """Scores, probabilities and choice for the histories of one task, each (K_l,) returns.

    Without `r_max` the best return found counts as such, without `r_min` 0 does, or the worst return found if that is
    negative; both with a note. Raises `DataInvalid` naming task and history for fewer than two episodes, returns that
    are not finite, and returns outside given bounds.
    """
    checked = _checked(task, returns, r_min, r_max)
    low, high, notes = _bounds(checked, r_min, r_max)
    span = high - low
    if span > 0:
        scaled = [(r - low) / span for r in checked]
        better = np.array([float(improvement(r, 1.0)) for r in scaled])
        steady = np.array([float(stability(r, 1.0)) for r in scaled])
    else:  # no return differs from another: nothing to improve, nothing lost
        better, steady = np.zeros(len(checked)), np.ones(len(checked))
    u = better + rule.stability_weight * steady
    p = probabilities(u if rule.temperature is None else softened(u, rule.temperature))
    if len(p) > 1 and (p == 1).all():
        notes.append("all scores are equal: every history is kept")
    if rule.mode == "filter":
        taken = resample(p, random)
        factor = np.bincount(taken, minlength=len(p)).astype(np.float64)
    else:
        taken, factor = np.flatnonzero(p), weights(p)
    return Scores(task, checked, low, high, better, steady, u, p, taken, factor, tuple(notes))


def score(
    returns: Mapping[str, Sequence[ArrayLike]],
    rule: Rule | None = None,
    seed: int = 0,
    *,
    r_max: Mapping[str, float] | None = None,
    r_min: Mapping[str, float] | None = None,
) -> dict[str, Scores]:
    """`score_task` for every task; a task's draw depends on `seed` and its place only. All faults come at once."""
    if not returns:
        raise DataInvalid([Fault("histories", "no task", "one or more", "collect histories first")])
    chosen, faults, found = rule or Rule(), [], {}
    for at, (task, histories) in enumerate(returns.items()):
        bounds = {"r_max": (r_max or {}).get(task), "r_min": (r_min or {}).get(task)}
        try:
            found[task] = score_task(task, histories, chosen, np.random.default_rng([seed, at]), **bounds)
        except DataInvalid as err:
            faults += err.faults
    if faults:
        raise DataInvalid(faults)
    return found


def _checked(
    task: str, returns: Sequence[ArrayLike], r_min: float | None, r_max: float | None
) -> list[Floats]:
    faults: list[Fault] = []
    if not len(returns):
        faults.append(Fault(f"task {task}", "no history", "one or more", "collect histories first"))
    kept = []
    for at, values in enumerate(returns):
        r, where = np.asarray(values, np.float64), f"task {task}, history {at}"
        if r.ndim != 1 or len(r) < 2:
            found = f"{len(r)} episodes" if r.ndim == 1 else f"returns of {r.ndim} axes"
            faults.append(Fault(where, found, "two episodes or more", "leave it out or collect longer"))
            continue
        if not np.isfinite(r).all():
            first = int(np.flatnonzero(~np.isfinite(r))[0])
            fault = Fault(where, f"return {r[first]} of episode {first}", "finite numbers", "leave it out")
            faults.append(fault)
            continue
        faults += [Fault(where, *said) for said in beyond(r, r_min, r_max)]
        kept.append(r)
    if said := crossed(r_min, r_max):
        faults.append(Fault(f"task {task}", *said))
    if faults:
        raise DataInvalid(faults)
    return kept


def beyond(returns: Floats, r_min: float | None, r_max: float | None) -> list[tuple[str, str, str]]:
    """What is found, wanted and to be mended where `returns` pass a given bound by more than rounding of their sums."""
    slack = 1e-6 * max(abs(r_max or 0.0), abs(r_min or 0.0), 1.0)
    found = []
    if r_max is not None and returns.max() > r_max + slack:
        found.append((returns.max(), "r_max", r_max))
    if r_min is not None and returns.min() < r_min - slack:
        found.append((returns.min(), "r_min", r_min))
    return [
        (f"return {value:g} beyond {name} {bound:g}", "returns within the bounds", f"correct {name}")
        for value, name, bound in found
    ]


def crossed(r_min: float | None, r_max: float | None) -> tuple[str, str, str] | None:
    """What is found, wanted and to be mended where nothing lies between the bounds."""
    low = r_min or 0.0
    if r_max is None or r_max > low:
        return None
    return f"r_max {r_max:g}, r_min {low:g}", "r_max above r_min (0 by default)", "give both"


def _bounds(
    returns: Sequence[Floats], r_min: float | None, r_max: float | None
) -> tuple[float, float, list[str]]:
    worst, best = min(float(r.min()) for r in returns), max(float(r.max()) for r in returns)
    notes = []
    if r_min is None:
        r_min = min(worst, 0.0)
        if r_min < 0:
            notes.append(f"r_min not given: the worst return found, {r_min:g}")
    if r_max is None:
        r_max = best
        notes.append(f"r_max not given: the best return found, {r_max:g}")
    return r_min, r_max, notes
