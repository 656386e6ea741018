"""Speed of imagination: the official way, one call of ``generate``, and ours, on the same clips.

    .venv/bin/python benchmarks/rollout.py [CHECKPOINT | official-64 | medium] [--batch 1] [--out benchmarks/results]

docs/performance.md explains what is measured and how to read the table. The baselines need transformers (extra dev).
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, NamedTuple

import torch
import tyro
from _measuring import (
    in_new_process,
    in_turns,
    peak_memory,
    process_memory,
    reset_peak_memory,
    timed_methods,
    use_threads,
)
from _official_rollout import Clip, LlamaRollout, import_transformers
from _subject import RECIPES, RolloutOptions, Subject, new_subject, sampling_for
from einops import rearrange
from torch import Tensor

from ivideogpt.commands.machine_speed import MachineSpeed, WeightFormat, limit_seconds, speed_probes
from ivideogpt.commands.output import check_folder, print_json, print_table
from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.core.files import write_text_atomic
from ivideogpt.core.run import choose_device, choose_precision
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.decoding.speculative import DRAFT_ROWS
from ivideogpt.models.cpu_linear import set_int8
from ivideogpt.worldmodel.memory import cache_bytes
from ivideogpt.worldmodel.world_model import WorldModel

Kind = Literal["official", "cached generate", "ours"]

#: How far the scores of two tokens may lie apart where rounding decides between them.
TIE = 1e-3
#: Share of the context's codes that may differ: of two codes equally near, rounding chooses one.
DIFFERENT_CODES = 0.01
#: How far frames of the same tokens may lie apart.
FRAME_TOLERANCE = 1e-3
_ENCODING = ("encode_context", "encode_future")
_DECODING = ("decode_context", "decoder_features", "decode_future")


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        kind: implementation.
        precision: of the weights; int8: those of the transformer, the rest in float32.
        drafts: use speculative decoding where it pays.
        frame_by_frame: decode each frame before the next is imagined.
    """

    kind: Kind
    precision: WeightFormat = "float32"
    drafts: bool = True
    frame_by_frame: bool = False

    @property
    def name(self) -> str:
        """The label in the table."""
        words = [self.kind, self.precision, *["without drafts"] * (not self.drafts)]
        return ", ".join([*words, *["frame by frame"] * self.frame_by_frame])


OFFICIAL, CACHED, OURS = Row("official"), Row("cached generate"), Row("ours")


class Figures(NamedTuple):
    """Figures of one row.

    Attributes:
        seconds: of a clip, median.
        encoder, transformer, decoder: seconds of it, medians; the encoder's are those of tokenising.
        limit_share: least seconds of the transformer on this machine, as a share of its seconds.
        memory: peak bytes, or None.
        same_tokens: share of positions whose likeliest token, after the same past, is that of float32.
    """

    seconds: float
    encoder: float
    transformer: float
    decoder: float
    limit_share: float
    memory: int | None
    same_tokens: float


class Measured(NamedTuple):
    """Figures of all rows.

    Attributes:
        rows: figures of each row.
        machines: speed of the machine, by precision.
        ties: clips in which rounding decided between two tokens.
        left_out: why the baselines are missing, or None.
        subject: model and inputs.
    """

    rows: Mapping[Row, Figures]
    machines: Mapping[WeightFormat, MachineSpeed]
    ties: int
    left_out: str | None
    subject: Subject


class OurRollout:
    """Rollouts of a world model by a session: frames decoded at the end, or one by one as at the page."""

    def __init__(self, model: WorldModel, row: Row) -> None:
        self.model, self.row, self.tokenizer = model, row, model.tokenizer

    def clip(self, context: Tensor, actions: Tensor | None, horizon: int, sampling: Sampling, *, seed: int = 0) -> Clip:
        """Imagine ``horizon`` frames after context float ``[b c 3 h w]`` under actions ``[b f a]``."""
        session = self.model.session(context, sampling, seed, reanchor_every=horizon, speculative=self.row.drafts)
        decode_now = (lambda: session.frames) if self.row.frame_by_frame else None
        imagined = session.rollout(actions, horizon, on_step=decode_now)
        return Clip(imagined.ids, imagined.frames)


def rows_of(model: WorldModel, options: RolloutOptions, *, baselines: bool) -> list[Row]:
    """List the rows: baselines first, the slowest in front."""
    rows = [OFFICIAL, CACHED] if baselines else []
    rows.append(OURS)
    if options.source not in RECIPES and options.batch <= DRAFT_ROWS:
        rows.append(replace(OURS, drafts=False))
    rows.append(replace(OURS, frame_by_frame=True))
    if choose_precision("auto", options.device) == "bfloat16":
        rows.append(replace(OURS, precision="bfloat16"))
    if model.device.type == "cpu":
        rows.append(replace(OURS, precision="int8"))
    return rows


class Runner:
    """One row of the table at work: the same clips in each call, with other random numbers.

    Attributes:
        parts: seconds of encoder and decoder in each call so far.
    """

    def __init__(self, row: Row, way: LlamaRollout | OurRollout, subject: Subject, horizon: int) -> None:
        self.row, self.way, self.subject, self.horizon = row, way, subject, horizon
        self.parts: list[dict[str, float]] = []

    def __call__(self) -> None:
        """Imagine the clips and keep the seconds of encoder and decoder."""
        with timed_methods(self.way.tokenizer, _ENCODING + _DECODING, self.subject.context.device) as seconds:
            ours = isinstance(self.way, OurRollout)
            self.clip(Sampling() if ours else sampling_for(self.subject.model), seed=len(self.parts))
        named = {"encoder": _ENCODING, "decoder": _DECODING}
        self.parts.append({part: sum(seconds[name] for name in names) for part, names in named.items()})

    def clip(self, sampling: Sampling, *, seed: int = 0, codes: Tensor | None = None) -> Clip:
        """Imagine the clips; a baseline may start from ``codes`` of the context, int64 ``[b c n]``."""
        inputs = self.subject.context, self.subject.actions, self.horizon, sampling
        if isinstance(self.way, OurRollout):
            return self.way.clip(*inputs, seed=seed)
        torch.manual_seed(seed)
        return (self.way.official if self.row.kind == "official" else self.way.cached)(*inputs, codes=codes)


def runners(rows: Iterable[Row], subject: Subject, horizon: int) -> dict[Row, Runner]:
    """Make a runner for each row; rows of one kind and precision share their weights."""
    model, ways = subject.model, {}
    llama: LlamaRollout | None = None
    for row in rows:
        if row.kind != "ours":
            way = llama = llama or LlamaRollout(model)
        elif row.precision == "float32":
            way = OurRollout(model, row)
        else:
            way = OurRollout(in_format(copy.deepcopy(model), row.precision), row)
        ways[row] = Runner(row, way, subject, horizon)
    return ways


def in_format(model: WorldModel, precision: WeightFormat) -> WorldModel:
    """Convert the weights of a model in place."""
    if precision == "int8":
        set_int8(model.transformer)
        return model
    return model.to(getattr(torch, precision))


def measure(options: RolloutOptions) -> Measured:
    """Check that all rows imagine the same, then measure them.

    Raises:
        UserError: a checkpoint cannot be read, or the horizon does not fit the model.
        ArithmeticError: rows imagine different things.
    """
    with use_threads(options.threads):
        subject = new_subject(options)
        left_out = None
        try:
            if options.baselines:
                import_transformers()
            else:
                left_out = "as asked"
        except MissingExtraError as error:
            left_out = str(error)
        rows = rows_of(subject.model, options, baselines=left_out is None)
        working, device = runners(rows, subject, options.horizon), subject.context.device
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # too coarse to choose the same tokens
            ties = check([working[row] for row in rows if row.precision == "float32"])
        same: dict[WeightFormat, float] = {"float32": 1.0}
        for row in rows:
            if row.precision != "float32":
                working[row]()  # it had no part in the check, which warms up
                same[row.precision] = same_tokens(working[OURS], working[row])
        memory = {row: in_new_process(memory_of, options, row) if options.memory else None for row in rows}
        precisions: list[WeightFormat] = list(dict.fromkeys(row.precision for row in rows))
        probes = {(name, i): probe for name in precisions for i, probe in enumerate(speed_probes(subject.model, name))}
        for probe in probes.values():
            probe.action()
        timed = working | {key: probe.action for key, probe in probes.items()}
        seconds = in_turns(timed, options.rounds, device)
    machines: dict[WeightFormat, MachineSpeed] = {}
    for name in precisions:
        operations, *bandwidths = (probe.amount / seconds[key] for key, probe in probes.items() if key[0] == name)
        machines[name] = MachineSpeed(max(bandwidths), operations)
    figures = {}
    for row in rows:
        last = working[row].parts[-options.rounds :]
        encoder, decoder = (statistics.median(parts[name] for parts in last) for name in ("encoder", "decoder"))
        transformer = seconds[row] - encoder - decoder
        limit = limit_seconds(subject.model, options.batch, options.horizon, row.precision, machines[row.precision])
        shares = limit / transformer, memory[row], same[row.precision]
        figures[row] = Figures(seconds[row], encoder, transformer, decoder, *shares)
    return Measured(figures, machines, ties, left_out, subject)


# Equality of the rows


def check(working: Sequence[Runner]) -> int:
    """Compare the likeliest clips of all rows with those of the first; return the number of clips that differ by a tie.

    Raises:
        ArithmeticError: codes of the context, tokens or frames differ by more than rounding explains.
    """
    subject = working[0].subject
    sampling = sampling_for(subject.model, greedy=True)
    with torch.inference_mode():
        codes, _ = subject.model.tokenizer.encode_context(subject.context)
    first, ties = working[0].clip(sampling, codes=codes), 0
    for runner in working:
        if isinstance(runner.way, LlamaRollout):
            with torch.inference_mode():
                own, _ = runner.way.tokenizer.encode_context(subject.context)
            if (own != codes).float().mean() > DIFFERENT_CODES:
                raise ArithmeticError(f"{runner.row.name} has other codes for the context")
    for runner in working[1:]:
        clip = runner.clip(sampling, codes=codes)
        for row in range(len(codes)):
            if torch.equal(clip.ids[row], first.ids[row]):
                difference = (clip.frames[row] - first.frames[row]).abs().max().item()
                if not difference <= FRAME_TOLERANCE:
                    raise ArithmeticError(
                        f"frames of {runner.row.name} lie {difference:.1e} from {working[0].row.name}"
                    )
                continue
            gap = score_gap(subject, codes, first, clip, row)
            if not gap <= TIE:
                raise ArithmeticError(f"{runner.row.name} chose another token than {working[0].row.name}: {gap:.1e}")
            ties += 1
    return ties


@torch.inference_mode()
def score_gap(subject: Subject, codes: Tensor, first: Clip, other: Clip, row: int) -> float:
    """Return the difference of the logits of the first two tokens at which two clips of ``row`` differ."""
    model, layout = subject.model, subject.model.layout
    frame, token = (int(x[0]) for x in (first.ids[row] != other.ids[row]).nonzero(as_tuple=True))
    sequence = layout.join(codes[row : row + 1], first.ids[row : row + 1] - layout.dynamics_ids.start)
    starts = layout.action_positions(model.context_frames, first.ids.shape[1]).to(sequence.device)
    if first.separators is not None:
        sequence[:, starts] = first.separators[row]
    actions = None if subject.actions is None else subject.actions[row : row + 1]
    hidden, _ = model.dynamics.hidden_states(sequence, actions)
    scores = model.transformer.logits(hidden[0, int(starts[frame]) + token])
    return abs((scores[first.ids[row, frame, token]] - scores[other.ids[row, frame, token]]).item())


@torch.inference_mode()
def same_tokens(exact: Runner, other: Runner) -> float:
    """Return the share of positions of a clip drawn in float32 at which both have the same likeliest token."""
    sampling = sampling_for(exact.subject.model)
    ids = exact.clip(sampling).ids
    chosen = [likeliest(runner.way.model, exact.subject, ids) for runner in (exact, other)]
    return (chosen[0] == chosen[1]).float().mean().item()


def likeliest(model: WorldModel, subject: Subject, ids: Tensor) -> Tensor:
    """Return the likeliest id int64 ``[b f m]`` at each position of ``ids``, given the ids before it."""
    layout, sampling = model.layout, sampling_for(model)
    legal = layout.dynamics_ids if sampling.legal_only else range(layout.vocab_size)
    codes, _ = subject.model.tokenizer.encode_context(subject.context)
    sequence = layout.join(codes, ids - layout.dynamics_ids.start)
    hidden, _ = model.dynamics.hidden_states(sequence, subject.actions)
    future = hidden[:, layout.context_length(model.context_frames) :]
    before = rearrange(future, "b (f m) d -> b f m d", m=layout.frame_length)[:, :, :-1]
    return legal.start + model.transformer.logits(before, legal).argmax(dim=-1)


# Memory


def memory_of(options: RolloutOptions, row: Row) -> int | None:
    """Return the peak bytes of the model and one clip of ``row``, measured in a process of its own."""
    device = choose_device(options.device)
    with use_threads(options.threads):
        if row.kind != "ours":
            import_transformers()
        before = process_memory("VmRSS")
        subject = new_subject(options)
        if row.kind == "ours":
            working = Runner(row, OurRollout(in_format(subject.model, row.precision), row), subject, options.horizon)
        else:
            working = runners([row], subject, options.horizon)[row]
            # The baseline has a tokenizer of its own.
            working.subject = subject._replace(model=working.way.model)
            del subject
        reset_peak_memory(device)
        working()
        return peak_memory(device, before)


# Output


def summary(options: RolloutOptions, measured: Measured) -> dict[str, Any]:
    """Return the values of the JSON line; the first figures are those of our row in float32."""
    model, ours = measured.subject.model, measured.rows[OURS]
    frames = options.batch * options.horizon
    rows = {
        row.name: {
            "frames_per_second": frames / figures.seconds,
            "ms_per_frame": 1e3 * figures.seconds / frames,
            "encoder_ms": 1e3 * figures.encoder / frames,
            "transformer_ms": 1e3 * figures.transformer / frames,
            "decoder_ms": 1e3 * figures.decoder / frames,
            "ratio_to_official": _ratio(measured, row, OFFICIAL),
            "ratio_to_cached_generate": _ratio(measured, row, CACHED),
            "limit_share": figures.limit_share,
            "peak_memory_mb": None if figures.memory is None else figures.memory / 1e6,
            "same_tokens": figures.same_tokens,
        }
        for row, figures in measured.rows.items()
    }
    official = measured.rows.get(OFFICIAL)
    return {
        "benchmark": "rollout",
        **{name: rows[OURS.name][name] for name in ("frames_per_second", "ratio_to_official")},
        "ratio_to_official_transformer": None if official is None else official.transformer / ours.transformer,
        **{name: rows[OURS.name][name] for name in ("ratio_to_cached_generate", "limit_share", "peak_memory_mb")},
        "source": options.source,
        "batch": options.batch,
        "context_frames": model.context_frames,
        "horizon": options.horizon,
        "action_dim": model.action_dim,
        "noise": measured.subject.noise,
        "cache_mb": cache_bytes(model.dynamics, options.batch, options.horizon) / 1e6,
        "rounds": options.rounds,
        "ties": measured.ties,
        "left_out": measured.left_out,
        "rows": rows,
        "gb_per_second": {name: machine.bandwidth / 1e9 for name, machine in measured.machines.items()},
        "gflop_per_second": {name: machine.operations / 1e9 for name, machine in measured.machines.items()},
        "device": _device_name(model.device),
        "threads": _threads(options.threads),
        "torch": torch.__version__,
        "transformers": None if measured.left_out else import_transformers().__version__,
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _threads(asked: int | None) -> int:
    with use_threads(asked):
        return torch.get_num_threads()


def _ratio(measured: Measured, row: Row, baseline: Row) -> float | None:
    """Return the speed relative to the baseline, or None where it was left out."""
    return measured.rows[baseline].seconds / measured.rows[row].seconds if baseline in measured.rows else None


def _show(options: RolloutOptions, measured: Measured) -> None:
    model, frames = measured.subject.model, options.batch * options.horizon
    actions = f"actions of {model.action_dim} numbers" if model.action_dim else "no actions"
    print(
        f"{options.source}: {model.context_frames} + {options.horizon} frames, batch {options.batch}, {actions}, "
        f"{'noise' if measured.subject.noise else 'recorded clips'}, on {model.device.type}"
    )
    headings = ["", "frames/s", "ms a frame", "encoder", "transformer", "decoder", "x official", "x cached", "of limit"]
    lines: list[list[str | float]] = []
    for row, figures in measured.rows.items():
        parts = (figures.seconds, figures.encoder, figures.transformer, figures.decoder)
        ratios = (_ratio(measured, row, baseline) for baseline in (OFFICIAL, CACHED))
        lines.append(
            [
                row.name,
                frames / figures.seconds,
                *(1e3 * seconds / frames for seconds in parts),
                *("-" if ratio is None else ratio for ratio in ratios),
                f"{figures.limit_share:.0%}",
                "-" if figures.memory is None else f"{figures.memory / 1e6:.0f}",
                f"{figures.same_tokens:.1%}",
            ]
        )
    print_table([*headings, "MB", "same tokens"], lines)
    print(f"keys and values in float32: {cache_bytes(model.dynamics, options.batch, options.horizon) / 1e6:.0f} MB")
    for name, machine in measured.machines.items():
        rate, bandwidth = machine.operations / 1e9, machine.bandwidth / 1e9
        print(f"this machine, {name}: {bandwidth:.1f} GB/s, {rate:.0f} GFLOP/s")
    if measured.left_out:
        print(f"left out: official, cached generate ({measured.left_out})")


def main(options: RolloutOptions) -> None:
    """Print the table and the JSON line."""
    if options.out is not None:
        check_folder(options.out)
    measured = measure(options)
    _show(options, measured)
    values = summary(options, measured)
    if options.out is not None:
        file = options.out / f"rollout-{datetime.now():%Y-%m-%d-%H%M%S}.json"
        write_text_atomic(file, json.dumps(values, indent=2) + "\n")
        print(file)
    print_json(values)


if __name__ == "__main__":
    try:
        main(tyro.cli(RolloutOptions))
    except UserError as error:
        print(f"benchmarks/rollout.py: {error}", file=sys.stderr)
        sys.exit(2)
