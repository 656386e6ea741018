"""How fast clips are imagined: the official way, one call of ``generate``, and ours; the same clips, in turns."""

from __future__ import annotations

import contextlib
import copy
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ivideogpt.bench.limits import Machine, Numbers, limit_seconds, probes_of
from ivideogpt.bench.measuring import (
    forget_peak,
    in_new_process,
    in_turns,
    most_memory,
    process_memory,
    timed_methods,
    use_threads,
)
from ivideogpt.bench.official import Clip, LlamaRollout, import_transformers
from ivideogpt.bench.subject import RECIPES, RolloutOptions, Subject, new_subject, sampling_for
from ivideogpt.core.errors import MissingExtraError
from ivideogpt.core.run import choose_device, choose_precision
from ivideogpt.decoding import decode
from ivideogpt.decoding import speculative as drafts
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.models.cpu_linear import set_int8
from ivideogpt.worldmodel import embeddings
from ivideogpt.worldmodel.session import imagination
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
    """One line of the table.

    Attributes:
        kind: whose way.
        precision: of the weights; int8: those of the transformer, the rest in float32.
        drafts: made where they pay.
        frame_by_frame: each frame is decoded and looked at before the next is imagined.
    """

    kind: Kind
    precision: Numbers = "float32"
    drafts: bool = True
    frame_by_frame: bool = False

    @property
    def name(self) -> str:
        """What the table calls it."""
        words = [self.kind, self.precision, *["without drafts"] * (not self.drafts)]
        return ", ".join([*words, *["frame by frame"] * self.frame_by_frame])


OFFICIAL, CACHED, OURS = Row("official"), Row("cached generate"), Row("ours")


class Figures(NamedTuple):
    """Of one row.

    Attributes:
        seconds: of a clip, median.
        encoder, transformer, decoder: seconds of it, medians; the encoder's are those of tokenising.
        limit_share: share of the transformer's seconds that its work takes at least on this machine.
        memory: bytes at most, or None.
        same_tokens: share of places at which the likeliest token, after the same past, is that of float32.
    """

    seconds: float
    encoder: float
    transformer: float
    decoder: float
    limit_share: float
    memory: int | None
    same_tokens: float


class Measured(NamedTuple):
    """Everything that was found.

    Attributes:
        rows: figures of each row.
        machines: by precision.
        ties: clips in which rounding decided between two tokens.
        left_out: why the baselines are missing, or None.
        subject: what was measured.
    """

    rows: Mapping[Row, Figures]
    machines: Mapping[Numbers, Machine]
    ties: int
    left_out: str | None
    subject: Subject


class OurRollout:
    """Imagines the clips of a world model as ``imagine`` does, or frame by frame as a person at the page does."""

    def __init__(self, model: WorldModel, row: Row) -> None:
        """Takes the model as it is."""
        self.model, self.row, self.tokenizer = model, row, model.tokenizer

    def clip(self, context: Tensor, actions: Tensor | None, horizon: int, sampling: Sampling, *, seed: int = 0) -> Clip:
        """Context float ``[b c 3 h w]`` and actions ``[b f a]`` to a clip of ``horizon`` future frames f."""
        with contextlib.nullcontext() if self.row.drafts else drafts.switched_off():
            session = self.model.session(context, sampling, seed, reanchor_every=horizon)
            for index in range(horizon):
                action = None if actions is None else actions[:, index]
                (session.step if self.row.frame_by_frame else session.advance)(action)
            made = imagination(session, 0)
        return Clip(made.ids, made.frames)


def rows_of(model: WorldModel, options: RolloutOptions, *, baselines: bool) -> list[Row]:
    """What is compared: baselines first, the slowest in front."""
    rows = [OFFICIAL, CACHED] if baselines else []
    rows.append(OURS)
    if options.source not in RECIPES and options.batch <= decode.DRAFT_ROWS:
        rows.append(replace(OURS, drafts=False))
    rows.append(replace(OURS, frame_by_frame=True))
    if choose_precision("auto", options.device) == "bfloat16":
        rows.append(replace(OURS, precision="bfloat16"))
    if model.device.type == "cpu":
        rows.append(replace(OURS, precision="int8"))
    return rows


class Runner:
    """A row at work: the same clip again and again, each time with other random numbers.

    Attributes:
        parts: seconds of encoder and decoder in each clip so far.
    """

    def __init__(self, row: Row, way: LlamaRollout | OurRollout, subject: Subject, horizon: int) -> None:
        """Gets ready; nothing is imagined yet."""
        self.row, self.way, self.subject, self.horizon = row, way, subject, horizon
        self.parts: list[dict[str, float]] = []

    def __call__(self) -> None:
        """Imagines the clip and notes how long its parts took."""
        with timed_methods(self.way.tokenizer, _ENCODING + _DECODING, self.subject.context.device) as seconds:
            ours = isinstance(self.way, OurRollout)
            self.clip(Sampling() if ours else sampling_for(self.subject.model), seed=len(self.parts))
        named = {"encoder": _ENCODING, "decoder": _DECODING}
        self.parts.append({part: sum(seconds[name] for name in names) for part, names in named.items()})

    def clip(self, sampling: Sampling, *, seed: int = 0, codes: Tensor | None = None) -> Clip:
        """The clip; a baseline can go on from given ``codes`` of the context, int64 ``[b c n]``."""
        given = self.subject.context, self.subject.actions, self.horizon, sampling
        if isinstance(self.way, OurRollout):
            return self.way.clip(*given, seed=seed)
        torch.manual_seed(seed)
        return (self.way.official if self.row.kind == "official" else self.way.cached)(*given, codes=codes)


def runners(rows: Iterable[Row], subject: Subject, horizon: int) -> dict[Row, Runner]:
    """All rows, ready; those of one kind and precision share their weights."""
    model, ways = subject.model, {}
    llama: LlamaRollout | None = None
    for row in rows:
        if row.kind != "ours":
            way = llama = llama or LlamaRollout(model)
        elif row.precision == "float32":
            way = OurRollout(model, row)
        else:
            way = OurRollout(in_numbers(copy.deepcopy(model), row.precision), row)
        ways[row] = Runner(row, way, subject, horizon)
    return ways


def in_numbers(model: WorldModel, precision: Numbers) -> WorldModel:
    """The same model, changed to compute in ``precision``."""
    if precision == "int8":
        set_int8(model.transformer)
        return model
    return model.to(getattr(torch, precision))


def measure(options: RolloutOptions) -> Measured:
    """Checks that all rows imagine the same, and measures them.

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
        same: dict[Numbers, float] = {"float32": 1.0}
        for row in rows:
            if row.precision != "float32":
                working[row]()  # it had no part in the check, which warms up
                same[row.precision] = same_tokens(working[OURS], working[row])
        memory = {row: in_new_process(memory_of, options, row) if options.memory else None for row in rows}
        precisions: list[Numbers] = list(dict.fromkeys(row.precision for row in rows))
        probes = {(name, i): probe for name in precisions for i, probe in enumerate(probes_of(subject.model, name))}
        for probe in probes.values():
            probe.action()
        timed = working | {key: probe.action for key, probe in probes.items()}
        seconds = in_turns(timed, options.rounds, device)
    machines: dict[Numbers, Machine] = {}
    for name in precisions:
        operations, *bandwidths = (probe.amount / seconds[key] for key, probe in probes.items() if key[0] == name)
        machines[name] = Machine(max(bandwidths), operations)
    found = {}
    for row in rows:
        last = working[row].parts[-options.rounds :]
        encoder, decoder = (statistics.median(parts[name] for parts in last) for name in ("encoder", "decoder"))
        transformer = seconds[row] - encoder - decoder
        limit = limit_seconds(subject.model, options, row.precision, machines[row.precision])
        shares = limit / transformer, memory[row], same[row.precision]
        found[row] = Figures(seconds[row], encoder, transformer, decoder, *shares)
    return Measured(found, machines, ties, left_out, subject)


# That all imagine the same


def check(working: Sequence[Runner]) -> int:
    """Compares the likeliest clip of all rows with that of the first; returns how many clips part at a tie.

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
    """How far the scores of the two tokens lie apart at which two clips of ``row`` part."""
    model, layout = subject.model, subject.model.layout
    frame, token = (int(x[0]) for x in (first.ids[row] != other.ids[row]).nonzero(as_tuple=True))
    sequence = layout.join(codes[row : row + 1], first.ids[row : row + 1] - layout.dynamics_ids.start)
    starts = layout.action_positions(model.context_frames, first.ids.shape[1]).to(sequence.device)
    if first.separators is not None:
        sequence[:, starts] = first.separators[row]
    actions = None if subject.actions is None else subject.actions[row : row + 1]
    hidden, _ = embeddings.hidden_states(model, sequence, actions)
    scores = model.transformer.logits(hidden[0, int(starts[frame]) + token])
    return abs((scores[first.ids[row, frame, token]] - scores[other.ids[row, frame, token]]).item())


@torch.inference_mode()
def same_tokens(exact: Runner, other: Runner) -> float:
    """Share of places of a clip drawn in float32 at which ``other`` finds the same token likeliest as ``exact``."""
    sampling = sampling_for(exact.subject.model)
    ids = exact.clip(sampling).ids
    chosen = [likeliest(runner.way.model, exact.subject, ids) for runner in (exact, other)]
    return (chosen[0] == chosen[1]).float().mean().item()


def likeliest(model: WorldModel, subject: Subject, ids: Tensor) -> Tensor:
    """The likeliest id int64 ``[b f m]`` at each place of ``ids``, after what stands before it there."""
    layout, sampling = model.layout, sampling_for(model)
    legal = layout.dynamics_ids if sampling.legal_only else range(layout.vocab_size)
    codes, _ = subject.model.tokenizer.encode_context(subject.context)
    sequence = layout.join(codes, ids - layout.dynamics_ids.start)
    hidden, _ = embeddings.hidden_states(model, sequence, subject.actions)
    future = hidden[:, layout.context_length(model.context_frames) :]
    before = rearrange(future, "b (f m) d -> b f m d", m=layout.frame_length)[:, :, :-1]
    return legal.start + model.transformer.logits(before, legal).argmax(dim=-1)


# Memory


def memory_of(options: RolloutOptions, row: Row) -> int | None:
    """Bytes that this process, started for it, takes at most for the model and one clip of ``row``."""
    device = choose_device(options.device)
    with use_threads(options.threads):
        if row.kind != "ours":
            import_transformers()
        before = process_memory("VmRSS")
        subject = new_subject(options)
        if row.kind == "ours":
            working = Runner(row, OurRollout(in_numbers(subject.model, row.precision), row), subject, options.horizon)
        else:
            working = runners([row], subject, options.horizon)[row]
            # The baseline has a tokenizer of its own.
            working.subject = subject._replace(model=working.way.model)
            del subject
        forget_peak(device)
        working()
        return most_memory(device, before)
