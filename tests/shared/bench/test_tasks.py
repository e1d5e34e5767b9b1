"""The generated tasks: the same samples everywhere, balanced, and answers that a second way of solving agrees with."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.bench import digits, listops, pathfinder, recall, retrieval
from shared.bench.baselines import baselines
from shared.bench.sample import IGNORED
from shared.bench.tasks import TASKS, Budget, find_task
from shared.errors import UsageError

DIGESTS = {
    "listops-s": "49287685706f2690fa42cd232ac979120174973b532a87e4202c26577ddf523c",
    "pathfinder-16": "4358f2e5ecf48c061090c67c9b12ed531c20415c8ac68831502c947af53e2db8",
    "retrieval-s": "8892d1f2d9799384a2a8ade1191b86a89256085eddc3a7d9e7cb0db0464b59f6",
    "digits-seq": "63b1ed922c6c19ee93b75fe07d5ad69c8670754604ce4adde19fbe8788b7128b",
    "mqar": "24ce4dbfca27bbd3b001147bb24198492c66fc310872894c03b62e330e36e35f",
    "selective-copy": "df3a0bd48199337feb7f8db10f61f514e1096c40fb2c676fb6529c9f33fe303e",
    "selective-copy-64": "e92fa74d05ce1550eafe73037dc85bdf6997a4f01e0bda466175c47762128433",
}
SOME = 300


@pytest.mark.parametrize("name", TASKS)
def test_the_first_thousand_samples_are_the_stored_ones(name: str) -> None:
    split = TASKS[name].split(0, 1000)
    assert split.digest() == DIGESTS[name]
    few = TASKS[name].make(100, 0)
    np.testing.assert_array_equal(few.x, split.x[:100])
    np.testing.assert_array_equal(few.y, split.y[:100])


@pytest.mark.parametrize("name", TASKS)
def test_test_samples_are_others_and_inputs_fit_the_task(name: str) -> None:
    task = TASKS[name]
    train, test = task.split(0, 1000), task.split(1, 200)
    assert train.x.shape[-1] == test.x.shape[-1] == task.length
    known = {row.tobytes() for row in train.x}
    assert sum(row.tobytes() in known for row in test.x) <= 2
    asked = train.y[train.y != IGNORED]
    assert asked.min() == 0 and asked.max() == task.classes - 1
    if task.vocabulary:
        assert train.x.min() >= 0 and train.x.max() < task.vocabulary
    shares = np.bincount(asked, minlength=task.classes) / len(asked)
    assert shares.min() > 0.7 / task.classes and shares.max() < 1.4 / task.classes


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(UsageError, match="one of listops-s"):
        find_task("text")


# ---------------------------------------------------------------- answers, the other way


def test_listops_answers_agree_with_a_stack_machine() -> None:
    split = listops.make(SOME, 3)
    names = {token: str(token - 1) for token in range(1, 11)}
    names |= {11: "[MIN", 12: "[MAX", 13: "[MED", 14: "[SM", 15: "]"}
    functions = {
        "[MIN": min,
        "[MAX": max,
        "[MED": lambda v: int(statistics.median(v)),
        "[SM": lambda v: sum(v) % 10,
    }
    seen = set()
    for tokens, answer in zip(split.x, split.y):
        used = tokens[tokens > 0]
        assert 32 <= len(used) <= 128 and (tokens[len(used) :] == 0).all()
        stack: list[tuple[str, list[int]]] = [("", [])]
        deepest = 0
        for word in (names[int(token)] for token in used):
            if word == "]":
                operator, arguments = stack.pop()
                assert 2 <= len(arguments) <= 5
                seen.add(operator)
                stack[-1][1].append(functions[operator](arguments))
            elif word.startswith("["):
                stack.append((word, []))
                deepest = max(deepest, len(stack) - 1)
            else:
                stack[-1][1].append(int(word))
        assert stack == [("", [answer])] and deepest <= 4  # the fifth level holds digits only
    assert seen == set(functions)


def reachable(image: NDArray[np.float32], start: tuple[int, int]) -> set[tuple[int, int]]:
    """Drawn pixels that steps of at most two rows and columns lead to."""
    drawn = {(int(r), int(c)) for r, c in np.argwhere(image > 0)}
    found, edge = {start}, [start]
    while edge:
        row, column = edge.pop()
        near = {p for p in drawn - found if abs(p[0] - row) <= 2 and abs(p[1] - column) <= 2}
        found |= near
        edge += near
    return found


def test_pathfinder_dots_are_joined_exactly_in_class_one() -> None:
    split = pathfinder.make(SOME, 3)
    for row, joined in zip(split.x, split.y):
        image = row.reshape(16, 16)
        dots = [(int(r), int(c)) for r, c in np.argwhere(image == pathfinder.DOT)]
        assert len(dots) == 2
        assert (dots[1] in reachable(image, dots[0])) == bool(joined)


def test_pathfinder_images_of_both_classes_have_as_many_pixels() -> None:
    split = TASKS["pathfinder-16"].split(0, 1000)
    ink = [(split.x[split.y == joined] > 0).sum(1) for joined in (0, 1)]
    error = np.hypot(*(i.std() / len(i) ** 0.5 for i in ink))
    assert abs(ink[0].mean() - ink[1].mean()) < 3 * error


def test_retrieval_pairs_share_a_key_exactly_in_class_one() -> None:
    split = retrieval.make(SOME, 3)
    for pair, shared in zip(split.x, split.y):
        texts = ["".join(chr(97 + token) for token in string) for string in pair]
        keys = [
            {text[at : at + 4] for at in range(len(text) - 3) if set(text[at : at + 4]) == set("abcd")}
            for text in texts
        ]
        assert len(keys[0]) == len(keys[1]) == 3
        assert len(keys[0] & keys[1]) == int(shared)
        assert all(text.count(letter) == 3 for text in texts for letter in "abcd")


def test_recall_answers_are_the_values_that_came_with_the_keys() -> None:
    split = recall.mqar(SOME, 3, length=64, pairs=4)
    late = []
    for tokens, answers in zip(split.x, split.y):
        table = dict(zip(tokens[0:8:2].tolist(), tokens[1:8:2].tolist()))
        asked = np.flatnonzero(answers != IGNORED)
        assert len(table) == len(asked) == 4 and asked.min() >= 8
        assert {int(t) for t in tokens[asked]} == set(table)
        assert [table[int(t)] - 32 for t in tokens[asked]] == answers[asked].tolist()
        assert (np.delete(tokens[8:], asked - 8) == 0).all()
        late += asked.tolist()
    # The power law puts questions early: far more in the first half of the room than in the second.
    assert np.mean(np.array(late) < 36) > 0.7


def test_copied_letters_come_in_order() -> None:
    split = recall.selective_copy(SOME, 3)
    for tokens, answers in zip(split.x, split.y):
        letters = [int(token) - 2 for token in tokens[:240] if token > 1]
        assert len(letters) == 16 and answers[240:].tolist() == letters
        assert (tokens[240:] == 1).all() and (answers[:240] == IGNORED).all()


def test_digits_are_split_once_and_enlarged_by_repeating() -> None:
    small, large = digits.make(50, 0), digits.make(50, 0, side=32)
    assert len(digits.make(5000, 0)) == 1257 and len(digits.make(5000, 1)) == 540
    corner = large.x.reshape(50, 32, 32)[:, ::4, ::4]
    np.testing.assert_array_equal(corner.reshape(50, 64), small.x)
    assert large.x.mean() == pytest.approx(small.x.mean(), rel=1e-6)


def test_a_bag_of_tokens_is_blind_where_it_has_to_be() -> None:
    for name in ("pathfinder-16", "retrieval-s"):
        found = baselines(TASKS[name], Budget(1500, 500, 1))
        assert found["majority"] == pytest.approx(0.5, abs=0.01)
        assert abs(found["bag"] - 0.5) < 0.07
    copied = baselines(TASKS["selective-copy"], Budget(500, 200, 1))
    assert 1 / 14 < copied["bag"] < 0.3  # the commonest letter
