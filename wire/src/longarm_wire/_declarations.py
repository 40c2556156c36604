"""What a settings class declares: its leaves, their defaults, and values as text in both directions."""

import contextlib
import enum
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import NoDecode

MASK = "**********"
_CONTAINERS = (dict, list, tuple, set, frozenset)


def leaves(model: type[BaseModel], parent: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yields every setting under its path, such as safety__max_step."""
    for name, info in model.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from leaves(annotation, f"{parent}{name}__")
        else:
            yield parent + name, info


def default(model: type[BaseModel], path: str) -> Any:
    """Returns the default of the setting at path, PydanticUndefined if it is required.

    A group's own default, such as `tunnel: Tunnel = Tunnel(port=2222)`, goes before the defaults of the group's class.
    """
    name, _, rest = path.partition("__")
    info = model.model_fields[name]
    value = info.get_default(call_default_factory=True, validated_data={})
    if not rest:
        return value
    if isinstance(value, BaseModel):
        return resolve(value, rest)
    group = typing.cast("type[BaseModel]", info.annotation)
    return default(group, rest)


def resolve(settings: BaseModel, path: str) -> Any:
    """Returns the value at path."""
    value: Any = settings
    for part in path.split("__"):
        value = getattr(value, part)
    return value


def decoded(info: FieldInfo, value: Any) -> Any:
    """Returns text as the setting's validation wants it; what is no text stays as it is.

    Empty, null and None mean None where a setting may be None. Containers are JSON, unless marked NoDecode. A path may
    begin with ~: no shell looks at a variable, nor into --flag=~/file. Text that cannot be decoded stays, so that
    validation refuses it and names the setting.
    """
    if not isinstance(value, str):
        return value
    alternatives = _alternatives(info.annotation)
    if type(None) in alternatives and value.strip().lower() in ("", "null", "none"):
        return None
    if is_switch(info):
        try:
            return TypeAdapter(bool).validate_python(value)
        except ValidationError:
            return value
    if Path in alternatives:
        with contextlib.suppress(RuntimeError):  # there is no such user
            return Path(value).expanduser()
    if NoDecode not in info.metadata and any(_origin(a) in _CONTAINERS for a in alternatives):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def written(value: Any) -> str:
    """Returns value as it would be written in a variable, secrets masked."""
    if value is None or value is PydanticUndefined:
        return ""
    if isinstance(value, SecretStr):
        return MASK if value.get_secret_value() else ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, default=str, ensure_ascii=False)
    return str(value)


def choices(info: FieldInfo) -> tuple[str, ...]:
    """Returns what may be written, if it is a closed set."""
    found: list[str] = []
    for alternative in kinds(info):
        if typing.get_origin(alternative) is Literal:
            found += [written(value) for value in typing.get_args(alternative)]
        elif isinstance(alternative, type) and issubclass(alternative, enum.Enum):
            found += [written(member.value) for member in alternative]
        else:
            return ()
    return tuple(found)


def kinds(info: FieldInfo) -> list[Any]:
    """Returns the types that the setting may have, None left out."""
    return [kind for kind in _alternatives(info.annotation) if kind is not type(None)]


def is_switch(info: FieldInfo) -> bool:
    """Returns whether the setting is on or off."""
    return all(
        kind is bool
        or (typing.get_origin(kind) is Literal and all(isinstance(value, bool) for value in typing.get_args(kind)))
        for kind in kinds(info)
    )


def is_mapping(info: FieldInfo) -> bool:
    """Returns whether the setting may be a dict, whose entries may come one by one as NAME__KEY."""
    return any(_origin(a) is dict for a in _alternatives(info.annotation))


def is_container(info: FieldInfo) -> bool:
    """Returns whether the setting may hold several values."""
    return any(_origin(a) in _CONTAINERS for a in _alternatives(info.annotation))


def is_secret(info: FieldInfo) -> bool:
    """Returns whether the setting's value must never be shown."""
    return "Secret" in str(info.annotation)


def _origin(annotation: Any) -> Any:
    return typing.get_origin(annotation) or annotation


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(kind for member in typing.get_args(annotation) for kind in _alternatives(member))
    return (annotation,)
