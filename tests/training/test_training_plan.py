"""Batches are planned before audio is read: complete, repeatable from any step, the same on several processes."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.padding import realistic_lengths, shares, shuffled_in_buffer
from llaso.training.rows.batch_plan import (
    BatchRule,
    Plan,
    shuffled_windows,
    steps_per_epoch,
    stream_windows,
)

lengths_lists = st.lists(st.integers(1, 400), min_size=4, max_size=120)
rules = st.builds(
    BatchRule,
    per_device=st.integers(1, 5),
    max_tokens=st.sampled_from([0, 300, 900]),
    group_by_length=st.booleans(),
    window=st.integers(1, 6),
    parallel=st.just(2),
    packing=st.booleans(),
)


def epoch_of(lengths: list[int], rule: BatchRule, seed: int) -> list[list[list[tuple[int, int]]]]:
    windows = shuffled_windows(lengths, rule, seed)
    return list(itertools.islice(Plan(windows, rule, 0, seed).global_steps(), steps_per_epoch(windows, rule, seed)))


@settings(max_examples=60, deadline=None)
@given(lengths_lists, rules, st.integers(0, 5))
def test_an_epoch_holds_every_row_once_within_the_rules(lengths, rule, seed):
    steps = epoch_of(lengths, rule, seed)
    rows = [row for step in steps for batch in step for row, _ in batch]
    left_out = set(range(len(lengths))) - set(rows)
    assert len(rows) == len(set(rows))
    assert len(left_out) < rule.parallel  # only a remainder that cannot be shared out waits for the next epoch
    for step in steps:
        assert len(step) == rule.parallel
        for batch in step:
            assert 1 <= len(batch) <= rule.per_device
            assert all(length == lengths[row] for row, length in batch)
            assert not rule.max_tokens or len(batch) == 1 or rule.computed_tokens(batch) <= rule.max_tokens


@settings(max_examples=40, deadline=None)
@given(lengths_lists, rules, st.integers(0, 3), st.integers(0, 9))
def test_a_resumed_plan_is_the_rest_of_the_plan(lengths, rule, seed, start):
    windows = shuffled_windows(lengths, rule, seed)
    whole = list(Plan(windows, rule, 12, seed))
    rest = list(Plan(windows, rule, 12, seed, start_step=start))
    assert rest == whole[start * rule.parallel :]
    assert len(whole) == len(Plan(windows, rule, 12, seed)) == 12 * rule.parallel


@settings(max_examples=40, deadline=None)
@given(lengths_lists, rules, st.integers(0, 3))
def test_two_processes_share_the_steps_of_one(lengths, rule, seed):
    windows = shuffled_windows(lengths, rule, seed)
    one = list(Plan(windows, rule, 6, seed))
    two = [list(Plan(windows, rule, 6, seed, rank=rank, world=2)) for rank in range(2)]
    for step in range(6):
        shared = [batch for rank in two for batch in rank[step : step + 1]]
        assert sorted(map(sorted, shared)) == sorted(map(sorted, one[2 * step : 2 * step + 2]))


def test_a_stream_gives_its_rows_in_windows_and_starts_anew_each_epoch():
    rule = BatchRule(per_device=2, window=3, parallel=2)
    seen = []

    def stream(epoch: int) -> list[str]:
        seen.append(epoch)
        return [f"{epoch}:{number}" for number in range(10)]

    plan = Plan(stream_windows(stream, len, rule), rule, steps=7, seed=0)
    batches = list(plan)
    assert len(batches) == 14 and seen == [0, 1, 2]
    first_epoch = sorted(row for batch in batches for row in batch if row.startswith("0:"))
    assert first_epoch == sorted(f"0:{number}" for number in range(10))


def test_batching_by_length_wastes_little_where_random_batches_waste_half():
    found = shares(realistic_lengths())
    assert found["8 rows, at random"] > 0.5
    assert found["8 rows, by length"] < 0.04
    assert found["8 rows, by length, streamed"] < 0.04
    assert found["4000 tokens, by length"] < 0.01


def test_a_shuffle_buffer_lets_every_row_out_once():
    rows = list(range(5000))
    out = list(shuffled_in_buffer(rows, seed=0, size=100))
    assert sorted(out) == rows and out[:100] != rows[:100]
