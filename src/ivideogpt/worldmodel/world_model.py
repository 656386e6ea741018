"""The world model: a tokenizer and a dynamics network; loading, saving and imagining."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ivideogpt.core.checkpoint import resolve_checkpoint
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import write_text_atomic
from ivideogpt.core.layout import TokenLayout
from ivideogpt.core.run import choose_device
from ivideogpt.decoding.sampling import RandomStreams, Sampling
from ivideogpt.models.cpu_linear import set_int8
from ivideogpt.models.dynamics import Dynamics, Heads
from ivideogpt.models.picture_dynamics import PictureDynamics
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.models.transformer import Transformer
from ivideogpt.worldmodel import memory, validation
from ivideogpt.worldmodel.checkpoint import (
    is_picture_checkpoint,
    read_checkpoint,
    read_picture_checkpoint,
    write_checkpoint,
    write_picture_checkpoint,
)
from ivideogpt.worldmodel.config import WorldModelConfig
from ivideogpt.worldmodel.imagination import Imagination
from ivideogpt.worldmodel.interfaces import Segment
from ivideogpt.worldmodel.model_card import model_card, picture_facts, token_facts
from ivideogpt.worldmodel.picture_segment import PictureSegment
from ivideogpt.worldmodel.session import Session, check_horizon
from ivideogpt.worldmodel.shipped import SHIPPED
from ivideogpt.worldmodel.token_segment import TokenSegment

#: Frames of a segment of a picture model. It has no cache, so the number only bounds what a step back costs.
PICTURE_SEGMENT = 64


class WorldModel(nn.Module):
    """An interactive world model.

    There are two kinds. A token model has a tokenizer and a transformer, as in the paper. A picture model draws the
    next frame with a convolutional network. It has no tokens: its ids, log-probabilities and entropies have length 0.

    Attributes:
        config: its settings.
        tokenizer: frames to tokens and back; only in a token model.
        dynamics: predicts the tokens, the reward and the end of the next frame; only in a token model.
        pictures: draws the next frame; None in a token model.

    Source: paper section 3 and thuml/iVideoGPT; same numbers, see docs/parity.md for what differs.
    """

    tokenizer: CompressiveTokenizer
    dynamics: Dynamics
    pictures: PictureDynamics | None

    def __init__(
        self, config: WorldModelConfig, tokenizer: CompressiveTokenizer, transformer: Transformer, heads: Heads
    ) -> None:
        """Join the parts of a token model.

        Raises:
            UserError: they do not fit each other.
        """
        super().__init__()
        self.config, self.tokenizer, self.pictures = config, tokenizer, None
        if heads.config != config.heads:
            raise UserError("config.heads are not those of the heads that were given; expected the same HeadsConfig")
        self.dynamics = Dynamics(
            transformer,
            heads,
            config.layout(tokenizer.config),
            context_frames=config.context_frames,
            shared_codebook=not tokenizer.config.conditional,
            symlog_rewards=config.symlog_rewards,
        )

    @classmethod
    def from_pictures(cls, config: WorldModelConfig, pictures: PictureDynamics) -> WorldModel:
        """Make a picture model.

        Args:
            config: settings; of ``heads`` only the action dimension, the reward and the termination count.
            pictures: draws the next frame.

        Raises:
            UserError: they do not fit each other.
        """
        forecast = pictures.config.forecast
        if config.context_frames < forecast.frames:
            raise UserError(
                f"the model takes {config.context_frames} context frames and its forecast reads {forecast.frames}; "
                "expected at least as many context frames"
            )
        if config.heads.action_dim != forecast.action_dim:
            raise UserError(
                f"the model has actions of {config.heads.action_dim} numbers and its forecast of "
                f"{forecast.action_dim}; expected the same"
            )
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model.config, model.pictures = config, pictures
        return model

    # Files

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        context_frames: int | None = None,
        int8: bool = False,
    ) -> WorldModel:
        """Load a checkpoint, official or ours, in evaluation mode.

        Args:
            folder_or_hub_id: a folder, a run folder (its newest checkpoint), a shipped model's name, or a Hub id.
            revision: of the Hub repository.
            device: "auto", "cpu", "cuda", ...; None: the CPU.
            dtype: of the weights; None: float32.
            context_frames: fewer than the checkpoint's; the position embeddings of the last ones are kept.
            int8: the transformer imagines with weights of 8 bits: faster on a CPU and a little less exact
                (docs/performance.md); its own weights stay as they are.

        Raises:
            UserError: it cannot be found or read, is a checkpoint of another kind, or int8 cannot be done here.
        """
        folder = resolve_checkpoint(str(folder_or_hub_id), revision=revision, shipped=SHIPPED)
        if is_picture_checkpoint(folder):
            if int8 or context_frames is not None:
                raise UserError(f"{folder} is a picture model; expected int8 and context_frames to be left out")
            model = cls.from_pictures(*read_picture_checkpoint(folder))
        else:
            model = cls(*read_checkpoint(folder, context_frames))
        model = model.to(device=choose_device(str(device or "cpu")), dtype=dtype or torch.float32).eval()
        if int8:
            set_int8(model.transformer)
        return model

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        also: Callable[[Path], object] | None = None,
    ) -> None:
        """Write a checkpoint folder that appears whole or not at all.

        Args:
            folder: new, empty, or an older checkpoint.
            dtype: of the stored weights (bfloat16 halves them); None: as they are.
            also: writes more files into the folder it is given, before the checkpoint appears.

        Raises:
            UserError: the folder cannot be written, or holds something else.
        """
        if self.pictures is not None:
            write_picture_checkpoint(folder, self.config, self.pictures, dtype=dtype, also=also)
        else:
            write_checkpoint(folder, self.config, self.tokenizer, self.dynamics, dtype=dtype, also=also)

    def push_to_hub(self, repository: str, *, private: bool = True, token: str | None = None) -> str:
        """Upload the checkpoint with its model card to ``owner/name`` on the Hugging Face Hub; return its address."""
        from huggingface_hub import HfApi  # slow to import and needed only here

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "checkpoint"
            self.save_pretrained(folder)
            write_text_atomic(folder / "README.md", model_card(self.config, self.facts(), repository))
            api.create_repo(repository, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repository, folder_path=folder))

    # Facts

    @property
    def has_tokens(self) -> bool:
        """True for a token model, False for a picture model."""
        return self.pictures is None

    def require_tokens(self, purpose: str) -> None:
        """Check that this is a token model.

        Args:
            purpose: what needs the tokens, for the message.

        Raises:
            UserError: it is a picture model.
        """
        if not self.has_tokens:
            name = self.config.name or "this model"
            raise UserError(f"{name} is a picture model without tokens; {purpose} needs a token model, use another one")

    def require_square(self, purpose: str) -> None:
        """Check that frames are square and no actions between context frames are read.

        Args:
            purpose: what needs it, for the message.

        Raises:
            UserError: they are not, or some are.
        """
        height, width = self.frame_size
        if height != width or self.past_actions:
            kind = f"frames of {width} x {height} pixels" if height != width else "actions between its context frames"
            raise UserError(
                f"{self.config.name or 'this model'} has {kind}, which {purpose} cannot give; use evaluate or predict"
            )

    def facts(self) -> dict[str, str]:
        """Return the facts of the model as name and value, both for people."""
        if self.pictures is not None:
            return picture_facts(self.config, self.pictures)
        return token_facts(self.config, self.tokenizer, self.dynamics)

    @property
    def transformer(self) -> Transformer:
        """The transformer of the dynamics."""
        return self.dynamics.transformer

    @property
    def heads(self) -> Heads:
        """The layers around the transformer."""
        return self.dynamics.heads

    @property
    def layout(self) -> TokenLayout:
        """The layout of the token sequence."""
        return self.dynamics.layout

    @property
    def context_frames(self) -> int:
        """Frames of the context."""
        return self.config.context_frames

    @property
    def resolution(self) -> int:
        """Height of a frame in pixels; the width too, where ``frame_size`` does not say otherwise."""
        return self.frame_size[0]

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        if self.pictures is not None:
            return self.pictures.config.resolution, self.pictures.config.resolution
        return self.tokenizer.config.frame_size

    @property
    def action_dim(self) -> int:
        """Numbers in an action; 0: action-free."""
        return self.config.heads.action_dim

    @property
    def past_actions(self) -> int:
        """Actions between the context frames that the model reads; 0 for most models."""
        return 0 if self.pictures is not None else self.layout.past_actions(self.context_frames)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.pictures.background.device if self.pictures is not None else self.dynamics.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.pictures.background.dtype if self.pictures is not None else self.dynamics.dtype

    @property
    def segment_limit(self) -> int:
        """Future frames that fit into the transformer's positions; of a picture model: into one segment."""
        return PICTURE_SEGMENT if self.pictures is not None else self.dynamics.max_future_frames

    def segment_frames(self, reanchor_every: int | None = None) -> int:
        """Return the number of imagined frames between two encodings of the context.

        Args:
            reanchor_every: the number, if it is given; None: as many as the training clips had, at most what the
                positions allow.

        Raises:
            UserError: fewer than 1, or more than the positions allow.
        """
        limit = self.segment_limit
        if reanchor_every is None:
            trained = self.config.clip_frames
            return limit if trained is None else max(1, min(limit, trained - self.context_frames))
        if not 1 <= reanchor_every <= limit:
            raise UserError(
                f"reanchor_every is {reanchor_every}; expected 1 to {limit}, what the positions have room for"
            )
        return reanchor_every

    # Tokens

    def tokenize(self, frames: Tensor) -> Tensor:
        """Encode clips as sequences of tokens; where actions are tokens, they are in the first bin.

        Args:
            frames: float ``[b t c h w]`` in [0, 1], context first.

        Returns:
            int64 ``[b length]``; see `TokenLayout.join`.

        Raises:
            UserError: wrong size, channels or fewer frames than the context.
        """
        return self.layout.join(*self.tokenizer.encode(frames))

    def detokenize(self, ids: Tensor) -> Tensor:
        """Decode sequences of tokens to frames ``[b t c h w]``, not clamped; see `tokenize`."""
        return self.tokenizer.decode(*self.layout.split(ids, self.context_frames))

    def encode_context(self, context: Tensor) -> Tensor:
        """Encode context frames float32 ``[b c_frames c h w]`` as the first tokens of a sequence, ``[b length]``."""
        return self.tokenize(context.to(self.dtype))

    # Imagination

    def imagine(
        self,
        context: Tensor,
        actions: Tensor | None = None,
        horizon: int | None = None,
        sampling: Sampling | None = None,
        seed: int | Sequence[int] = 0,
        *,
        past_actions: Tensor | None = None,
        last_rewards: Tensor | None = None,
        observed: Tensor | None = None,
        observed_actions: Tensor | None = None,
        reanchor_every: int | None = None,
    ) -> Imagination:
        """Imagine the frames after the context.

        Rows are imagined together in chunks that fit into the free memory. A row does not depend on its chunk.

        Args:
            context: ``[b c_frames c h w]``, float in [0, 1] or uint8; for a goal-conditioned model [goal, last frame].
            actions: ``[b horizon a]`` in model units; ``actions[:, i]`` is applied at the last known frame and leads
                to future frame i. None only for an action-free model.
            horizon: frames to imagine; default: as many as there are actions, else 14.
            sampling: the sampling rule; None: the checkpoint's.
            seed: one number, or one a row.
            past_actions: ``[b c_frames-1 a]`` the actions between the context frames; only for a model whose
                ``past_actions`` is not 0.
            last_rewards: ``[b]`` the reward of the transition to the last context frame, NaN where it is unknown; see
                `Session`.
            observed: ``[b o c h w]`` real frames after the context, read as dynamics tokens before imagining.
            observed_actions: ``[b o a]`` the actions that led to them.
            reanchor_every: see `segment_frames`.

        Raises:
            UserError: shapes, types, ranges or lengths are wrong, or memory runs out with fewer rows at once too.
        """
        horizon = check_horizon(actions, horizon)
        context = validation.check_context(self, context)
        rows = len(context)
        streams, frames = RandomStreams.from_seed(seed, rows), self.segment_frames(reanchor_every)
        actions = validation.check_actions(self, actions, rows, horizon)
        past_actions = validation.check_past_actions(self, past_actions, rows)
        last_rewards = validation.check_rewards(self, last_rewards, rows)
        if observed is not None:
            observed = validation.check_frames(self, observed, "observed")
            if len(observed) != rows:
                raise UserError(f"observed has {len(observed)} rows and the context {rows}; give frames for each row")
            count = observed.shape[1]
            observed_actions = validation.check_actions(self, observed_actions, rows, count, "observed_actions")
        elif observed_actions is not None:
            raise UserError("observed_actions were given without observed frames; give both")

        def imagine_chunk(chunk: slice) -> Imagination:
            session = Session(
                self,
                context[chunk],
                sampling=sampling,
                seed=streams.select(chunk),
                past_actions=None if past_actions is None else past_actions[chunk],
                last_rewards=None if last_rewards is None else last_rewards[chunk],
                reanchor_every=reanchor_every,
            )
            for index in range(0 if observed is None else observed.shape[1]):
                action = None if observed_actions is None else observed_actions[chunk, index]
                session.observe(observed[chunk, index], action)  # type: ignore[index]
            return session.rollout(None if actions is None else actions[chunk], horizon)

        return Imagination.joined(memory.in_chunks(rows, self.row_bytes(frames), self.device, imagine_chunk))

    def row_bytes(self, frames: int) -> int:
        """Estimate the most bytes of a row while ``frames`` future frames are imagined."""
        if self.pictures is not None:
            return memory.picture_row_bytes(self.resolution)
        return memory.row_bytes(self.dynamics, self.tokenizer.config, frames)

    def session(
        self,
        context: Tensor,
        sampling: Sampling | None = None,
        seed: int | Sequence[int] = 0,
        *,
        past_actions: Tensor | None = None,
        last_rewards: Tensor | None = None,
        reanchor_every: int | None = None,
        speculative: bool = True,
    ) -> Session:
        """Begin a session, a rollout one step at a time; see `Session`."""
        return Session(
            self,
            context,
            sampling=sampling,
            seed=seed,
            past_actions=past_actions,
            last_rewards=last_rewards,
            reanchor_every=reanchor_every,
            speculative=speculative,
        )

    def open_segment(
        self, context: Tensor, frames: int, *, past_actions: Tensor | None = None, speculative: bool = True
    ) -> Segment:
        """Encode the context float32 ``[b c_frames c h w]`` and begin a segment of at most ``frames`` frames."""
        if self.pictures is not None:
            return PictureSegment.open(self.pictures, context.to(self.dtype))
        return TokenSegment.open(
            self.tokenizer, self.dynamics, context, frames, past_actions=past_actions, speculative=speculative
        )

    def check_memory(self, rows: int, frames: int) -> None:
        """Check that the cache of ``rows`` rows with ``frames`` future frames fits into the free memory.

        Raises:
            UserError: it does not.
        """
        if self.pictures is None:
            memory.check_cache_memory(self.dynamics, rows, frames)

    def log_prob(
        self,
        context: Tensor,
        actions: Tensor | None,
        ids: Tensor,
        sampling: Sampling | None = None,
        *,
        past_actions: Tensor | None = None,
        reanchor_every: int | None = None,
    ) -> Tensor:
        """Return the log-probability of given tokens, teacher-forced in one pass a segment and differentiable.

        Args:
            context: ``[b c_frames c h w]``, float in [0, 1] or uint8.
            actions: ``[b horizon a]`` in model units, or None.
            ids: int64 ``[b horizon m]`` of the full vocabulary, as in `Imagination`.
            sampling: its temperature and legal ids count, top-k and top-p do not; None: the checkpoint's.
            past_actions: as in `imagine`.
            reanchor_every: the one that the ids were imagined with; see `segment_frames`.

        Returns:
            float32 ``[b horizon m]``.

        Raises:
            UserError: shapes are wrong, or ids cannot have been sampled.
        """
        self.require_tokens("log_prob")
        sampling = sampling or self.config.sampling
        context = validation.check_context(self, context)
        ids = validation.check_ids(self.layout, ids, len(context), sampling, self.device)
        actions = validation.check_actions(self, actions, len(context), ids.shape[1])
        past = validation.check_past_actions(self, past_actions, len(context))
        if past is not None:
            assert actions is not None
            actions = torch.cat([past, actions], dim=1)
        frames, parts = self.segment_frames(reanchor_every), []
        for start in range(0, ids.shape[1], frames):
            segment, applied = slice(start, start + frames), slice(start, start + frames + self.past_actions)
            with torch.no_grad():
                if start:
                    context = self._next_context(context, ids[:, start - frames : start])
                prompt = self.encode_context(context)
            log_probs = self.dynamics.log_prob(
                prompt,
                ids[:, segment],
                None if actions is None else actions[:, applied],
                temperature=sampling.temperature,
                legal_only=sampling.legal_only,
            )
            parts.append(log_probs)
        return torch.cat(parts, dim=1)

    def _next_context(self, context: Tensor, ids: Tensor) -> Tensor:
        """Return the context of the segment after frames of ``ids`` ``[b f m]``, as a session does."""
        coded = context[:, : self.tokenizer.config.context_frames]
        codes, _ = self.tokenizer.encode_context(coded.to(self.dtype))
        future = self.tokenizer.decode_future(self.dynamics.codes(ids), self.tokenizer.decoder_features(codes))
        frames = torch.cat([context, future.clamp(0, 1).float()], dim=1)
        if self.config.goal_conditioned:
            return torch.stack([context[:, 0], frames[:, -1]], dim=1)
        return frames[:, -self.context_frames :]

    def split_actions(self, actions: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Split the actions ``[b p+f a]`` of a clip into those between its context frames and those of its future.

        The first part is None for a model that reads no past actions.
        """
        past = self.past_actions
        return (None, actions) if actions is None or not past else (actions[:, :past], actions[:, past:])

    def normalize_actions(self, raw: Tensor) -> Tensor:
        """Convert raw actions ``[... a]`` to model units, by the statistics in the checkpoint (none: unchanged).

        Raises:
            UserError: another action dimension.
        """
        raw = raw if raw.is_floating_point() else raw.float()
        if not raw.ndim or raw.shape[-1] != self.action_dim:
            raise UserError(f"actions came with shape {list(raw.shape)}; expected [... {self.action_dim}]")
        mean, std = (raw.new_tensor(x) for x in (self.config.action_mean, self.config.action_std))
        return (raw - (mean if len(mean) else 0.0)) / (std if len(std) else 1.0)
