"""Cost of an update of the transformer and of the tokenizer, beside the official one.

    .venv/bin/python benchmarks/train_step.py [--part transformer] [--size official-64] [--batch 2] [--steps 10]

Needs the extra ``dev``. In one process every row makes one update after the other, in turns, so that other work on the
machine meets all of them; figures are medians of ``--steps`` turns after a warm-up. The baseline (`_official_step.py`)
is in float32 and, where the device computes in it, also in bfloat16, as the official scripts train; its tokens are
always made in float32. Before anything is timed, both sides must give the same loss for the same weights and clips.
Clips and kept tokens lie in memory: `dataloader.py` measures loaders. Pictures are smooth noise; weights are random.

"x official" is relative to the faster row of the baseline. GFLOP are those of the convolutions, matrix products and
attention of one update, live tokens included; the peak is a large matrix product in the same precision, in the same
turns. On a GPU float32 convolutions use TF32, as PyTorch sets it for both sides, and float32 products do not. Memory is
the most that a process of its own holds for one row: on a GPU what PyTorch allocates, on a CPU what the process grows
by. A table for each part, then one JSON line.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import _measuring as measuring
import torch
import tyro
from _official_rollout import import_transformers
from _official_step import OfficialTokenizer, OfficialTransformer
from _our_step import OurTokenizer, OurTransformer, new_perceptual, tiny_recipe
from _subject import new_tokenizer, pictures
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ivideogpt.commands.machine_speed import matrix_product
from ivideogpt.configs.official import oxe_64_act_free
from ivideogpt.configs.recipe import Recipe
from ivideogpt.core.config import check_at_least
from ivideogpt.core.episode import Clip
from ivideogpt.core.files import write_text_atomic
from ivideogpt.core.run import Precision, choose_device, choose_precision
from ivideogpt.models.discriminator import Discriminator
from ivideogpt.training.init_weights import new_world_model
from ivideogpt.training.tokenizer_loss import TokenizerLoss, TokenizerLossConfig
from ivideogpt.worldmodel.config import WorldModelConfig

Part = Literal["transformer", "tokenizer"]
Update = Callable[[], None]

#: How far the losses of both sides may lie apart.
TOLERANCE = 1e-3
# PyTorch counts the attention of GPUs alone.
_ALSO_COUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
        sdpa_backward_flop_count(g, q, k, v)
    ),
}


@dataclass(frozen=True)
class Options:
    """Compares updates of ours with official ones.

    Attributes:
        part: which network is trained.
        size: "official-64" is the published shape at 64 px, "tiny" shows that everything runs.
        batch: clips an update.
        device: "auto", "cpu", "cuda", ...
        steps: turns that are timed.
        threads: of the CPU; None: as PyTorch chooses.
        action_dim: numbers in an action; 0: without actions, as in pre-training.
        adversarial: the discriminator takes part, which the published training at 64 px never reaches. An update of
            the baseline then draws two batches; only the one that the tokenizer learns from counts as clips.
        compile: also a row by ``torch.compile``; None: on a GPU.
        memory: measured, in a process for each row.
        out: a folder for the figures, in a file named by the time.
    """

    part: Literal["transformer", "tokenizer", "both"] = "both"
    size: Literal["tiny", "official-64"] = "official-64"
    batch: int = 2
    device: str = "auto"
    steps: int = 10
    threads: int | None = None
    action_dim: int = 4
    adversarial: bool = False
    compile: bool | None = None
    memory: bool = True
    out: Path | None = None

    def __post_init__(self) -> None:
        check_at_least(self, batch=1, steps=1, action_dim=0)
        if self.threads is not None:
            check_at_least(self, threads=1)

    def recipe(self) -> Recipe:
        """Return the networks and the settings of their training."""
        recipe = tiny_recipe() if self.size == "tiny" else oxe_64_act_free()
        loss = TokenizerLossConfig() if self.adversarial else recipe.tokenizer.loss
        return replace(
            recipe,
            tokenizer=replace(recipe.tokenizer, loss=loss),
            model=replace(recipe.model, actions=self.action_dim > 0),
        )


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    official: bool
    precision: Precision
    kept_tokens: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        words = ("official" if self.official else "ours", self.precision)
        return ", ".join((*words, *["kept tokens"] * self.kept_tokens, *["compiled"] * self.compiled))

    def settings(self, part: Part) -> dict[str, Any]:
        """Return the settings of the side of this row."""
        values: dict[str, Any] = {"precision": self.precision}
        if not self.official:
            values["compiled"] = self.compiled
            if part == "transformer":
                values["kept_tokens"] = self.kept_tokens
        return values


class Figures(NamedTuple):
    """Figures of one row: seconds and floating-point operations of an update, their share of the peak, MiB."""

    seconds: float
    operations: float
    peak_share: float
    memory: int | None


def rows_of(options: Options, part: Part) -> list[Row]:
    """List the rows: baseline first."""
    precisions: list[Precision] = ["float32"]
    if choose_precision("auto", options.device) == "bfloat16":
        precisions.append("bfloat16")
    kept = (False, True) if part == "transformer" else (False,)
    rows = [Row(True, precision) for precision in precisions]
    rows += [Row(False, precision, kept_tokens) for precision in precisions for kept_tokens in kept]
    compiles = choose_device(options.device).type == "cuda" if options.compile is None else options.compile
    if compiles and not (part == "tokenizer" and options.adversarial):  # its adaptive weight excludes compiling
        rows += [replace(row, compiled=True) for row in rows if not row.official and row.precision == precisions[-1]]
    return rows


# Measuring


def build(
    options: Options, part: Part, rows: Sequence[Row], folder: Path
) -> tuple[dict[Row, Update], dict[bool, float]]:
    """The updates of ``rows`` and, where both sides are among them, the loss of each (True: official).

    A side that no row needs is not kept: a process that measures memory holds one.
    """
    torch.manual_seed(0)
    wanted = {row.official for row in rows}
    sides = (transformer_sides if part == "transformer" else tokenizer_sides)(options, wanted, folder)
    losses = {}
    if len(sides) == 2:
        # TF32 is not exact enough to choose the same tokens on both sides.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            losses = {official: side.loss() for official, side in sides.items()}
    return {row: sides[row.official].step(**row.settings(part)) for row in rows}, losses


def transformer_sides(options: Options, wanted: set[bool], folder: Path) -> dict[bool, Any]:
    """The sides of the transformer: the same weights and clips."""
    device, recipe = str(choose_device(options.device)), options.recipe()
    training, tokenizer = recipe.transformer, new_tokenizer(recipe.tokenizer.tokenizer)
    count, length = tokenizer.config.context_frames, training.clip_frames
    heads = recipe.model.fitted_heads(tokenizer, options.action_dim, rewards=False)
    config = WorldModelConfig(context_frames=count, clip_frames=length, heads=heads)
    model = new_world_model(recipe.model, config, tokenizer).eval()
    frames = pictures(options.batch, length, tokenizer.config.resolution)
    actions = torch.randn(options.batch, length, options.action_dim) if options.action_dim else None
    sides: dict[bool, Any] = {}
    if True in wanted:
        future = None if actions is None else actions[:, count - 1 : -1]
        sides[True] = OfficialTransformer(model, training, frames, future, device)
    if False in wanted:
        mask = None if actions is None else torch.ones_like(actions, dtype=torch.bool)
        clip = Clip(frames=frames, actions=actions, action_mask=mask, context_frames=count)
        sides[False] = OurTransformer(model, training, clip, device, folder)
    return sides


def tokenizer_sides(options: Options, wanted: set[bool], folder: Path) -> dict[bool, Any]:
    """The sides of the tokenizer: the same weights and clips."""
    device, training = str(choose_device(options.device)), options.recipe().tokenizer
    shape = training.tokenizer
    tokenizer, perceptual = new_tokenizer(shape), new_perceptual().to(device)
    discriminator = Discriminator(training.discriminator) if options.adversarial else None
    frames = pictures(options.batch, shape.context_frames + training.future_frames, shape.resolution)
    sides: dict[bool, Any] = {}
    if True in wanted:  # before ours, which takes the weights for its own
        sides[True] = OfficialTokenizer(tokenizer, training, perceptual, discriminator, frames, device)
    if False in wanted:
        objective = TokenizerLoss(training.loss, perceptual, discriminator)
        sides[False] = OurTokenizer(tokenizer, objective, training, frames, device, folder)
    return sides


def check_losses(losses: Mapping[bool, float]) -> float:
    """Return the difference between the losses of both sides.

    Raises:
        ArithmeticError: too far: they do not do the same.
    """
    difference = abs(losses[True] - losses[False])
    if not difference <= TOLERANCE:
        raise ArithmeticError(f"the losses differ: official {losses[True]}, ours {losses[False]}")
    return difference


def operations(update: Update) -> int:
    """Count the floating-point operations of an update."""
    with FlopCounterMode(display=False, custom_mapping=_ALSO_COUNTED) as counter:
        update()
    return counter.get_total_flops()


def measure(options: Options, part: Part, folder: Path) -> tuple[dict[Row, Figures], float]:
    """Measure all rows of a part; return also the difference between the losses of both sides."""
    rows, device = rows_of(options, part), choose_device(options.device)
    memory = {row: in_a_process(options, part, row) if options.memory else None for row in rows}
    updates, losses = build(options, part, rows, folder)
    difference = check_losses(losses)
    size = 256 if options.size == "tiny" else 8192 if device.type == "cuda" else 2048
    precisions = {row.precision for row in rows}
    peaks = {name: matrix_product(device, getattr(torch, name), size) for name in precisions}
    counts = {row: operations(update) for row, update in updates.items() if not row.compiled}  # and a warm-up
    for action in [*(peak.action for peak in peaks.values()), *(updates[row] for row in rows if row.compiled)]:
        action()
    actions = updates | {name: peak.action for name, peak in peaks.items()}
    seconds = measuring.in_turns(actions, options.steps, device)
    figures = {}
    for row in rows:
        count = counts[replace(row, compiled=False)]
        peak = peaks[row.precision].amount / seconds[row.precision]
        figures[row] = Figures(seconds[row], count, count / seconds[row] / peak, memory[row])
    return figures, difference


def in_a_process(options: Options, part: Part, row: Row) -> int | None:
    """See `most_memory`."""
    return measuring.in_new_process(most_memory, options, part, row)


def most_memory(options: Options, part: Part, row: Row) -> int | None:
    """Return the peak MiB of this process over two updates; None where the system does not say."""
    device = choose_device(options.device)
    with measuring.use_threads(options.threads):
        if part == "transformer" and row.official:
            import_transformers()
        before = measuring.process_memory("VmRSS")
        with tempfile.TemporaryDirectory() as folder:
            updates, _ = build(options, part, [row], Path(folder))
            for _ in range(2):  # the optimizer's state comes with the first
                updates[row]()
    peak = measuring.peak_memory(device, before)
    return None if peak is None else peak // 2**20


# Output


def show(part: Part, options: Options, figures: Mapping[Row, Figures]) -> None:
    """Print one table."""
    best = fastest(figures, official=True)
    print(f"\n{part}, {options.size}, {options.batch} clips an update")
    print(
        f"  {'row':38s} {'ms':>9s} {'clips/s':>9s} {'x official':>11s} {'GFLOP':>9s} {'of the peak':>12s} {'MiB':>7s}"
    )
    for row, x in figures.items():
        print(
            f"  {row.name:38s} {1e3 * x.seconds:9.1f} {options.batch / x.seconds:9.3f} "
            f"{best / x.seconds:11.2f} {x.operations / 1e9:9.1f} {x.peak_share:12.0%} "
            f"{'-' if x.memory is None else x.memory:>7}"
        )


def fastest(figures: Mapping[Row, Figures], **wanted: bool | str) -> float:
    """Seconds of the fastest row with these attributes."""
    return min(x.seconds for row, x in figures.items() if wanted.items() <= vars(row).items())


def ratios(part: Part, figures: Mapping[Row, Figures]) -> dict[str, float]:
    """Return the speed of our fastest row relative to the fastest of the baseline, and to its float32."""
    values = {}
    for suffix, kept_tokens in (("", False), ("_kept_tokens", True)):
        if any(row.kept_tokens == kept_tokens for row in figures):
            ours = fastest(figures, official=False, kept_tokens=kept_tokens)
            values[f"ratio_{part}{suffix}"] = fastest(figures, official=True) / ours
            values[f"ratio_{part}{suffix}_to_float32"] = fastest(figures, official=True, precision="float32") / ours
    return {name: round(value, 3) for name, value in values.items()}


def summary(options: Options, results: Mapping[Part, tuple[dict[Row, Figures], float]]) -> dict[str, Any]:
    """Return the values of the JSON line."""
    device = choose_device(options.device)

    def each(value: Callable[[Figures], float | int | None]) -> dict[str, dict[str, float | int | None]]:
        return {part: {row.name: value(x) for row, x in figures.items()} for part, (figures, _) in results.items()}

    values: dict[str, Any] = {"benchmark": "train_step", "size": options.size, "batch": options.batch}
    for part, (figures, _) in results.items():
        values |= ratios(part, figures)
    return values | {
        "clips_per_second": each(lambda one: round(options.batch / one.seconds, 4)),
        "peak_share": each(lambda one: round(one.peak_share, 4)),
        "gflop": each(lambda one: round(one.operations / 1e9, 1)),
        "memory_mib": each(lambda one: one.memory) if options.memory else None,
        "loss_difference": {part: difference for part, (_, difference) in results.items()},
        "action_dim": options.action_dim,
        "adversarial": options.adversarial,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": import_transformers().__version__,
    }


def main(options: Options) -> None:
    """Prints the tables and the JSON line."""
    parts: tuple[Part, ...] = ("transformer", "tokenizer") if options.part == "both" else (options.part,)
    results = {}
    with measuring.use_threads(options.threads), tempfile.TemporaryDirectory() as folder:
        for part in parts:
            results[part] = measure(options, part, Path(folder) / part)
            show(part, options, results[part][0])
        line = json.dumps(summary(options, results))
    if options.out is not None:
        write_text_atomic(options.out / f"train_step-{datetime.now():%Y-%m-%d-%H%M%S}.json", line + "\n")
    print(line)


if __name__ == "__main__":
    main(tyro.cli(Options))
