"""The frozen panel of systems that the `panel` score is measured against.

A panel file holds each system's ranking metric by task, and where every value came from. It is built by
`llaso eval panel build` from folders of answers (or from a table of values if the answers are not at hand) and
never edited; a new system never moves the scores of the old ones, a new panel is a new version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from .metrics import METRICS

SHIPPED = {"paper": ("panel_paper.json",), "strict": ("panel_strict.json", "panel_strict_1.json")}
"""Shipped panels by protocol, the current one first; earlier ones are chosen by name, to score as before."""


@dataclass(frozen=True)
class Panel:
    """A panel file.

    `values` is system -> task -> ranking metric; `by_modality` the same within one modality format, if the
    answers were at hand.
    """

    name: str
    version: int
    protocol: str
    metrics: dict[str, str]
    values: dict[str, dict[str, float]]
    by_modality: dict[str, dict[str, dict[str, float]]]
    provenance: dict[str, Any]

    def bounds(self, modality: str | None = None) -> dict[str, tuple[float, float]]:
        """Return the panel's (worst, best) by task; tasks on which all its systems agree have none."""
        systems = self.values.values() if modality is None else self.by_modality.get(modality, {}).values()
        bounds = {}
        for task in self.metrics:
            found = [values[task] for values in systems if task in values]
            if len(found) > 1 and min(found) < max(found):
                lower = METRICS[self.metrics[task]].better == "lower"
                bounds[task] = (max(found), min(found)) if lower else (min(found), max(found))
        return bounds

    def normalized(self) -> dict[str, dict[str, float]]:
        """Return every panel system's own min-max values by task."""
        bounds = self.bounds()
        return {
            system: {
                task: (value - bounds[task][0]) / (bounds[task][1] - bounds[task][0])
                for task, value in values.items()
                if task in bounds
            }
            for system, values in self.values.items()
        }


def parse_panel(content: Any, where: str) -> Panel:
    """Check and read the content of a panel file.

    Raises:
        ValueError: it is not a panel; the message names the field.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}: a panel file holds one object")
    missing = [
        key for key in ("name", "version", "protocol", "metrics", "systems", "provenance") if key not in content
    ]
    if missing:
        raise ValueError(
            f"{where}: not a panel file, no {', '.join(missing)}; build one with `llaso eval panel build`"
        )
    if content["protocol"] not in SHIPPED:
        raise ValueError(f"{where}: unknown protocol {content['protocol']!r}")
    values: dict[str, dict[str, float]] = {}
    by_modality: dict[str, dict[str, dict[str, float]]] = {}
    for system, parts in content["systems"].items():
        values[system] = parts["tasks"]
        for modality, tasks in parts.get("modalities", {}).items():
            by_modality.setdefault(modality, {})[system] = tasks
    for system, tasks in values.items():
        for task, value in tasks.items():
            if task not in content["metrics"] or isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{where}: {system}, {task}: {value!r} is not the value of a known metric")
    return Panel(
        name=content["name"],
        version=content["version"],
        protocol=content["protocol"],
        metrics=content["metrics"],
        values=values,
        by_modality=by_modality,
        provenance=content["provenance"],
    )


def load_panel(protocol: str, path: Path | str | None = None) -> Panel:
    """Load a panel.

    Args:
        protocol: whose scores are measured against it.
        path: a panel file, or the name of a shipped panel, earlier ones included; the current shipped one by default.

    Returns:
        The panel.

    Raises:
        FileNotFoundError: neither a file nor a shipped panel is called so.
        ValueError: the file is no panel, or of another protocol.
    """
    if path is None:
        return _shipped(SHIPPED[protocol][0])
    if not Path(path).is_file():
        panels = [_shipped(name) for name in SHIPPED[protocol]]
        for panel in panels:
            if panel.name == str(path):
                return panel
        names = ", ".join(panel.name for panel in panels)
        raise FileNotFoundError(f"{path} is neither a panel file nor a shipped panel of {protocol} ({names})")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: broken JSON ({error.msg})") from error
    panel = parse_panel(content, str(path))
    if panel.protocol != protocol:
        raise ValueError(f"{path}: a panel of the protocol {panel.protocol}, but the scores are of {protocol}")
    return panel


def _shipped(name: str) -> Panel:
    content = (package_files(__package__) / "data" / name).read_text(encoding="utf-8")
    return parse_panel(json.loads(content), name)
