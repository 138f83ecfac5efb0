"""Fields of configurations, which come from people and from files: their types first, then what they may be."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

NAMES = {
    int: "a whole number of at most 64 bits",
    float: "a number",
    str: "text",
    bool: "True or False",
    NoneType: "None",
}


def construct(cls, values: Mapping) -> Any:
    """The inverse of dataclasses.asdict, also after JSON. ValueError naming a field that does not exist."""
    unknown = set(values) - {f.name for f in fields(cls)}
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {', '.join(map(repr, sorted(unknown)))}")
    kinds = get_type_hints(cls)
    is_nested = {name: is_dataclass(kinds[name]) and isinstance(values[name], Mapping) for name in values}
    return cls(**{name: construct(kinds[name], value) if is_nested[name] else value for name, value in values.items()})


def check_types(config) -> None:
    """ValueError unless each field of a dataclass is what its annotation says.

    True and False are no numbers; a whole number will do for a float, and a list for a tuple, as JSON has it.
    """
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _is_of(value, kind):
            raise ValueError(f"{name} must be {_told(kind)}, got {value!r:.80}")


def check_positive(config, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value}")


def check_choice(name: str, value, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _is_of(value, kind) -> bool:
    if isinstance(kind, UnionType):
        return any(_is_of(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple | list) and all(_is_of(item, get_args(kind)[0]) for item in value)
    if kind is float:
        return isinstance(value, float) or _is_of(value, int)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 64
    return isinstance(value, kind)


def _told(kind) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(map(_told, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"a list, each item {_told(get_args(kind)[0])}"
    return NAMES.get(kind) or f"a {kind.__name__}"
