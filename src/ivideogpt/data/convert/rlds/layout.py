"""Choice of the fields of a dataset of episodes that become cameras, actions, rewards, state and text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ivideogpt.core.errors import UserError
from ivideogpt.data.catalog import DatasetInfo
from ivideogpt.data.convert.rlds.dataset import RldsFolder
from ivideogpt.data.convert.rlds.fields import STEPS, Field

_OBSERVATION, _ACTION = f"{STEPS}/observation/", f"{STEPS}/action"
#: Last part of the path of a field that holds the instruction, best first.
_TEXTS = ("language_instruction", "natural_language_instruction", "instruction")
#: Observations with more numbers than this (point clouds, embeddings) are no state.
LARGEST_STATE_FIELD = 128
_LARGEST_METADATA = 64


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The fields that are read.

    Attributes:
        cameras: by name, the model's first.
        actions: in the order of the action's numbers: all number fields of the action, sorted by path.
        state: likewise of the observations that are no pictures, instructions or embeddings.
        reward, terminal, text: where there is such a field.
        metadata: of the episode as a whole.
        left_out: paths of the fields that are not read.
    """

    cameras: Mapping[str, Field]
    actions: tuple[Field, ...] = ()
    state: tuple[Field, ...] = ()
    reward: Field | None = None
    terminal: Field | None = None
    text: Field | None = None
    metadata: tuple[Field, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def keys(self) -> frozenset[str]:
        """Return the names to read from a record."""
        single = [field for field in (self.reward, self.terminal, self.text) if field is not None]
        fields = (*self.cameras.values(), *self.actions, *self.state, *self.metadata, *single)
        return frozenset(key for field in fields for key in field.keys)


def choose_layout(folder: RldsFolder, info: DatasetInfo, cameras: tuple[str, ...] | None = None) -> Layout:
    """Return the fields to read.

    The model's camera is the one that the official converter reads; where the dataset does not have it, that of the
    official loader; then the first further camera of the catalogue.

    Args:
        folder: of the dataset.
        info: its row of the catalogue.
        cameras: the cameras to store, the model's first; default: the available ones of the catalogue.

    Raises:
        UserError: a camera is missing; the message lists the available ones.
    """
    fields = folder.fields
    pictures = {name: fields[f"{_OBSERVATION}{name}"] for name in camera_names(folder)}
    catalogued = tuple(dict.fromkeys((info.converter_camera_key, info.loader_camera_key, *info.further_cameras)))
    wanted = cameras or tuple(name for name in catalogued if name in pictures)
    absent = [name for name in wanted if name not in pictures] or ([] if wanted else [info.converter_camera_key])
    if absent:
        raise UserError(
            f"{folder.path / 'features.json'} has no camera {absent[0]!r} (expected {_OBSERVATION}{absent[0]}); "
            f"it has {', '.join(sorted(pictures)) or 'none'}"
        )
    ordered = sorted(fields.values(), key=lambda field: field.path.split("/"))
    actions = tuple(field for field in ordered if _is_action(field) and field.size)
    state = tuple(field for field in ordered if _is_state(field))
    metadata = tuple(field for field in ordered if _is_metadata(field))
    layout = Layout(
        cameras={name: pictures[name] for name in wanted},
        actions=actions,
        state=state,
        reward=_scalar(fields.get(f"{STEPS}/reward")),
        terminal=_scalar(fields.get(f"{STEPS}/is_terminal")),
        text=_text_field(fields),
        metadata=metadata,
    )
    read = layout.keys
    return replace(layout, left_out=tuple(field.path for field in ordered if field.path not in read))


def camera_names(folder: RldsFolder) -> list[str]:
    """Return the names of the observations that are RGB pictures."""
    return [
        path.removeprefix(_OBSERVATION)
        for path, field in folder.fields.items()
        if path.startswith(_OBSERVATION) and _is_camera(field)
    ]


def _is_camera(field: Field) -> bool:
    channels = field.shape[-1] if field.shape else 3
    return field.kind == "image" and field.dtype == "uint8" and channels == 3 and not field.lists


def _is_action(field: Field) -> bool:
    return field.path == _ACTION or field.path.startswith(f"{_ACTION}/")


def _is_state(field: Field) -> bool:
    name = field.path.rpartition("/")[2]
    if not field.path.startswith(_OBSERVATION) or "embedding" in name or "instruction" in name:
        return False
    return field.size is not None and 0 < field.size <= LARGEST_STATE_FIELD


def _is_metadata(field: Field) -> bool:
    if field.in_steps or len(field.lists) > 1:
        return False
    return field.kind == "text" or (field.size is not None and 0 < field.size <= _LARGEST_METADATA)


def _scalar(field: Field | None) -> Field | None:
    return field if field is not None and field.size == 1 else None


def _text_field(fields: Mapping[str, Field]) -> Field | None:
    """Return the field of the instruction; one a step is preferred to one an episode."""
    for name in _TEXTS:
        named = [field for field in fields.values() if field.path.rpartition("/")[2] == name and not field.lists]
        texts = [
            field for field in named if field.kind == "text" or (field.size and field.dtype.startswith(("int", "uint")))
        ]
        if texts:
            return min(texts, key=lambda field: (not field.in_steps, field.path))
    return None
