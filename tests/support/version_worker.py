"""Saves a tiny checkpoint with its answers under one version of transformers, or checks that of another version.

`save FOLDER` writes model, processor and `expected.pt`; `check FOLDER` opens them with the installed package,
`check-own-code FOLDER` with the checkpoint's own files, without the package.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

MODES = ("trim", "full")


def answers(model: Any, processor: Any, clips: list[Any]) -> dict[str, torch.Tensor]:
    """Return what has to be equal: ids, mel, the mask of learned tokens, logits, loss and generated ids."""
    asked = [
        [{"role": "user", "content": [{"type": "text", "text": text}, {"type": "audio"}]}]
        for text in ("Who?", "Which word is said twice here?")
    ]
    learned = [[*one, {"role": "assistant", "content": "It is spring."}] for one in asked]
    inputs = processor.apply_chat_template(
        asked, audio=clips, tokenize=True, return_dict=True, add_generation_prompt=True
    )
    trained = processor.apply_chat_template(
        learned, audio=clips, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    mask = trained.pop("assistant_masks")
    with torch.no_grad():
        generated = model.generate(**inputs, max_new_tokens=8)
        logits = model(**inputs).logits
        model.train()
        loss = model(**trained, labels=trained["input_ids"].masked_fill(mask == 0, -100)).loss
        model.eval()
    return {**inputs, "assistant_masks": mask, "generated": generated, "logits": logits, "loss": loss}


def save(folder: Path) -> None:
    from support.tiny_llaso import tiny_llaso, tone

    clips = [tone(0.4), tone(1.2)]
    for mode in MODES:
        model, processor = tiny_llaso(mode)
        model.save_pretrained(folder / mode)
        processor.save_pretrained(folder / mode)
        torch.save({"clips": clips, **answers(model, processor, clips)}, folder / mode / "expected.pt")


def check(folder: Path, **how: Any) -> None:
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    for mode in MODES:
        expected = torch.load(folder / mode / "expected.pt", weights_only=False)
        model = AutoModelForMultimodalLM.from_pretrained(folder / mode, **how)
        processor = AutoProcessor.from_pretrained(folder / mode, **how)
        assert type(model).__module__.startswith("transformers_modules" if how else "modeling_llaso")
        clips = expected.pop("clips")
        for name, got in answers(model, processor, clips).items():
            if expected[name].is_floating_point():
                torch.testing.assert_close(got, expected[name], atol=1e-4, rtol=1e-5, msg=f"{mode}: {name}")
            else:
                assert torch.equal(got, expected[name]), f"{mode}: {name}"


if __name__ == "__main__":
    command, path = sys.argv[1], Path(sys.argv[2])
    if command == "save":
        save(path)
    elif command == "check":
        import modeling_llaso  # noqa: F401  registers the classes

        check(path)
    else:
        assert command == "check-own-code"
        sys.modules["modeling_llaso"] = None  # type: ignore[assignment]  # importing it now fails
        check(path, trust_remote_code=True)
