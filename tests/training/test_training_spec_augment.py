"""SpecAugment hides what the recipe says, the same in a resumed run, and packed as padded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_training import curve, interrupted_after, row, save_backbones, save_corpus, tiny_recipe

from llaso.training.recipe.recipe import SpecAugmentChoice, load_recipe
from llaso.training.run.spec_augment import hide_stretches
from llaso.training.run.train import train

HIDDEN = {"time_masks_per_second": 2.0, "mel_masks": 1, "mel_mask_share": 0.25}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spec_augment")
    save_backbones(folder)
    rows = [row(i) for i in range(24)]
    save_corpus(folder / "corpus", {"train": rows, "validation": rows[:2]})
    return folder


def run(root: Path, out: Path, **changes) -> list:
    recipe = tiny_recipe(root, "unused", train=["projector"], **changes) | {"out": str(out)}
    train(recipe)
    return curve(out)


@given(
    frames=st.integers(1, 400),
    per_second=st.floats(0, 8),
    seconds=st.floats(0.01, 1.0),
    bands=st.integers(0, 3),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_only_stretches_and_bands_of_the_size_asked_for_become_0(frames, per_second, seconds, bands, share, seed):
    window = torch.ones(16, frames)
    choice = SpecAugmentChoice(per_second, seconds, bands, share)
    hide_stretches([window], choice, torch.Generator().manual_seed(seed))
    assert set(window.unique().tolist()) <= {0.0, 1.0}
    columns, rows = (window == 0).all(0), (window == 0).all(1)
    assert torch.equal(window == 0, columns[None] | rows[:, None])
    expected = per_second * frames / 100
    if not rows.all():
        assert int(columns.sum()) <= (int(expected) + 1) * round(seconds * 100)
    if not columns.all():
        assert int(rows.sum()) <= bands * round(share * 16)
    again = torch.ones(16, frames)
    hide_stretches([again], choice, torch.Generator().manual_seed(seed))
    assert torch.equal(again, window)


def test_the_share_of_time_that_is_hidden_is_the_mean_of_the_widths():
    windows = [torch.ones(8, 1000) for _ in range(200)]
    hide_stretches(
        windows, SpecAugmentChoice(time_masks_per_second=0.5, time_mask_seconds=0.2), torch.Generator().manual_seed(0)
    )
    hidden = torch.stack(windows).eq(0).float().mean()
    assert 0.04 < hidden < 0.055  # five stretches of 0.1 s in the mean in ten seconds, some of which overlap


def test_a_run_hides_and_a_resumed_one_hides_the_same(root, tmp_path):
    plain, hidden = run(root, tmp_path / "plain"), run(root, tmp_path / "hidden", spec_augment=HIDDEN)
    assert [step[1] for step in plain] != [step[1] for step in hidden]
    with interrupted_after(4):
        run(root, tmp_path / "resumed", spec_augment=HIDDEN)
    assert run(root, tmp_path / "resumed", spec_augment=HIDDEN) == hidden


def test_packed_rows_are_hidden_as_padded_ones(root, tmp_path):
    padded = run(root, tmp_path / "padded", spec_augment=HIDDEN)
    packed = run(root, tmp_path / "packed", spec_augment=HIDDEN, batch__packing=True)
    assert [step[1] for step in packed] == pytest.approx([step[1] for step in padded], rel=1e-5)


def test_kept_encoder_output_is_refused(root):
    with pytest.raises(ValueError, match="`spec_augment` hides other parts of them in each step; set compute.enc"):
        load_recipe(tiny_recipe(root, "unused", compute__encoder_cache_gb=1, spec_augment=HIDDEN))
