"""VoxCeleb 1 and 2: celebrities in interviews; their gender stands in a table a release."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .. import labels
from ..files import lines
from .base import Item, Recording, Reject, Source

CLIPS = ("wav", "aac", "*/wav", "*/aac", "*/*/wav", "*/*/aac")
"""Folders that hold one folder for each speaker: wav/ in VoxCeleb1, aac/ in VoxCeleb2, at the top or in up to two
folders, such as dev/ or test/."""

WITHOUT_EXTRA = (".wav", ".flac")
"""Endings of clips that need no extra; such a clip is taken in place of an .m4a of the same name."""


def read(root: Path) -> Iterator[Item | Reject]:
    """Yield one item for each clip of each speaker in the tables."""
    folders = sorted(folder for pattern in CLIPS for folder in root.glob(pattern))
    known = set()
    for table in sorted(root.glob("vox[12]_meta.csv")):
        column = part = width = 0
        delimiter = ""
        for number, line in lines(table):
            where = f"{table}:{number}"
            if isinstance(line, Reject):
                yield line
                continue
            # VoxCeleb1's table is parted by tabs, VoxCeleb2's by commas with blanks or tabs before them.
            delimiter = delimiter or ("," if "," in line else "\t")
            cells = [cell.strip() for cell in line.split(delimiter)]
            if number == 1:
                if not {"Gender", "Set"} <= set(cells):
                    raise ValueError(f"{table}: no column Gender or Set; its header is {line}")
                column, part, width = cells.index("Gender"), cells.index("Set"), len(cells)
                continue
            if len(cells) != width:
                yield Reject(where, "not as many cells as the header has")
                continue
            speaker, facts = cells[0], labels.gender(cells[column])
            known.add(speaker)
            if not facts:
                yield Reject(f"{where} ({cells[column]})", "gender is neither f nor m")
                continue
            found = False
            for folder in folders:
                for clip in sorted((folder / speaker).glob("*/*")):
                    converted = clip.suffix == ".m4a" and any(
                        clip.with_suffix(kind).exists() for kind in WITHOUT_EXTRA
                    )
                    if clip.suffix in (*WITHOUT_EXTRA, ".m4a") and not converted:
                        id = f"{speaker}/{clip.parent.name}/{clip.stem}"
                        split = "test" if cells[part] == "test" else ""
                        yield Item(id, facts, (Recording(str(clip)),), speaker=speaker, split=split, where=where)
                    found = True
            if not found:
                yield Reject(f"{where} ({speaker})", "no clips of this speaker")
    for folder in folders:
        strangers = sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in known)
        yield from (Reject(str(path), "speaker is in no table") for path in strangers)


SOURCE = Source(
    name="voxceleb",
    title="VoxCeleb",
    license="CC-BY-SA-4.0 (metadata); audio under its owners' terms",
    homepage="https://www.robots.ox.ac.uk/~vgg/data/voxceleb/",
    tasks=("SGC",),
    layout="vox1_meta.csv, vox2_meta.csv\n"
    "[{vox1,vox2}/][{dev,test}/]{wav,aac}/{speaker}/{video}/{number}.{wav,flac,m4a} (.m4a needs the extra `formats`)",
    needs=("vox[12]_meta.csv", "|".join(CLIPS)),
    read=read,
    expected={"SGC": 153_516},
    benchmark={"SGC": 100},
)
