"""Batches are planned before audio is read: complete, found from any step, the same on several processes."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.padding import realistic_lengths, shares
from llaso.training.rows.batch_plan import BatchRule, Plan, RowGroups

rules = st.builds(
    BatchRule,
    per_device=st.integers(1, 5),
    max_tokens=st.sampled_from([0, 300, 900]),
    group_by_length=st.booleans(),
    window=st.integers(1, 6),
    parallel=st.sampled_from([1, 2, 4, 6]),
    packing=st.booleans(),
)


@st.composite
def row_groups(draw: st.DrawFn) -> RowGroups:
    """Row groups of 1 to 20 rows; the last ones may be drawn from."""
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=12))
    if sum(sizes) < 6:
        sizes.append(6)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    lengths = np.random.default_rng(draw(st.integers(0, 99))).integers(1, 400, starts[-1])
    border = draw(st.integers(1, len(sizes)))
    if border == len(sizes) or starts[border] < 6:
        return RowGroups(lengths, starts)
    return RowGroups(lengths, starts, border, draw(st.integers(0, int(starts[-1] - starts[border]))))


def epoch_of(plan: Plan, number: int = 0) -> list[list[list[int]]]:
    return [[batch.tolist() for batch in step] for step in plan.epoch(number)]


@settings(max_examples=120, deadline=None)
@given(row_groups(), rules, st.integers(0, 5))
def test_an_epoch_holds_every_row_once_within_the_rules(groups, rule, seed):
    plan = Plan(groups, rule, seed)
    steps = epoch_of(plan)
    rows = Counter(row for step in steps for batch in step for row in batch)
    assert set(rows.values()) == {1}
    always, drawn = (sum((row < groups.always) == side for row in rows) for side in (True, False))
    assert plan.rows == groups.always + groups.drawn
    # Only a remainder that cannot be shared out waits for the next epoch.
    assert plan.rows - rule.parallel < always + drawn <= plan.rows and drawn <= groups.drawn
    assert len(steps) == plan.epoch_steps()
    for step in steps:
        assert len(step) == rule.parallel
        for batch in step:
            assert 1 <= len(batch) <= rule.per_device
            computed = rule.computed_tokens(groups.lengths[batch])
            assert not rule.max_tokens or len(batch) == 1 or computed <= rule.max_tokens
    if not rule.max_tokens:  # only where an epoch ends is a micro-batch smaller
        smaller = [step for step in steps if any(len(batch) < rule.per_device for batch in step)]
        assert len(smaller) <= 1
    assert epoch_of(Plan(groups, rule, seed)) == steps
    assert sum(map(sum, itertools.chain(*steps))) == sum(rows)


@settings(max_examples=60, deadline=None)
@given(row_groups(), rules, st.integers(0, 3), st.integers(0, 40))
def test_a_step_is_found_by_its_number(groups, rule, seed, number):
    plan = Plan(groups, rule, seed)
    whole = itertools.chain.from_iterable(epoch_of(plan, epoch) for epoch in itertools.count())
    want = next(itertools.islice(whole, number, None))
    epoch, window, first = next(Plan(groups, rule, seed).windows_from(number))
    assert [batch.tolist() for batch in plan.steps(epoch, window)[first]] == want


def test_epochs_and_seeds_differ():
    groups = RowGroups(np.arange(1, 201), np.arange(0, 201, 20))
    first, second = (epoch_of(Plan(groups, BatchRule(4), 0), epoch) for epoch in (0, 1))
    assert first != second and first != epoch_of(Plan(groups, BatchRule(4), 1))


def test_a_window_mixes_row_groups_and_an_epoch_their_order():
    """Rows of one file would otherwise meet in one batch, and files follow one another as they lie."""
    groups = RowGroups(np.ones(2000, dtype=int), np.arange(0, 2001, 20))
    steps = epoch_of(Plan(groups, BatchRule(per_device=8, window=16), 0))
    window = [{row // 20 for batch in step for row in batch} for step in steps[:16]]
    assert np.mean([len(of_step) for of_step in window]) > 4
    order = list(dict.fromkeys(row // 20 for step in steps for batch in step for row in batch))
    assert len(order) == 100 and np.abs(np.diff(order)).mean() > 20


def test_micro_batches_of_a_step_are_of_similar_size():
    """Processes wait for the slowest; lanes would otherwise be anywhere in their order of length."""
    lengths = np.random.default_rng(1).permutation(realistic_lengths(8192))
    groups = RowGroups(lengths, np.arange(0, 8193, 64))
    plan = Plan(groups, BatchRule(8, parallel=8), 0)
    sizes = np.array([[plan.rule.computed_tokens(lengths[batch]) for batch in step] for step in plan.epoch(0)])
    assert (sizes.max(1) / sizes.mean(1)).mean() < 1.15
    mixed = np.random.default_rng(0).permutation(sizes.ravel()).reshape(sizes.shape)
    assert (mixed.max(1) / mixed.mean(1)).mean() > 2


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 200), st.sampled_from([1, 2, 4, 8]), st.integers(0, 9))
def test_processes_share_the_row_groups(number, world, seed):
    """Each reads neighbouring groups: together at most one group a border between two of them twice."""
    groups = RowGroups(np.ones(number * 10, dtype=int), np.arange(0, number * 10 + 1, 10))
    plan = Plan(groups, BatchRule(per_device=2, window=4, parallel=8), seed)
    lanes = 8 // world
    read = [
        {int(row) // 10 for step in plan.epoch(0) for batch in step[rank * lanes :][:lanes] for row in batch}
        for rank in range(world)
    ]
    assert sum(map(len, read)) <= number + world - 1
    assert max(map(len, read)) < number / world + 2


def test_too_few_rows_for_a_step_are_told():
    with pytest.raises(ValueError, match="admits 3 rows, fewer than the 4 micro-batches of one step"):
        Plan(RowGroups(np.ones(3), np.array([0, 3])), BatchRule(1, parallel=4), 0)


def test_batching_by_length_wastes_little_where_random_batches_waste_half():
    found = shares(realistic_lengths())
    assert found["8 rows, at random"] > 0.5
    assert found["8 rows, by length"] < 0.04
    assert found["4000 tokens, by length"] < 0.01
