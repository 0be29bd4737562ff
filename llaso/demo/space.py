"""Writing the folder of a Space of the Hub: the page, its code, its menu and, for a local model, the weights.

The code is copied, not installed, so that the Space runs exactly the code of this machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from string import Template

import llaso
from llaso_common.output_folder import refuse_existing, replaced_folder
from modeling_llaso.loading import checkpoint, load

REQUIREMENTS = ("torch", "transformers", "safetensors", "numpy", "soundfile", "soxr", "matplotlib")
"""Requirements of the page besides gradio, whose version is the Space's `sdk_version`."""
CODE = (
    "llaso/__init__.py",
    "llaso/demo",
    "llaso/transcription",
    "llaso_common",
    "modeling_llaso/__init__.py",
    "modeling_llaso/compatibility_llaso.py",
    "modeling_llaso/configuration_llaso.py",
    "modeling_llaso/loading.py",
    "modeling_llaso/modeling_llaso.py",
    "modeling_llaso/processing_llaso.py",
)
"""Our files and folders that are copied into a Space."""
NOT_COPIED = ("__pycache__", "space.py", "menu_builder.py")
"""Files that a Space does not need."""
REPOSITORY = Path(llaso.__file__).parents[1]
"""The folder that holds our packages."""
PYTHON = "3.11"

APP = Template('''"""$title in the browser; written by `llaso demo --export`."""

from pathlib import Path

import modeling_llaso  # noqa: F401  registers the model with transformers
from llaso.demo.question import DemoModel
from llaso.demo.menu import Menu
from llaso.demo.page import build_page, launch
from modeling_llaso.loading import load

HERE = Path(__file__).parent
MODEL = $model

page = build_page(DemoModel(*load(MODEL)), Menu.read(HERE / "examples"), $title_literal)

if __name__ == "__main__":
    launch(page)
''')
README = Template("""---
title: $title
emoji: 👂
colorFrom: indigo
colorTo: pink
sdk: gradio
sdk_version: $gradio
python_version: "$python"
app_file: app.py
short_description: Ask a speech-language model about speech and sound
${models}---

# $title

Record or upload speech or sound, and ask about it in writing or aloud. The picture shows what the encoder sees.

`app.py` is the page; `llaso/`, `llaso_common/` and `modeling_llaso/` are its code; `examples/` holds the tasks and
examples it offers$weights.
The same page here: `pip install -r requirements.txt gradio==$gradio`, then `python app.py`.
""")


def export(model: str, out: Path, write_menu: Callable[[Path], object], overwrite: bool = False) -> Path:
    """Write a Space.

    Args:
        model: a Hub id, which the Space will load, or a folder, whose checkpoint goes into the Space.
        out: a folder that is new or empty.
        write_menu: writes the menu into a folder.
        overwrite: replace an earlier export in `out`.

    Returns:
        `out`.

    Raises:
        ValueError: the folder is not empty, or not an earlier export, or there is no checkpoint.
    """
    refuse_existing(out, overwrite)
    if overwrite and out.exists() and any(out.iterdir()) and not _is_export(out):
        raise ValueError(f"{out} was not written by `llaso demo --export`, so --overwrite does not replace it")
    named = checkpoint(model)
    local = Path(named).is_dir()
    title = Path(named).resolve().name if local else named
    with replaced_folder(out) as folder:
        _write(folder, named, title, local, write_menu)
    return out


def _is_export(folder: Path) -> bool:
    """Return whether an earlier export wrote the folder."""
    app = folder / "app.py"
    return app.is_file() and "written by `llaso demo --export`" in app.read_text(encoding="utf-8")


def _write(out: Path, named: str, title: str, local: bool, write_menu: Callable[[Path], object]) -> None:
    """Write the files of a Space into an empty folder."""
    if local:
        for part in load(named, "cpu"):
            part.save_pretrained(out / "model")
    (out / "examples").mkdir()
    write_menu(out / "examples")
    for name in CODE:
        code, target = REPOSITORY / name, out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if code.is_dir():
            shutil.copytree(code, target, ignore=shutil.ignore_patterns(*NOT_COPIED))
        else:
            shutil.copyfile(code, target)
    source = 'str(HERE / "model")' if local else repr(named)
    (out / "app.py").write_text(APP.substitute(title=title, title_literal=repr(title), model=source), encoding="utf-8")
    pins = [f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS]
    (out / "requirements.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
    models = "" if local else f"models:\n- {named}\n"
    weights = ", and `model/` the weights" if local else ""
    front = {"title": title, "gradio": version("gradio"), "python": PYTHON, "models": models, "weights": weights}
    (out / "README.md").write_text(README.substitute(front), encoding="utf-8")
