"""Write the golden beside this file: what our model makes of a drawn checkpoint. README.md says when to run it.

python tests/model/golden/make_golden.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from safetensors.torch import save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from support.golden_model import (  # noqa: E402
    CASES,
    measure_answer,
    measure_training,
    read_recordings,
    write_checkpoint,
    write_recordings,
)

from modeling_llaso.conversion import from_official  # noqa: E402


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model, processor = from_official(write_checkpoint(Path(folder) / "checkpoint"))
        clips = read_recordings(write_recordings(Path(folder) / "recordings"))
        measured = {case: measure_answer(model, processor, clips, case) for case in CASES}
        measured["training"] = measure_training(model, processor, clips)
    tensors = {
        f"{case}/{name}": value.contiguous() for case, (found, _) in measured.items() for name, value in found.items()
    }
    save_file(tensors, HERE / "expected.safetensors")
    records = ",\n".join(f"{json.dumps(case)}: {json.dumps(found)}" for case, (_, found) in measured.items())
    (HERE / "expected.json").write_text("{\n" + records + "\n}\n", encoding="utf-8")
    print(f"{len(tensors)} tensors of {len(measured)} cases in {HERE}")


if __name__ == "__main__":
    main()
