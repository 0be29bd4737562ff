"""Lets a chat model write chats, for a corpus of rows without audio where there are no chats at hand.

Given only the beginning of a user's turn, a chat model writes what a user might ask (Magpie, arXiv 2406.08464); then
it answers. Mixed into training, its own answers are to keep a language model as it is. The output is a file for
`llaso data import-chats`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llaso_common.folder_lock import one_at_a_time
from llaso_common.output_folder import refuse_existing_file

TOGETHER = 64
"""Chats that are begun together."""
PROMPT_TOKENS, ANSWER_TOKENS = 40, 80
"""Tokens at most of a prompt, which is dropped if it is longer, and of an answer, which then ends with a sentence."""
PROMPTS = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 0}
ANSWERS = {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "top_k": 0}
"""How each is drawn: prompts should differ, answers should be good."""
FEWEST_CHARACTERS = 8
"""Shortest prompt that is kept, in characters."""
FRUITLESS = 20
"""Batches in a row without a new chat before an error."""
SURE = len('{"llm": "x')
"""Fewest bytes by which a last line without its end is known as one of this command."""
MARK = "\u241f"
"""Stands for a turn's content while the chat template is taken apart."""


def write_chats(
    llm: str,
    out: Path,
    chats: int,
    *,
    seed: int = 0,
    device: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[int, int]:
    """Write chats of one prompt and one answer, as JSON lines with `messages`; goes on where an earlier call stopped.

    Prompts and answers are drawn by `seed`. The same model, seed and library versions on the same device give the same
    file, however often it was stopped.

    Args:
        llm: folder or Hub id of a causal language model with a chat template.
        out: the `.jsonl` file to write.
        chats: how many to write.
        seed: of the drawing.
        device: by default the GPU if there is one.
        overwrite: begin anew if the file is there.
        progress: called after each batch with the chats written and `chats`.
        report: takes a line if another process writes into the same folder and is waited for.

    Returns:
        The chats in the file, and how many of them are from an earlier call.

    Raises:
        ValueError: there is no such model, it has no chat template, it writes no chats, or `out` has another
            ending or holds something else.
    """
    local = Path(llm).expanduser()
    # Only for folders, devices and the model's own files: `_kept` checks the content of others.
    refuse_existing_file(out, overwrite=True, inputs=local.iterdir() if local.is_dir() else ())
    origin = {"llm": str(local) if local.is_dir() else llm, "seed": seed}
    with one_at_a_time(out.parent, report):
        rows = [] if overwrite else _kept(out, origin, chats)
        there = len(rows)
        progress(min(there, chats), chats)
        if there >= chats:
            return there, there
        if out.suffix not in (".jsonl", ".json"):  # `import-chats` knows JSON lines in both
            raise ValueError(f"{out} is to hold chats as JSON lines; name a file that ends in .jsonl")
        model = ChatModel(llm, device)
        mode = "w" if overwrite else "a"
        seen = {row["messages"][0]["content"] for row in rows}
        batch, fruitless = rows[-1]["batch"] + 1 if rows else 0, 0
        while len(rows) < chats:
            found = []
            for prompt, answer in model.chats(seed, batch):
                if prompt not in seen:
                    seen.add(prompt)
                    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
                    found.append({**origin, "batch": batch, "messages": messages})
            fruitless = 0 if found else fruitless + 1
            if fruitless == FRUITLESS:
                raise ValueError(
                    f"{llm}: {FRUITLESS * TOGETHER:,} attempts gave no new chat; try another --seed or a larger chat "
                    "model"
                )
            found = found[: chats - len(rows)]
            if found:
                with out.open(mode, encoding="utf-8") as file:
                    file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
                mode = "a"
            rows += found
            batch += 1
            progress(len(rows), chats)
        return len(rows), there


def _kept(out: Path, origin: dict[str, Any], chats: int) -> list[dict[str, Any]]:
    """Return the chats of an earlier call, and cut off what is not whole.

    That is a last line without its end and, unless there are enough chats, the last batch.

    Raises:
        ValueError: the file holds something else.
    """
    if not out.exists():
        return []
    lines = out.read_bytes().splitlines(keepends=True)
    torn = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
    rows = [_row(line, origin) for line in lines]
    ours = [row for row in rows if row is not None]
    in_order = all(one["batch"] <= next_["batch"] for one, next_ in itertools.pairwise(ours))
    begins = json.dumps(origin, ensure_ascii=False)[:-1].encode()  # how each line does, also a torn one
    if len(ours) < len(rows) or not in_order or torn[: len(begins)] != begins[: len(torn)] or 0 < len(torn) < SURE:
        raise ValueError(
            f"{out} exists and is not from this model and seed. Choose another file, or replace it with --overwrite"
        )
    if len(ours) < chats:
        ours = [row for row in ours if row["batch"] < ours[-1]["batch"]]
    with out.open("r+b") as file:
        file.truncate(sum(map(len, lines[: len(ours)])))
    return ours


def _row(line: bytes, origin: dict[str, Any]) -> dict[str, Any] | None:
    """Read one line; return None if it is no chat of this model and seed."""
    try:
        row = json.loads(line)
        is_ours = {name: row[name] for name in origin} == origin and isinstance(row["batch"], int)
        return row if is_ours and isinstance(row["messages"][0]["content"], str) else None
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


class ChatModel:
    """A causal language model that writes both sides of a chat.

    Args:
        llm: its folder or Hub id.
        device: by default the GPU if there is one.

    Raises:
        ValueError: there is no such model, or it has no chat template that says where a turn ends.
    """

    def __init__(self, llm: str, device: str | None = None) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        local = Path(llm).expanduser()
        where = str(local) if local.is_dir() else llm
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(where, padding_side="left")
            model: Any = AutoModelForCausalLM.from_pretrained(where, dtype="auto")
        except (OSError, ValueError) as error:
            said = str(error).strip().split("\n")[0]
            raise ValueError(
                f"{llm}: neither a language model's folder here nor one that can be fetched ({said}); check the name"
            ) from error
        if self.tokenizer.chat_template is None:
            raise ValueError(f"{llm}: its tokenizer has no chat template; name a chat model")
        self.opened, _, rest = self._rendered(MARK).partition(MARK)
        closing = self.tokenizer(rest, add_special_tokens=False)["input_ids"][:1]
        if not set(closing) & set(self.tokenizer.added_tokens_decoder):
            raise ValueError(f"{llm}: its chat template has no token that ends a user's turn; choose another model")
        self.ends = {*closing, self.tokenizer.eos_token_id} - {None}
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.convert_ids_to_tokens(closing[0])
        self.model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()

    def chats(self, seed: int, batch: int) -> list[tuple[str, str]]:
        """Write prompts and their answers, drawn by the seed and the number of the batch."""
        import torch

        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(seed * 1_000_003 + batch)
            written = self._continued([self.opened] * TOGETHER, PROMPT_TOKENS, PROMPTS)
            prompts = [text for text, ended in written if ended and len(text) >= FEWEST_CHARACTERS]
            if not prompts:
                return []
            asked = [self._rendered(prompt, add_generation_prompt=True) for prompt in prompts]
            answers = self._continued(asked, ANSWER_TOKENS, ANSWERS)
        pairs = zip(prompts, (text if ended else _sentences(text) for text, ended in answers), strict=True)
        return [(prompt, answer) for prompt, answer in pairs if answer]

    def _rendered(self, prompt: str, add_generation_prompt: bool = False) -> str:
        turn = [{"role": "user", "content": prompt}]
        how = {"add_generation_prompt": add_generation_prompt, "enable_thinking": False}  # the latter for Qwen 3
        return self.tokenizer.apply_chat_template(turn, tokenize=False, **how)

    def _continued(self, texts: Sequence[str], tokens: int, how: dict[str, Any]) -> list[tuple[str, bool]]:
        """Continue each text; return what was written, and whether the model ended its turn."""
        given = self.tokenizer(list(texts), add_special_tokens=False, padding=True, return_tensors="pt")
        written = self.model.generate(
            input_ids=given["input_ids"].to(self.model.device),
            attention_mask=given["attention_mask"].to(self.model.device),
            max_new_tokens=tokens,
            eos_token_id=sorted(self.ends),
            pad_token_id=self.tokenizer.pad_token_id,
            **how,
        )[:, given["input_ids"].shape[1] :].tolist()
        return [self._read(ids) for ids in written]

    def _read(self, ids: list[int]) -> tuple[str, bool]:
        end = next((place for place, token in enumerate(ids) if token in self.ends), None)
        return self.tokenizer.decode(ids[:end], skip_special_tokens=True).strip(), end is not None


def _sentences(text: str) -> str:
    """Return the whole sentences at the beginning of a text; a number with a dot, as in a list, ends none."""
    ends = [found.end() for found in re.finditer(r"(?<!\d)[.!?][\"'”’)]*(?=\s|$)|[。！？]", text)]
    return text[: ends[-1]] if ends else ""
