"""Learning-history filtering by hand-made returns."""

from __future__ import annotations

import numpy as np
import pytest

from robotics.icrl import lhf
from shared.errors import DataInvalid, UsageError

RISING = [0.0, 5.0, 10.0, 10.0]
WAVY = [0.0, 10.0, 4.0, 8.0, 6.0]
FLAT = [2.0, 2.0, 2.0, 2.0]


def test_improvement_by_hand() -> None:
    assert lhf.improvement(RISING, 10) == pytest.approx((6.25 + 10) / 20)
    assert lhf.improvement(WAVY, 10) == pytest.approx((5.6 + 10) / 20)
    assert lhf.improvement(FLAT, 10) == pytest.approx(0.1)
    assert lhf.improvement([10.0, 10.0], 10) == pytest.approx(0.5)
    assert lhf.improvement([0.0] + [20.0] * 99999, 20) == pytest.approx(1, abs=1e-4)


def test_stability_by_hand() -> None:
    assert lhf.stability(RISING, 10) == 1
    assert lhf.stability(FLAT, 10) == 1
    assert lhf.stability(WAVY, 10) == pytest.approx(1 + ((-6 - 2) / 2) / 10)
    assert lhf.stability([10.0, 0.0, 10.0, 0.0], 10) == 0


def test_unified_and_probability_by_hand() -> None:
    u = [float(lhf.unified(r, 10)) for r in (RISING, WAVY, FLAT)]
    assert u == pytest.approx([1.8125, 1.38, 1.1])
    assert lhf.probabilities(u) == pytest.approx([1, 0.28 / 0.7125, 0])
    assert float(lhf.unified(WAVY, 10, 2.0)) == pytest.approx(0.78 + 2 * 0.6)
    assert float(lhf.unified(WAVY, 10, 0.0)) == pytest.approx(0.78)


def test_leading_axes_are_histories() -> None:
    r = np.array([[0.0, 10, 5], [5, 5, 5]])
    assert lhf.improvement(r, 10) == pytest.approx([0.75, 0.25])
    assert lhf.stability(r, 10) == pytest.approx([0.5, 1])


def test_softmax_by_hand() -> None:
    soft = lhf.softened([0.0, np.log(3.0) / 2], 0.5)
    assert soft == pytest.approx([0.25, 0.75])
    u = [1.0, 1.5, 2.0]
    plain, sharp = lhf.probabilities(u), lhf.probabilities(lhf.softened(u, 0.0625))
    assert plain[1] == pytest.approx(0.5)
    assert sharp[1] == pytest.approx((np.exp(-8) - np.exp(-16)) / (1 - np.exp(-16)))
    assert np.isfinite(lhf.softened([1e6, 0.0], 0.0625)).all()


def test_the_best_is_taken_every_sweep_and_the_worst_never() -> None:
    taken = lhf.resample(np.tile([1.0, 0.0, 0.5], 1000), np.random.default_rng(0))
    times = np.bincount(taken % 3, minlength=3)
    assert times[1] == 0 and len(taken) == 3000
    assert times[0] == pytest.approx(2000, abs=100)


def times_taken(p: np.ndarray, size: int) -> np.ndarray:
    """How often each is taken until `size` are: exact, from the probabilities of how many there are so far."""
    times, many = np.zeros(len(p)), np.eye(size + 1)[0]
    while many[size] < 1 - 1e-9:
        for at, chance in enumerate(p):
            more = chance * many[:-1]
            times[at] += more.sum()
            many[:-1] -= more
            many[1:] += more
    return times


def test_multiplicity_is_p_over_mean_p() -> None:
    p, many = np.linspace(0, 1, 21), 1000
    times = np.bincount(lhf.resample(np.tile(p, many), np.random.default_rng(1)) % 21, minlength=21)
    expected = p / p.mean()
    deviation = np.sqrt(many * 2 * p * (1 - p)) + 1  # of binomial counts in two sweeps over 1,000 of each
    assert (np.abs(times - many * expected) <= 3 * deviation + 0.01 * many).all()
    # in a set of the old size the last, cut sweep favours early histories
    sets = np.stack(
        [np.bincount(lhf.resample(p, np.random.default_rng(s)), minlength=21) for s in range(200)]
    )
    assert (sets.sum(1) == 21).all()
    assert (np.abs(sets.mean(0) - times_taken(p, 21)) <= 3 * sets.std(0) / 200**0.5 + 1e-9).all()


def test_weights_have_mean_one() -> None:
    w = lhf.weights([0.0, 0.5, 1.0])
    assert w == pytest.approx([0, 1, 2])


def test_noisy_set_loses_its_random_histories() -> None:
    random = np.random.default_rng(0)
    steps = np.linspace(0, 1, 50)
    good = [16 * steps + random.normal(0, 0.5, 50).clip(-1, 1) for _ in range(70)]
    bad = [random.choice([0.0, 1.0], 50, p=[0.85, 0.15]) for _ in range(30)]
    found = lhf.score({"goal": [r.clip(0) for r in good] + bad}, r_max={"goal": 18.0})["goal"]
    assert len(found.taken) == 100
    assert (found.taken >= 70).mean() < 0.05
    assert found.probability[:70].mean() > 0.6 > 0.2 > found.probability[70:].mean()


def test_filter_and_reweight() -> None:
    returns = {"a": [RISING, WAVY, FLAT], "b": [FLAT, RISING]}
    filtered = lhf.score(returns, seed=3)
    assert all(len(s.taken) == len(s.returns) for s in filtered.values())
    assert filtered["a"].weight.sum() == 3
    again = lhf.score(returns, seed=3)
    assert all((filtered[k].taken == again[k].taken).all() for k in returns)
    reweighted = lhf.score(returns, lhf.Rule("reweight"))
    assert reweighted["a"].weight == pytest.approx(lhf.weights([1, 0.28 / 0.7125, 0]))
    assert reweighted["a"].multiplicity.tolist() == [1, 1, 0]


def test_rows_say_everything() -> None:
    row = lhf.score({"a": [RISING, WAVY]}, r_max={"a": 10})["a"].rows()[1]
    assert row["improvement"] == pytest.approx(0.78) and row["stability"] == pytest.approx(0.6)
    assert row["probability"] == 0 and row["multiplicity"] == 0 and row["returns"] == "0 10 4 8 6"


def test_negative_returns_are_scaled_and_noted() -> None:
    shifted = [[value - 10 for value in r] for r in (RISING, WAVY, FLAT)]
    found = lhf.score({"a": shifted}, r_max={"a": 0.0}, r_min={"a": -10.0})["a"]
    assert found.unified == pytest.approx([1.8125, 1.38, 1.1])
    computed = lhf.score({"a": shifted})["a"]
    assert computed.unified == pytest.approx(found.unified)
    assert (computed.r_min, computed.r_max) == (-10, 0) and len(computed.notes) == 2


def test_equal_scores_keep_all() -> None:
    for returns in ([FLAT, FLAT, FLAT], [[0.0, 0.0]] * 3):
        found = lhf.score({"a": returns})["a"]
        assert found.probability.tolist() == [1, 1, 1] and found.taken.tolist() == [0, 1, 2]
        assert any("all scores are equal" in note for note in found.notes)
    assert lhf.score({"a": [RISING]})["a"].taken.tolist() == [0]


@pytest.mark.parametrize(
    ("returns", "said"),
    [
        ([[1.0]], "task g, history 0: 1 episodes; two episodes or more"),
        ([RISING, [0.0, np.nan]], "task g, history 1: return nan of episode 1; finite numbers"),
        ([RISING, [0.0, 21.0]], "task g, history 1: return 21 beyond r_max 20; returns within"),
        ([], "task g: no history"),
        ([[[1.0, 2.0]]], "task g, history 0: returns of 2 axes"),
    ],
)
def test_bad_histories_are_named(returns: list[list[float]], said: str) -> None:
    with pytest.raises(DataInvalid, match=said):
        lhf.score({"g": returns}, r_max={"g": 20.0})


def test_all_faults_come_at_once() -> None:
    with pytest.raises(DataInvalid, match=r"and 2 more") as caught:
        lhf.score({"a": [[1.0], [np.inf, 1.0]], "b": [[2.0]]})
    assert [str(f.source) for f in caught.value.faults] == [
        "task a, history 0",
        "task a, history 1",
        "task b, history 0",
    ]


def test_bounds_that_cannot_be() -> None:
    with pytest.raises(DataInvalid, match="r_max 0, r_min 0; r_max above r_min"):
        lhf.score({"a": [[0.0, 0.0]]}, r_max={"a": 0.0})
    with pytest.raises(DataInvalid, match="no task"):
        lhf.score({})


@pytest.mark.parametrize("wrong", [{"mode": "drop"}, {"stability_weight": -1.0}, {"temperature": 0.0}])
def test_rules_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"filter.{next(iter(wrong))}: found"):
        lhf.Rule(**wrong)  # type: ignore[arg-type]


def test_ragged_histories_are_scored_by_their_own_length() -> None:
    found = lhf.score({"a": [RISING, WAVY[:3]]}, r_max={"a": 10})["a"]
    assert found.improvement[1] == pytest.approx((14 / 3 + 10) / 20)
    assert found.stability[1] == pytest.approx(0.4)
