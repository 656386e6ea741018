"""A run: the folder, seed, device, metric log, cadence and checkpoints of a training loop.

    run = Run("runs/tokenizer", seed=0, device="auto", log_every=50, save_every=1000)
    model.to(run.device)
    done = run.resume(model=model, optimizer=optimizer)     # 0 in a new folder
    for step in run.updates("tokenizer", done, config.steps):
        with run.autocast():
            loss = ...
        run.log(step + 1, loss=loss)                        # a line of metrics.jsonl; printed every log_every
        if run.is_save_step(step + 1, last=config.steps):
            run.save(step + 1, model=model, optimizer=optimizer, also=world_model.save_pretrained)

Layout: ``metrics.jsonl`` and ``checkpoints/step-00000010/`` with ``training/`` (state.json, one safetensors file a
part, and of several processes ranks.safetensors) beside whatever ``also`` writes, which is what
``WorldModel.from_pretrained`` reads. A step counts updates already made. Resumed runs draw the same random numbers and
repeat the same losses as runs that were never stopped.
"""

from __future__ import annotations

import ctypes
import json
import math
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from ivideogpt.core.checkpoint import load_tensors, save_tensors, step_folder, step_folders
from ivideogpt.core.config import load_json
from ivideogpt.core.distributed import Ranks, load_whole_state, whole_state
from ivideogpt.core.errors import Stopped, UserError
from ivideogpt.core.files import remove_leftovers, replace_folder, write_text_atomic, writing
from ivideogpt.core.folder_lock import lock_folder
from ivideogpt.core.reading import local_path
from ivideogpt.core.trackers import Tracker
from ivideogpt.core.training_state import RandomState, Stateful, flatten, seed_everything, unflatten

Precision = Literal["float32", "bfloat16"]
RANKS = "ranks.safetensors"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT_BYTES = 64 * 2**20
_STATE = {"step": int, "seconds": (int, float), "parts": dict}


def choose_device(name: str = "auto") -> torch.device:
    """Return the device that ``name`` means: "auto" is the GPU if there is one, else the CPU.

    Raises:
        UserError: this machine or this build of PyTorch has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # the device "meta" has no numbers
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); use auto or cpu"
        ) from error
    return device


def choose_precision(name: str, device: str = "auto") -> Precision:
    """Return the precision that ``name`` means: "auto" is bfloat16 if ``device`` computes in it, else float32.

    A CPU without bfloat16 units is a hundred times slower in bfloat16, which is therefore never chosen there.

    Raises:
        UserError: it is neither auto, float32 nor bfloat16.
    """
    if name in ("float32", "bfloat16"):
        return name  # type: ignore[return-value]
    if name != "auto":
        raise UserError(f"precision is {name!r}; expected auto, float32 or bfloat16")
    chosen = choose_device(device)
    if chosen.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    native = chosen.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if native else "float32"


@contextmanager
def _terminated(ask: Callable[[], None]) -> Iterator[None]:
    """Call ``ask`` on SIGTERM instead of ending the process; outside of the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: ask())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_multiple(step: int, every: int) -> bool:
    """Return True at ``every``, 2 * ``every``, ...; never where ``every`` is 0. A resumed run keeps its cadence."""
    return every > 0 and step > 0 and step % every == 0


class _Stopwatch:
    """Seconds of a run, those before a resume included, and updates a second since the last lap."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._start = time.perf_counter() - seconds
        self.lap()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    @property
    def rate(self) -> float:
        return self._counted / max(time.perf_counter() - self._lap_start, 1e-9)

    def lap(self) -> None:
        self._lap_start, self._counted = time.perf_counter(), 0

    def count(self, amount: int) -> None:
        self._counted += amount


def keep_freed_memory() -> bool:
    """Let the allocator of glibc keep freed blocks of up to 64 MB for the next request, from now on.

    By default it returns large blocks to the system at once, and each new one is zeroed page by page: on a CPU a fifth
    of the time of an update.

    Returns:
        False where the allocator is another one; nothing changes there.
    """
    allocator = ctypes.CDLL(None) if sys.platform == "linux" else None
    if allocator is None or not hasattr(allocator, "mallopt"):
        return False
    return all(allocator.mallopt(setting, _KEPT_BYTES) for setting in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))


class Run:
    """Folder, seed, device, log and checkpoints of a training loop."""

    def __init__(
        self,
        folder: Path | str,
        *,
        seed: int = 0,
        device: str = "auto",
        precision: Precision = "float32",
        log_every: int = 50,
        save_every: int = 1000,
        keep_last: int = 2,
        ranks: Ranks | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        """Open ``folder`` and seed every global random number generator.

        Args:
            folder: of all files of the run; created if missing, continued by ``resume`` if it holds checkpoints.
            seed: of Python, NumPy, PyTorch and ``generator``. Modules that are built before ``resume`` are equal on all
                ranks; after it each rank has its own random numbers of PyTorch, for example for dropout.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            precision: of ``autocast``: weights stay float32 either way.
            log_every: steps between printed lines (every step is written to the file); 0 prints none.
            save_every: steps between checkpoints; 0 saves only the last.
            keep_last: number of checkpoints to keep; 0 keeps all.
            ranks: the processes that train together; None: this one alone. Only the first writes.
            trackers: receive the metrics of printed steps and of checkpoints; ``updates`` starts and closes them.

        Attributes:
            generator: a CPU generator of the run, equal on all ranks, saved and resumed with it, like those of Python
                and NumPy.
            ranks: see above.
        """
        self.ranks = ranks or Ranks()
        self.folder = local_path(folder)
        self.seed = seed
        self.device = self.ranks.device or choose_device(device)
        self.precision = precision
        if self.device.type == "cpu":
            keep_freed_memory()
        self.keep_last = keep_last
        self.generator = torch.Generator().manual_seed(seed)
        self._random = RandomState(self.generator)
        self._log_every, self._save_every = log_every, save_every
        self._stopwatch, self._last_logged = _Stopwatch(), 0
        self._bar: tqdm | None = None
        self._trackers = tuple(trackers) if self.ranks.is_first else ()
        self._asked_to_stop = self._stopping = False
        self._checkpoint_due = 0  # the last step for which ``is_save_step`` returned True
        if self.folder.is_file():
            raise UserError(f"run folder '{folder}' is a file; choose another place")
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        if self.ranks.is_first:
            lock_folder(self.folder, activity="training")
            remove_leftovers(self.folder, self.folder / "checkpoints", self.folder / "samples")
        seed_everything(seed)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self._stopwatch.seconds

    def updates(self, name: str, done: int, last: int, *, clips: int = 1, unit: str = "clip") -> Iterator[int]:
        """Yield the number of updates made so far, from ``done`` on, under a progress bar.

        SIGTERM ends the loop after a checkpoint: ``is_save_step`` then returns True.

        Args:
            name: label of the bar.
            done: updates made before.
            last: total number of updates.
            clips: of an update, on all ranks; the bar counts them.
            unit: name of what the bar counts.

        Raises:
            Stopped: the process received SIGTERM, and the checkpoint is written.
            UserError: a tracker cannot start.
        """
        quiet = not self.ranks.is_first
        with ExitStack() as stack:
            for tracker in self._trackers if done < last else ():
                tracker.start(done)
                stack.callback(tracker.close)
            stack.enter_context(_terminated(self._ask))
            bar = tqdm(
                total=last, initial=done, desc=name, unit=unit, unit_scale=clips if clips > 1 else False, disable=quiet
            )
            self._bar = stack.enter_context(bar)
            while done < last:
                yield done
                done += 1
                bar.update()
                if self._stopping and done < last:
                    raise Stopped(f"stopped after update {done} of {last}; the same command goes on from there")

    def _ask(self) -> None:
        self._asked_to_stop = True

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context that sets the precision of the forward pass and the loss."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def log(self, step: int, **metrics: float | torch.Tensor) -> None:
        """Append one line to ``metrics.jsonl``: step, seconds and ``metrics`` (null for a value that is not finite).

        Reading a tensor waits for its device; a loop on a GPU calls this every few steps only.

        Raises:
            UserError: ``loss`` is not finite, so that no checkpoint of a broken model is ever written; or the file
                cannot be written.
        """
        values = {
            name: float(self.ranks.mean(value) if isinstance(value, torch.Tensor) else value)
            for name, value in metrics.items()
        }
        if not math.isfinite(values.get("loss", 0.0)):
            raise UserError(
                f"the loss is {values['loss']} at step {step}; "
                "lower the learning rate or look for broken data, then run again to go on from the last checkpoint"
            )
        if not self.ranks.is_first:
            return
        line = {"step": step, "seconds": round(self.seconds, 3)}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        line |= {name: finite.get(name) for name in values}
        path = self.folder / "metrics.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._stopwatch.count(step - self._last_logged)
        self._last_logged = step
        if self._bar is not None and "loss" in values:
            self._bar.set_postfix(loss=f"{values['loss']:.4g}", refresh=False)
        if _is_multiple(step, self._log_every) or step == self._checkpoint_due:
            for tracker in self._trackers:
                tracker.log(step, finite)
        if _is_multiple(step, self._log_every):
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            tqdm.write(f"step {step}  {numbers}  {self._stopwatch.rate:.2f} steps/s", file=sys.stderr)
            self._stopwatch.lap()

    def show(self, step: int, **pictures: Path) -> None:
        """Send picture files made after ``step`` to the trackers, by name."""
        for tracker in self._trackers:
            for name, path in pictures.items():
                tracker.image(name, path, step)

    def is_save_step(self, step: int, *, last: int) -> bool:
        """Return whether a checkpoint is due after ``step``; always after the ``last``, and after SIGTERM."""
        self._stopping = self.ranks.any(self._asked_to_stop)
        due = step == last or self._stopping or _is_multiple(step, self._save_every)
        self._checkpoint_due = step if due else 0
        return due

    def save(self, step: int, *, also: Callable[[Path], object] | None = None, **parts: Stateful) -> Path:
        """Write the checkpoint of ``step`` and delete checkpoints beyond ``keep_last``.

        Args:
            step: updates already made.
            also: writes further files into the checkpoint folder, such as the model for ``from_pretrained``.
            parts: modules, optimizers and other objects with ``state_dict``, by name; ``resume`` takes the same.

        Returns:
            The checkpoint folder, written atomically.
        """

        def write(folder: Path) -> None:
            if also is not None:
                also(folder)
            trees = {}
            for name, part_state in states.items():
                tensors: dict[str, torch.Tensor] = {}
                trees[name] = flatten(part_state, tensors)
                save_tensors(folder / "training" / f"{name}.safetensors", tensors)
            if self.ranks.ranks > 1:
                save_tensors(folder / "training" / RANKS, own)
            state = {"step": step, "seed": self.seed, "seconds": self.seconds, "parts": trees}
            write_text_atomic(folder / "training" / "state.json", json.dumps(state))

        target, own = step_folder(self.folder, step), self._rank_states()
        states = {name: whole_state(part.state_dict()) for name, part in {**parts, "random": self._random}.items()}
        if not self.ranks.is_first:
            self.ranks.wait()
            return target
        replace_folder(target, write)
        if self.keep_last > 0:
            for _, folder in step_folders(self.folder)[: -self.keep_last]:
                shutil.rmtree(folder, ignore_errors=True)
        self.ranks.wait()
        return target

    def resume(self, **parts: Stateful) -> int:
        """Load the newest complete checkpoint into ``parts`` and delete logged lines beyond it.

        Returns:
            The step to continue from: 0 if the folder holds no checkpoint.

        Raises:
            UserError: the checkpoint is damaged, or its parts or shapes differ from ``parts``.
        """
        folders = [folder for _, folder in step_folders(self.folder) if (folder / "training" / "state.json").is_file()]
        step = self._load(folders[-1], parts) if folders else 0
        self._load_rank_state(folders[-1] / "training" / RANKS if folders else None)
        self.ranks.wait()
        if self.ranks.is_first:
            self._keep_lines_until(step)
        self._last_logged = step
        self._stopwatch.lap()
        return step

    def _load(self, folder: Path, parts: Mapping[str, Stateful]) -> int:
        path = folder / "training" / "state.json"
        state = load_json(path)
        for name, kind in _STATE.items():
            if not isinstance(state.get(name), kind):
                raise UserError(
                    f"{path} has no {name!r} that a run could resume from; restore the file, or delete '{folder}' to "
                    "resume from the checkpoint before it"
                )
        if state["parts"].keys() != {*parts, "random"}:
            saved, expected = sorted(set(state["parts"]) - {"random"}), sorted(parts)
            raise UserError(f"'{folder}' holds {saved}, but {expected} would be resumed; start in a new folder")
        for name, part in {**parts, "random": self._random}.items():
            tensors = load_tensors(folder / "training" / f"{name}.safetensors")
            try:
                load_whole_state(part, unflatten(state["parts"][name], tensors))
            except Exception as error:  # of any kind, where the file is damaged
                reason = " ".join(str(error).split())[:300]
                raise UserError(
                    f"the {name} in '{folder}' does not fit this configuration ({reason}); "
                    "use the configuration it was trained with, or start in a new folder"
                ) from error
        self._stopwatch = _Stopwatch(state["seconds"])
        return state["step"]

    def _rank_states(self) -> dict[str, torch.Tensor]:
        """Return the states of PyTorch's random numbers on all ranks, uint8 ``[ranks n]``, of CPU and GPU."""
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return {name: self.ranks.gather(state) for name, state in states.items()}

    def _load_rank_state(self, path: Path | None) -> None:
        """Seed this rank's random numbers, or restore them; those of the first rank are restored already."""
        if self.ranks.is_first:
            return
        torch.manual_seed(self.seed + self.ranks.rank)
        saved = load_tensors(path) if path is not None and path.is_file() else {}
        rank, count = self.ranks.rank, min((len(states) for states in saved.values()), default=0)
        # A clone, because PyTorch reads a state from the beginning of its memory, not from the row of a view.
        saved = {name: states[rank].clone() for name, states in saved.items()} if rank < count else {}
        if "cpu" in saved:
            torch.set_rng_state(saved["cpu"])
        if "cuda" in saved and self.device.type == "cuda":
            torch.cuda.set_rng_state(saved["cuda"], self.device)

    def _keep_lines_until(self, step: int) -> None:
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # the incomplete last line of a killed run
        write_text_atomic(path, "".join(kept))
