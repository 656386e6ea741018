"""Where the figures of a run are drawn as curves, beside its pictures: TensorBoard's files, Weights & Biases, Trackio.

    tracker = open_tracker(choose_tracker("auto"), folder, settings)
    run = Run(folder, trackers=[tracker] if tracker else [])      # its loop starts, feeds and closes it

``metrics.jsonl`` is written in any case and holds every step; a tracker gets those that are printed or measured.
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
    """What a `Run` sends figures to."""

    def start(self, step: int) -> None:
        """Goes on after update ``step``; what an earlier process logged beyond it counts no more.

        Raises:
            UserError: the service cannot be reached, or does not know who asks.
        """
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Finite ``values`` after update ``step``, by name."""
        ...

    def image(self, name: str, path: Path, step: int) -> None:
        """The picture file ``path``, made after update ``step``, under ``name``."""
        ...

    def close(self) -> None:
        """Everything is written; nothing follows."""
        ...


def choose_tracker(name: str) -> str:
    """The tracker that ``name`` means: "auto" is tensorboard where it is installed, else none.

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
    """A tracker for a run, not yet started.

    Args:
        name: "tensorboard", "wandb", "trackio" or "none".
        folder: of the run.
        settings: shown beside the curves, where the tracker shows any.
        title: of the run among others; default: the folder's name.
    """
    return None if name == "none" else TRACKERS[name](folder, settings, title or folder.resolve().name)


class TensorBoard:
    """Event files in ``tensorboard/`` of the run folder, for ``tensorboard --logdir``."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], title: str) -> None:
        """The settings are in the run folder already; the title is the folder's name there."""
        self.folder = folder / "tensorboard"
        self._step = 0
        self._writer: Any = None

    def start(self, step: int) -> None:
        """See `Tracker`."""
        self._step = step

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`; a reader sees them at once."""
        writer = self._open()
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def image(self, name: str, path: Path, step: int) -> None:
        """See `Tracker`; a reader sees it at once."""
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
        """The writer; the first call makes its file."""
        if self._writer is None:
            _package("tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=self._step + 1)
        return self._writer


class _Service:
    """A tracker with runs of its own, of which a run folder is one, however often it is stopped."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], title: str) -> None:
        self.folder, self.settings, self.title = folder, dict(settings), title
        self._run: Any = None

    def close(self) -> None:
        """See `Tracker`."""
        if self._run is not None:
            self._run.finish()
            self._run = None


class WeightsAndBiases(_Service):
    """A run of the project "ivideogpt", or WANDB_PROJECT, at wandb.ai; WANDB_MODE=offline keeps it here."""

    def start(self, step: int) -> None:
        """See `Tracker`. Points beyond ``step`` are sent again: a resumed run repeats them."""
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
        # On an axis of their own, points that come again are not refused as steps in the past are.
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
        """See `Tracker`. Points beyond ``step`` are sent again, and stand there twice."""
        self._run = _started(
            _package("trackio"),
            "choose another tracker",
            project=PROJECT,
            name=f"{self.title}-{_identity(self.folder)}",  # a run is known by its name there
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
            _package("trackio").finish()  # the run's own leaves the package to finish it again at exit, aloud
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
    except Exception as error:  # each package has errors of its own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{package.__name__} could not start ({reason}); {advice}") from error


def _identity(folder: Path) -> str:
    """What a run folder is called at a service; it stays with the folder, wherever that is moved."""
    path = folder / IDENTITY
    if not path.is_file():
        write_text_atomic(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8").strip()
