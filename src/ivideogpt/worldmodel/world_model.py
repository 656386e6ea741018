"""The world model: tokenizer, transformer and heads; what a checkpoint is, and the one door to imagination."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ivideogpt.core.checkpoint import load_tensors, resolve_checkpoint
from ivideogpt.core.config import from_dict, load_json, to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import replace_folder, write_text_atomic
from ivideogpt.core.layout import TokenLayout
from ivideogpt.core.run import choose_device
from ivideogpt.decoding.sampling import RandomStreams, Sampling
from ivideogpt.models.cpu_linear import set_int8
from ivideogpt.models.heads import Heads
from ivideogpt.models.tokenizer import CompressiveTokenizer, load_state
from ivideogpt.models.transformer import Transformer
from ivideogpt.worldmodel import memory, official_format, scoring, validation
from ivideogpt.worldmodel.config import WorldModelConfig
from ivideogpt.worldmodel.imagination import Imagination
from ivideogpt.worldmodel.model_card import model_card
from ivideogpt.worldmodel.session import Session, imagination
from ivideogpt.worldmodel.shipped import SHIPPED

CONFIG_FILE = "config.json"
DEFAULT_HORIZON = 14


class WorldModel(nn.Module):
    """An interactive world model.

    Source: paper section 3 and thuml/iVideoGPT; same numbers, see docs/parity.md for what differs.
    """

    def __init__(
        self, config: WorldModelConfig, tokenizer: CompressiveTokenizer, transformer: Transformer, heads: Heads
    ) -> None:
        """Puts parts together.

        Raises:
            UserError: they do not fit each other.
        """
        super().__init__()
        self.config, self.tokenizer, self.transformer, self.heads = config, tokenizer, transformer, heads
        vocab_size = transformer.config.vocab_size
        if vocab_size != tokenizer.layout.vocab_size:
            raise UserError(
                f"the transformer has {vocab_size} ids and the tokenizer {tokenizer.layout.vocab_size}; "
                "expected a pair that was trained together"
            )
        if config.context_frames != tokenizer.config.context_frames:
            raise UserError(
                f"the model takes {config.context_frames} context frames and its tokenizer "
                f"{tokenizer.config.context_frames}; expected the same number"
            )
        places = 1 + max(tokenizer.layout.context_tokens, tokenizer.layout.dynamics_tokens)
        if config.heads.slots not in (0, places):
            raise UserError(
                f"slots is {config.heads.slots}; expected 0, or {places}: a separator and each token of a frame"
            )
        if config.heads.forecast_grid:
            self._check_forecast()
        if self.segment_limit < 1:
            raise UserError(
                f"{transformer.config.max_positions} positions hold no future frame after {config.context_frames} "
                "context frames; use fewer context frames"
            )

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
        """Loads a checkpoint, official or ours, in evaluation mode.

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
        tokenizer = CompressiveTokenizer.from_pretrained(folder / "tokenizer")
        transformer, head_tensors = official_format.read_transformer(folder / "transformer")
        if (folder / CONFIG_FILE).is_file() and "world_model" in (values := load_json(folder / CONFIG_FILE)):
            config = from_dict(WorldModelConfig, values["world_model"], where=str(folder / CONFIG_FILE))
            if not official_format.has_official_heads(config.heads):
                head_tensors |= load_tensors(folder / "heads.safetensors")
        else:
            config = official_format.world_model_config(folder, tokenizer, official_format.heads_config(head_tensors))
        heads = Heads(config.heads, transformer.config.hidden_size, tokenizer.layout.dynamics_codes)
        load_state(heads, head_tensors, folder)
        if context_frames is not None:
            tokenizer.set_context_frames(context_frames)
            config = replace(config, context_frames=context_frames)
        model = cls(config, tokenizer, transformer, heads)
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
        """Writes a checkpoint folder that appears whole or not at all.

        Args:
            folder: new, empty, or an older checkpoint.
            dtype: of the stored weights (bfloat16 halves them); None: as they are.
            also: writes more files into the folder it is given, before it appears.

        Raises:
            UserError: the folder cannot be written, or holds something else.
        """

        def write(temporary: Path) -> None:
            official_format.write_folders(temporary, self.tokenizer, self.transformer, self.heads, dtype)
            about = {
                "format": "ivideogpt",
                "version": 1,
                "layout": to_dict(self.layout),
                "resolution": self.tokenizer.config.resolution,
                "world_model": to_dict(self.config),
            }
            write_text_atomic(temporary / CONFIG_FILE, json.dumps(about, indent=2) + "\n")
            write_text_atomic(temporary / "README.md", model_card(self))
            if also is not None:
                also(temporary)

        replace_folder(folder, write)

    def push_to_hub(self, repository: str, *, private: bool = True, token: str | None = None) -> str:
        """Uploads the checkpoint with its model card to ``owner/name`` on the Hugging Face Hub; returns its address."""
        from huggingface_hub import HfApi  # slow to import and needed only here

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "checkpoint"
            self.save_pretrained(folder)
            write_text_atomic(folder / "README.md", model_card(self, repository))
            api.create_repo(repository, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repository, folder_path=folder))

    # What it is

    @property
    def layout(self) -> TokenLayout:
        """Where tokens sit and which ids they may have."""
        return self.tokenizer.layout

    @property
    def context_frames(self) -> int:
        """Frames a prompt holds."""
        return self.config.context_frames

    @property
    def action_dim(self) -> int:
        """Numbers in an action; 0: action-free."""
        return self.config.heads.action_dim

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.transformer.embed.weight.dtype

    @property
    def segment_limit(self) -> int:
        """Most future frames that the positions have room for."""
        return self.layout.future_frames(self.context_frames, self.transformer.config.max_positions)

    def segment_frames(self, reanchor_every: int | None = None) -> int:
        """Imagined frames between two encodings of the context.

        Args:
            reanchor_every: asked for; None: as many as the training clips had, at most what the positions allow.

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

    # The door

    def imagine(
        self,
        context: Tensor,
        actions: Tensor | None = None,
        horizon: int | None = None,
        sampling: Sampling | None = None,
        seed: int | Sequence[int] = 0,
        *,
        observed: Tensor | None = None,
        observed_actions: Tensor | None = None,
        reanchor_every: int | None = None,
    ) -> Imagination:
        """Imagines what follows the context.

        As many rows are imagined together as free memory lets us, the others after them. A row does not depend on that.

        Args:
            context: ``[b c_frames c h w]``, float in [0, 1] or uint8; for a goal-conditioned model [goal, last frame].
            actions: ``[b horizon a]`` in model units; ``actions[:, i]`` is applied at the last known frame and leads
                to future frame i. None only for an action-free model.
            horizon: frames to imagine; default: as many as there are actions, else 14.
            sampling: default ``Sampling(temperature=1.0, top_k=100)``.
            seed: one number, or one a row.
            observed: ``[b o c h w]`` real frames after the context, read as dynamics tokens before imagining.
            observed_actions: ``[b o a]`` the actions that led to them.
            reanchor_every: see `segment_frames`.

        Raises:
            UserError: shapes, types, ranges or lengths are wrong, or memory runs out with fewer rows at once too.
        """
        horizon = self._horizon(actions, horizon)
        context = validation.check_context(self, context)
        rows = len(context)
        streams, room = RandomStreams.from_seed(seed, rows), self.segment_frames(reanchor_every)
        actions = validation.check_actions(self, actions, rows, horizon)
        if observed is not None:
            observed = validation.check_frames(self, observed, "observed")
            if len(observed) != rows:
                raise UserError(f"observed has {len(observed)} rows and the context {rows}; give frames for each row")
            known = observed.shape[1]
            observed_actions = validation.check_actions(self, observed_actions, rows, known, "observed_actions")
        elif observed_actions is not None:
            raise UserError("observed_actions were given without observed frames; give both")

        def chunk(some: slice) -> Imagination:
            session = Session(
                self, context[some], sampling=sampling, seed=streams.select(some), reanchor_every=reanchor_every
            )
            if observed is not None:
                for index in range(observed.shape[1]):
                    led = None if observed_actions is None else observed_actions[some, index]
                    session.observe(observed[some, index], led)
            for index in range(horizon):
                session.advance(None if actions is None else actions[some, index])
            return imagination(session, session.steps - horizon)

        return Imagination.joined(memory.in_chunks(self, rows, room, chunk))

    def session(
        self,
        context: Tensor,
        sampling: Sampling | None = None,
        seed: int | Sequence[int] = 0,
        *,
        reanchor_every: int | None = None,
    ) -> Session:
        """A live imagination; see `Session`."""
        return Session(self, context, sampling=sampling, seed=seed, reanchor_every=reanchor_every)

    def log_prob(
        self,
        context: Tensor,
        actions: Tensor | None,
        ids: Tensor,
        sampling: Sampling | None = None,
        *,
        reanchor_every: int | None = None,
    ) -> Tensor:
        """Log-probability of given tokens, teacher-forced in one pass a segment and differentiable.

        Args:
            context: ``[b c_frames c h w]``, float in [0, 1] or uint8.
            actions: ``[b horizon a]`` in model units, or None.
            ids: int64 ``[b horizon m]`` of the full vocabulary, as in `Imagination`.
            sampling: its temperature and legal ids count; top-k and top-p do not.
            reanchor_every: what the ids were imagined with; see `segment_frames`.

        Returns:
            float32 ``[b horizon m]``.

        Raises:
            UserError: shapes are wrong, or ids cannot have been drawn.
        """
        sampling = sampling or Sampling()
        context = validation.check_context(self, context)
        ids = validation.check_ids(self, ids, len(context), sampling)
        actions = validation.check_actions(self, actions, len(context), ids.shape[1])
        return scoring.log_prob(self, context, actions, ids, sampling, self.segment_frames(reanchor_every))

    def normalize_actions(self, raw: Tensor) -> Tensor:
        """Raw actions ``[... a]`` in model units, by the statistics in the checkpoint (none: unchanged).

        Raises:
            UserError: another action dimension.
        """
        raw = raw if raw.is_floating_point() else raw.float()
        if not raw.ndim or raw.shape[-1] != self.action_dim:
            raise UserError(f"actions came with shape {list(raw.shape)}; expected [... {self.action_dim}]")
        mean, std = (raw.new_tensor(x) for x in (self.config.action_mean, self.config.action_std))
        return (raw - (mean if len(mean) else 0.0)) / (std if len(std) else 1.0)

    # Used by the engine, the session and training

    def rewards(self, hidden: Tensor) -> Tensor | None:
        """Rewards ``[...]`` in reward units from hidden states ``[... d]`` of a frame's last token, or None."""
        if not self.config.heads.reward:
            return None
        rewards = self.heads.reward_linear(hidden)[..., 0].float()
        return rewards.sign() * rewards.abs().expm1() if self.config.symlog_rewards else rewards

    def terminations(self, hidden: Tensor) -> Tensor | None:
        """Probabilities ``[...]`` that the step was the last, from hidden states of a frame's last token, or None."""
        if not self.config.heads.termination:
            return None
        return self.heads.termination_linear(hidden)[..., 0].float().sigmoid()

    def codes(self, ids: Tensor) -> Tensor:
        """Dynamics codes, from 0, of ids of the full vocabulary; ids out of range are clamped."""
        return (ids - self.layout.dynamics_ids.start).clamp(0, self.layout.dynamics_codes - 1)

    def _check_forecast(self) -> None:
        heads, layout = self.config.heads, self.layout
        if self.tokenizer.config.conditional:
            raise UserError("a forecast needs a tokenizer with one codebook for all frames; set forecast_grid to 0")
        if heads.forecast_grid**2 != layout.dynamics_tokens:
            raise UserError(
                f"forecast_grid is {heads.forecast_grid}; expected 0, or the side of a grid of "
                f"{layout.dynamics_tokens} tokens"
            )
        if not 1 <= heads.forecast_frames <= self.context_frames:
            raise UserError(
                f"forecast_frames is {heads.forecast_frames}; expected 1 to {self.context_frames}, the context frames"
            )

    def _horizon(self, actions: Tensor | None, horizon: int | None) -> int:
        given = actions.shape[1] if actions is not None and actions.ndim == 3 else None
        if horizon is not None and horizon < 1:
            raise UserError(f"horizon is {horizon}; expected at least 1")
        if horizon is not None and given is not None and horizon != given:
            raise UserError(
                f"horizon is {horizon}, but there are {given} actions a row; give one action a future frame"
            )
        return horizon or given or DEFAULT_HORIZON
