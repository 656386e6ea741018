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
repeat the same losses as runs that never stopped.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from ivideogpt.core.checkpoint import load_tensors, save_tensors, step_folder, step_folders
from ivideogpt.core.config import load_json
from ivideogpt.core.distributed import Ranks
from ivideogpt.core.errors import Stopped, UserError
from ivideogpt.core.files import remove_leftovers, replace_folder, write_text_atomic, writing
from ivideogpt.core.folder_lock import lock_folder
from ivideogpt.core.timing import Every, Stopwatch, Until
from ivideogpt.core.trackers import Tracker
from ivideogpt.core.training_state import RandomState, Stateful, flatten, seed_everything, unflatten

Precision = Literal["float32", "bfloat16"]
RANKS = "ranks.safetensors"
_STATE = {"step": int, "seconds": (int, float), "parts": dict}


def choose_device(name: str = "auto") -> torch.device:
    """The device that ``name`` means: "auto" is the GPU where there is one, else the CPU.

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
    """The precision that ``name`` means: "auto" is bfloat16 where ``device`` computes in it, else float32.

    A CPU without bfloat16 units is a hundred times slower in it: there it is never chosen.

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
    """Lets SIGTERM ask instead of end; where this is not the main thread, signals stay as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: ask())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Run:
    """The plumbing that every training loop shares, so that each loop shows its algorithm."""

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
        """Opens ``folder`` and seeds every global random number.

        Args:
            folder: where everything goes; made if missing, continued by ``resume`` if it holds checkpoints.
            seed: of Python, NumPy, PyTorch and ``generator``. What is built before ``resume`` is built alike on every
                rank; from there on PyTorch's numbers are each rank's own, so that dropout is.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            precision: of ``autocast``: weights stay float32 either way.
            log_every: steps between printed lines (every step is written to the file); 0 prints none.
            save_every: steps between checkpoints; 0 leaves only the last.
            keep_last: how many checkpoints stay; 0 keeps all.
            ranks: the processes that train together; None: this one alone. Only the first writes.
            trackers: draw what is printed or logged at a checkpoint; ``updates`` starts and closes them.

        Attributes:
            generator: a CPU generator of the run's own, the same on every rank, saved and resumed with it; so are the
                numbers of Python and NumPy.
            ranks: see above.
        """
        self.ranks = ranks or Ranks()
        self.folder = Path(folder)
        self.seed = seed
        self.device = self.ranks.device or choose_device(device)
        self.precision = precision
        self.keep_last = keep_last
        self.generator = torch.Generator().manual_seed(seed)
        self._random = RandomState(self.generator)
        self._is_log_step, self._is_save_step = Every(log_every), Every(save_every)
        self._stopwatch, self._last_logged = Stopwatch(), 0
        self._bar: tqdm | None = None
        self._trackers = tuple(trackers) if self.ranks.is_first else ()
        self._asked_to_stop = self._stopping = False
        self._checkpoint_due = 0  # the step that ``is_save_step`` last said yes to
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

    def updates(self, name: str, done: int, last: int, *, clips: int = 1) -> Iterator[int]:
        """Counts the updates of a loop under a progress bar: yields how many are made already, from ``done`` on.

        SIGTERM ends the loop after a checkpoint: ``is_save_step`` asks for one.

        Args:
            name: what the bar says.
            done: updates made before.
            last: updates in all.
            clips: of an update, on all ranks; the bar counts them.

        Raises:
            Stopped: it was asked to stop, and the checkpoint is written.
            UserError: a tracker cannot start.
        """
        quiet = not self.ranks.is_first
        with ExitStack() as stack:
            for tracker in self._trackers if done < last else ():
                tracker.start(done)
                stack.callback(tracker.close)
            stack.enter_context(_terminated(self._ask))
            bar = tqdm(total=last, initial=done, desc=name, unit="clip", unit_scale=clips, disable=quiet)
            self._bar = stack.enter_context(bar)
            while Until(last)(done):
                yield done
                done += 1
                bar.update()
                if self._stopping and done < last:
                    raise Stopped(f"stopped after update {done} of {last}; the same command goes on from there")

    def _ask(self) -> None:
        self._asked_to_stop = True

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward pass and the loss."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def log(self, step: int, **metrics: float | torch.Tensor) -> None:
        """Appends one line to ``metrics.jsonl``: step, seconds and ``metrics`` (a value that is not finite: null).

        Reading a tensor waits for its device: a loop that must not wait calls this every few steps only.

        Raises:
            UserError: ``loss`` is not finite, so that no checkpoint of a broken model is ever written.
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
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._stopwatch.count(step - self._last_logged)
        self._last_logged = step
        if self._bar is not None and "loss" in values:
            self._bar.set_postfix(loss=f"{values['loss']:.4g}", refresh=False)
        if self._is_log_step(step) or step == self._checkpoint_due:
            for tracker in self._trackers:
                tracker.log(step, finite)
        if self._is_log_step(step):
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            tqdm.write(f"step {step}  {numbers}  {self._stopwatch.rate:.2f} steps/s", file=sys.stderr)
            self._stopwatch.lap()

    def show(self, step: int, **pictures: Path) -> None:
        """Gives picture files made after ``step`` to the trackers, by name; a run without trackers does nothing."""
        for tracker in self._trackers:
            for name, path in pictures.items():
                tracker.image(name, path, step)

    def is_save_step(self, step: int, *, last: int) -> bool:
        """Whether a checkpoint is due after ``step``; always after the ``last``, and when the run is to stop."""
        self._stopping = self.ranks.any(self._asked_to_stop)
        due = step == last or self._stopping or self._is_save_step(step)
        self._checkpoint_due = step if due else 0
        return due

    def save(self, step: int, *, also: Callable[[Path], object] | None = None, **parts: Stateful) -> Path:
        """Writes the checkpoint of ``step`` and deletes the ones that ``keep_last`` no longer wants.

        Args:
            step: updates already made.
            also: writes more into the checkpoint folder it is given: the model that others will load.
            parts: modules, optimizers and whatever else has ``state_dict``, by name; ``resume`` takes the same.

        Returns:
            The checkpoint folder; it appears whole or not at all.
        """

        def write(folder: Path) -> None:
            if also is not None:
                also(folder)
            trees = {}
            for name, part in {**parts, "random": self._random}.items():
                tensors: dict[str, torch.Tensor] = {}
                trees[name] = flatten(part.state_dict(), tensors)
                save_tensors(folder / "training" / f"{name}.safetensors", tensors)
            if self.ranks.ranks > 1:
                save_tensors(folder / "training" / RANKS, own)
            state = {"step": step, "seed": self.seed, "seconds": self.seconds, "parts": trees}
            write_text_atomic(folder / "training" / "state.json", json.dumps(state))

        target, own = step_folder(self.folder, step), self._own_numbers()
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
        """Loads the newest complete checkpoint into ``parts`` and drops logged lines beyond it.

        Returns:
            The step to go on from: 0 where the folder holds no checkpoint.

        Raises:
            UserError: the checkpoint is damaged, or holds other parts or shapes than asked for.
        """
        folders = [folder for _, folder in step_folders(self.folder) if (folder / "training" / "state.json").is_file()]
        step = self._load(folders[-1], parts) if folders else 0
        self._be_oneself(folders[-1] / "training" / RANKS if folders else None)
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
                    f"{path} has no {name!r} that a run could go on from; restore the file, or delete '{folder}' to go "
                    "on from the checkpoint before it"
                )
        if state["parts"].keys() != {*parts, "random"}:
            saved, asked = sorted(set(state["parts"]) - {"random"}), sorted(parts)
            raise UserError(f"'{folder}' holds {saved}, but {asked} would be resumed; start in a new folder")
        for name, part in {**parts, "random": self._random}.items():
            tensors = load_tensors(folder / "training" / f"{name}.safetensors")
            try:
                part.load_state_dict(unflatten(state["parts"][name], tensors))
            except (RuntimeError, ValueError, KeyError) as error:
                reason = " ".join(str(error).split())[:300]
                raise UserError(
                    f"the {name} in '{folder}' does not fit this configuration ({reason}); "
                    "use the configuration it was trained with, or start in a new folder"
                ) from error
        self._stopwatch = Stopwatch(state["seconds"])
        return state["step"]

    def _own_numbers(self) -> dict[str, torch.Tensor]:
        """Where PyTorch's random numbers stand on each rank: uint8 ``[ranks n]`` of the CPU, and of its GPU if any."""
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return {name: self.ranks.gather(state) for name, state in states.items()}

    def _be_oneself(self, path: Path | None) -> None:
        """Gives this rank random numbers of its own, or those that it had; the first one's are there already."""
        if self.ranks.is_first:
            return
        torch.manual_seed(self.seed + self.ranks.rank)
        saved = load_tensors(path) if path is not None and path.is_file() else {}
        mine, there = self.ranks.rank, min((len(states) for states in saved.values()), default=0)
        # PyTorch reads a state from where its memory begins: of a row in the midst of others it takes the wrong bytes.
        saved = {name: states[mine].clone() for name, states in saved.items()} if mine < there else {}
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
                continue  # the torn last line of a killed run
        write_text_atomic(path, "".join(kept))
