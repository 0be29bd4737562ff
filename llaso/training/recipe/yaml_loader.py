"""Reads frozen dataclasses from YAML files, mappings and `key=value` overrides, and checks every value.

A file may name a `base`, whose keys its own ones override. A key that does not exist is refused with the nearest one
that does; a key that comes twice is refused, too. A number's range stands beside it: `rows: Annotated[int, AT_LEAST_1]
= 4`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Range:
    """The values that a number may take, as a test and in words."""

    allows: Callable[[float], bool]
    words: str


def read_settings(
    kind: type[Settings],
    tree: Mapping[str, Any],
    overrides: Any = (),
    where: str = "",
    retired: Mapping[str, tuple[Any, str]] = types.MappingProxyType({}),
) -> Settings:
    """Build a dataclass from a mapping with overrides.

    Args:
        kind: a dataclass; its sections are fields that are dataclasses themselves.
        tree: values by name, sections as mappings.
        overrides: `"section.name=value"` strings, or a mapping of dotted names to values.
        where: the file's name, for messages.
        retired: dotted names of former settings; with each the value that it may still have, as files of old runs do,
            and what to do about any other.

    Raises:
        ValueError: an unknown key (with the nearest valid one), or a value of the wrong type.
    """
    plain: dict[str, Any] = to_plain(tree)
    valid = dict(names_and_ranges(kind))
    for name, value in _override_items(overrides):
        if name not in valid and name not in retired:
            raise ValueError(f"--set {name}: {unknown_setting(name, valid)}")
        _set(plain, name, value)
    for name, (former, remedy) in retired.items():
        section, _, key = name.rpartition(".")
        found = plain.get(section)
        if isinstance(found, dict) and found.pop(key, former) != former:
            raise ValueError(f"{where}: `{name}` is no setting any more: {remedy}")
    return _build(kind, plain, where, "", valid)


def read_yaml(path: Path, find: Callable[[str], Path], seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a file's keys, which override those of its `base`.

    Args:
        path: a YAML file.
        find: finds a base that does not lie beside the file.
        seen: files that name this one as their `base`, directly or not.

    Raises:
        ValueError: the file is not YAML, not a mapping, has a key twice, or its `base` leads back to itself.
    """
    if path.resolve() in seen:
        raise ValueError(f"{path.name}: its `base` leads back to itself")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: a recipe is a mapping of sections, this is {type(tree).__name__}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    parent = path.parent / base
    below = read_yaml(parent if parent.is_file() else find(base), find, (*seen, path.resolve()))
    return _merge(below, tree)


def check_ranges(settings: Any, where: str) -> None:
    """Refuse a number outside its range, NaN and infinity.

    Raises:
        ValueError: names the setting, its value and what it must be.
    """
    values = flatten(to_plain(dataclasses.asdict(settings)))
    for name, allowed in names_and_ranges(type(settings)):
        if allowed is None:
            continue
        for value in values[name] if isinstance(values[name], list) else [values[name]]:
            named = value is None or isinstance(value, str)  # a name in place of a number, such as `auto`
            if not named and not (math.isfinite(value) and allowed.allows(value)):
                raise ValueError(f"{where}: `{name}` is {value}, but must be {allowed.words}")


def names_and_ranges(kind: type, prefix: str = "") -> Iterator[tuple[str, Range | None]]:
    """Yield the dotted name of every setting, such as `batch.per_device`, with its range if it has one."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from names_and_ranges(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            annotated = [hint, *typing.get_args(hint)]  # `Annotated[…] | None` holds it inside
            found = (one for part in annotated for one in getattr(part, "__metadata__", ()))
            yield prefix + name, next((one for one in found if isinstance(one, Range)), None)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def to_plain(value: Any) -> Any:
    """Return mappings as dicts and tuples as lists, ready for YAML or JSON."""
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that comes twice; plain YAML would drop the first in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"`{key.value}` comes twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and (value is None or isinstance(value, Mapping)):
            merged[key] = _merge(old, value or {})
        else:
            merged[key] = value
    return merged


def _override_items(overrides: Iterable[str] | Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        yield from overrides.items()
        return
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text}: write it as key=value, e.g. batch.per_device=4")
        try:
            yield name.strip(), yaml.safe_load(value) if value.strip() else None
        except yaml.YAMLError as error:
            raise ValueError(f"--set {text}: `{value}` is no YAML value: {' '.join(str(error).split())}") from error


def _set(tree: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise ValueError(f"--set {name}: the recipe has {tree!r} for `{section}`, a section with keys of its own")
    tree[last] = value


def unknown_setting(name: str, valid: Iterable[str]) -> str:
    """Say that there is no such setting, and which of the valid ones is the nearest."""
    last = name.rpartition(".")[2]
    close = [v for v in valid if v.rpartition(".")[2] == last] or difflib.get_close_matches(name, valid, 1, 0.0)
    return f"no setting `{name}`; the nearest is `{close[0]}`"


def _build(kind: Any, tree: Any, where: str, prefix: str, valid: Iterable[str]) -> Any:
    tree = {} if tree is None else tree  # a section whose keys are all left out
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where}: `{prefix.rstrip('.')}` is a section with keys of its own, not {tree!r}")
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key not in hints:
            raise ValueError(f"{where}: {unknown_setting(name, valid)}")
        if dataclasses.is_dataclass(hints[key]):
            values[key] = _build(hints[key], value, where, f"{name}.", valid)
        else:
            values[key] = _value(hints[key], value, f"{where}: `{name}`")
    for spec in dataclasses.fields(kind):
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if required and spec.name not in values:
            raise ValueError(f"{where}: `{prefix}{spec.name}` is missing")
    return kind(**values)


def _value(hint: Any, value: Any, name: str) -> Any:
    """Return one value in its type; YAML 1.1 reads `1e-3` as text, so numbers in text are taken too."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        kinds = [choice for choice in choices if choice is not types.NoneType]
        if value is None and len(kinds) < len(choices):
            return None
        words = [word for kind in kinds[1:] for word in typing.get_args(kind)]  # names in place of a number
        return value if value in words else _value(kinds[0], value, name)
    if origin is Literal:
        if value in choices:
            return value
        close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], 1, 0.0)
        raise ValueError(f"{name} is {value!r}; one of {', '.join(map(str, choices))}, perhaps {close[0]}?")
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise ValueError(f"{name} is a list, not {value!r}")
        return tuple(_value(choices[0], item, name) for item in items)
    if hint is int or hint is float:
        try:
            number = float(value) if not isinstance(value, bool) else None
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None or (hint is int and not number.is_integer()):
            raise ValueError(f"{name} is a{'n integer' if hint is int else ' number'}, not {value!r}")
        return hint(number)
    if not isinstance(value, hint):
        raise ValueError(f"{name} is {'true or false' if hint is bool else 'text'}, not {value!r}")
    return value
