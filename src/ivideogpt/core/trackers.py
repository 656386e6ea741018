"""Trackers that draw the metrics of a run as curves beside its pictures: TensorBoard, Weights & Biases, Trackio.

    tracker = open_tracker(choose_tracker("auto"), folder, settings)
    run = Run(folder, trackers=[tracker] if tracker else [])      # its loop starts, feeds and closes it

``metrics.jsonl`` is always written and holds every step; a tracker receives the steps that are printed or evaluated.
Each package is imported when its tracker starts.
"""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.core.files import write_text_atomic

PROJECT = "ivideogpt"
IDENTITY = "tracker-id"


class Tracker(Protocol):
    """A receiver of the metrics and pictures of a `Run`."""

    def start(self, step: int) -> None:
        """Continue after update ``step``; metrics that an earlier process logged beyond it are void.

        Raises:
            UserError: the service cannot be reached, or needs a login.
        """
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log finite ``values`` after update ``step``, by name."""
        ...

    def image(self, name: str, path: Path, step: int) -> None:
        """Log the picture file ``path``, made after update ``step``, under ``name``."""
        ...

    def close(self) -> None:
        """Write everything and end."""
        ...


def choose_tracker(name: str) -> str:
    """Return the tracker that ``name`` means: "auto" is tensorboard if it is installed, else none.

    Raises:
        UserError: there is no such tracker, or its package is not installed.
    """
    if name == "auto":
        return "tensorboard" if find_spec("tensorboard") else "none"
    if name == "none":
        return name
    if name not in TRACKERS:
        raise UserError(f"tracker is {name!r}; {suggestion(name, ['auto', 'none', *TRACKERS])}")
    _package(name)
    return name


def open_tracker(name: str, folder: Path, settings: Mapping[str, Any], title: str = "") -> Tracker | None:
    """Return a tracker for a run, not yet started.

    Args:
        name: "tensorboard", "wandb", "trackio" or "none".
        folder: of the run.
        settings: shown beside the curves, if the tracker shows any.
        title: name of the run; default: the folder's name.
    """
    return None if name == "none" else TRACKERS[name](folder, settings, title or folder.resolve().name)


class TensorBoard:
    """Event files in ``tensorboard/`` of the run folder, for ``tensorboard --logdir``."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], title: str) -> None:
        """Keep the folder; TensorBoard shows neither settings nor title."""
        self.folder = folder / "tensorboard"
        self._step = 0
        self._writer: Any = None

    def start(self, step: int) -> None:
        """See `Tracker`."""
        self._step = step

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`; written at once."""
        writer = self._open()
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def image(self, name: str, path: Path, step: int) -> None:
        """See `Tracker`; written at once."""
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        writer = self._open()
        writer.add_image(name, pixels, step, dataformats="HWC")
        writer.flush()

    def close(self) -> None:
        """See `Tracker`."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> Any:
        """Return the writer; the first call creates its file."""
        if self._writer is None:
            _package("tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=self._step + 1)
        return self._writer


class _Service:
    """A tracker at a service, where a run folder stays one run, however often it is stopped."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], title: str) -> None:
        self.folder, self.settings, self.title = folder, dict(settings), title
        self._run: Any = None

    def close(self) -> None:
        """See `Tracker`."""
        if self._run is not None:
            self._run.finish()
            self._run = None


class WeightsAndBiases(_Service):
    """A run of the project "ivideogpt", or WANDB_PROJECT, at wandb.ai; WANDB_MODE=offline keeps it on this machine."""

    def start(self, step: int) -> None:
        """See `Tracker`. A resumed run sends the points beyond ``step`` again."""
        self._run = _started(
            _package("wandb"),
            "log in with `wandb login`, set WANDB_MODE=offline, or choose another tracker",
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=self.title,
            id=_identity(self.folder),
            dir=str(self.folder),
            config=self.settings,
            resume="allow",
        )
        # On a separate axis, repeated points are accepted; steps in the past would be refused.
        self._run.define_metric("update")
        self._run.define_metric("*", step_metric="update")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log({"update": step, **values})

    def image(self, name: str, path: Path, step: int) -> None:
        """See `Tracker`."""
        self._run.log({"update": step, name: _package("wandb").Image(str(path))})


class Trackio(_Service):
    """A run of the project "ivideogpt" on this machine, for ``trackio show``; TRACKIO_SPACE_ID sends it to a Space."""

    def start(self, step: int) -> None:
        """See `Tracker`. A resumed run sends the points beyond ``step`` again, so that they appear twice."""
        self._run = _started(
            _package("trackio"),
            "choose another tracker",
            project=PROJECT,
            name=f"{self.title}-{_identity(self.folder)}",  # the name identifies a run
            config=self.settings,
            resume="allow",
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log(dict(values), step=step)

    def image(self, name: str, path: Path, step: int) -> None:
        """See `Tracker`."""
        self._run.log({name: _package("trackio").Image(str(path))}, step=step)

    def close(self) -> None:
        """See `Tracker`."""
        if self._run is not None:
            _package("trackio").finish()  # after the run's own finish(), the package would print again at exit
            self._run = None


TRACKERS: dict[str, type[TensorBoard | WeightsAndBiases | Trackio]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(name, "train" if name == "tensorboard" else name) from error


def _started(package: ModuleType, advice: str, **arguments: Any) -> Any:
    try:
        return package.init(**arguments)
    except Exception as error:  # the errors of the packages have no common class
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{package.__name__} could not start ({reason}); {advice}") from error


def _identity(folder: Path) -> str:
    """Return the id of a run folder at a service; it is kept in the folder, which may be moved."""
    path = folder / IDENTITY
    if not path.is_file():
        write_text_atomic(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8").strip()
