"""The official rollout, written again: ``LlamaForCausalLM.generate`` of transformers and plain convolutions.

Needs the extra ``dev``. The weights are those of a world model, shared with it, so that both imagine the same.

Source: thuml/iVideoGPT inference/predict.py, ivideogpt/transformer/action_model.py and ivideogpt/vq_model.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ivideogpt.core.errors import MissingExtraError
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.models.autoencoder import CrossAttentionBlock
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.models.transformer import TransformerConfig
from ivideogpt.worldmodel.checkpoint import transformer_config_to_official, transformer_to_official
from ivideogpt.worldmodel.world_model import WorldModel

#: Candidates that the official interface for VP2 tokenises, draws and decodes together.
_TOKENISED_ROWS, _DRAWN_ROWS, _DECODED_ROWS = 200, 100, 67


def import_transformers() -> Any:
    """Import transformers, which takes seconds.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import transformers
        import transformers.models.llama.modeling_llama  # some modules load late: not while something is timed
    except ImportError as error:
        raise MissingExtraError("transformers", "dev") from error
    return transformers


def new_llama(shape: TransformerConfig) -> Any:
    """Make a ``LlamaForCausalLM`` without an end token; its weights are to be loaded.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    transformers = import_transformers()
    fields = transformer_config_to_official(shape) | {"bos_token_id": None, "eos_token_id": None}
    del fields["max_length"]  # says the same as the positions, and newer releases warn of it
    return transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(fields))


def plain_tokenizer(tokenizer: CompressiveTokenizer) -> CompressiveTokenizer:
    """Copy a tokenizer so that it computes as the official class does.

    Convolutions are contiguous, the context's features are repeated for each future frame, and attention also gives
    its weights.
    """
    copied = copy.deepcopy(tokenizer).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for module in copied.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
        elif isinstance(module, CrossAttentionBlock):
            module.register_forward_pre_hook(_repeat_context)
        elif isinstance(module, nn.MultiheadAttention):
            module.register_forward_pre_hook(
                lambda _, args, named: (args, {**named, "need_weights": True}), with_kwargs=True
            )
    return copied


def _repeat_context(_: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    x, context = args
    return x, context.repeat_interleave(len(x) // len(context), dim=0)


class Clip(NamedTuple):
    """One imagined clip.

    Attributes:
        ids: int64 ``[b f m]`` of the full vocabulary.
        frames: ``[b f c h w]`` in [0, 1].
        context_codes: int64 ``[b c n]``, or None.
        separators: int64 ``[b f]``, or None: those of the layout.
    """

    ids: Tensor
    frames: Tensor
    context_codes: Tensor | None = None
    separators: Tensor | None = None


class PlacedEmbedding(nn.Module):
    """Embeddings of the ids, plus what the world model adds at their positions.

    Attributes:
        position: of the next id; set back to 0 to read the same sequence again.
    """

    def __init__(self, model: WorldModel) -> None:
        """Share the embeddings of ``model``."""
        super().__init__()
        self.model, self.position = model, 0

    def begin(self, rows: int, horizon: int, actions: Tensor | None) -> None:
        """Begin a new sequence of ``rows`` clips of ``horizon`` frames with actions ``[b f a]`` in model units."""
        model, layout = self.model, self.model.layout
        length = layout.length(model.context_frames, horizon)
        self.slots = layout.slots(model.context_frames, horizon).to(model.device)
        self.ids = torch.zeros(rows, 0, dtype=torch.long, device=model.device)
        self.added = torch.zeros(
            rows, length, model.transformer.config.hidden_size, device=model.device, dtype=model.dtype
        )
        self.starts = layout.action_positions(model.context_frames, horizon).tolist()
        self.actions, self.opened, self.position = actions, 0, 0

    def forward(self, ids: Tensor) -> Tensor:
        """Embed the next ids int64 ``[b n]``: ``[b n d]``."""
        here = slice(self.position, self.position + ids.shape[1])
        self.position = here.stop
        self.ids = torch.cat([self.ids[:, : here.start], ids], dim=1)
        while self.opened < len(self.starts) and self.starts[self.opened] < here.stop:
            self._open(self.opened)
            self.opened += 1
        return self.model.dynamics.embed(ids, self.slots[here]) + self.added[:, here]

    def _open(self, frame: int) -> None:
        """Compute what is added at the positions of a future frame from the frames before it."""
        model, start = self.model, self.starts[frame]
        action = None if self.actions is None else self.actions[:, frame]
        guess = None
        if model.config.heads.forecast_grid:
            back = model.dynamics.history(self.ids[:, :start], model.config.heads.forecast_frames)
            guess = model.dynamics.forecast(back, action)
        joining = model.dynamics.frame_inputs(guess, action)
        if joining is not None:
            self.added[:, start : start + joining.shape[1]] = joining


class LlamaRollout:
    """Rollouts of a world model by ``generate``: one call a frame, or one call with a cache."""

    def __init__(self, model: WorldModel) -> None:
        """Share the weights of the transformer and copy those of the tokenizer.

        Raises:
            MissingExtraError: transformers is not installed.
        """
        self.model = WorldModel(model.config, plain_tokenizer(model.tokenizer), model.transformer, model.heads).eval()
        shape = model.transformer.config
        weights = transformer_to_official(dict(model.transformer.state_dict()), shape.num_layers)
        self.llama = new_llama(shape)
        self.llama.load_state_dict(weights, assign=True)
        self.llama.to(model.device).eval()
        self.embedding = PlacedEmbedding(self.model)
        self.llama.set_input_embeddings(self.embedding)

    @property
    def tokenizer(self) -> CompressiveTokenizer:
        """The copy that computes as the official class does."""
        return self.model.tokenizer

    @torch.inference_mode()
    def official(
        self, context: Tensor, actions: Tensor | None, horizon: int, sampling: Sampling, codes: Tensor | None = None
    ) -> Clip:
        """Imagine with one call of ``generate`` a frame, which reads the whole prefix; tokenise the whole clip.

        Without actions it is one call for all frames, as in the official code.

        Args:
            context: float ``[b c 3 h w]`` in [0, 1].
            actions: ``[b f a]`` in model units, or None.
            horizon: future frames f.
            sampling: of the tokens.
            codes: int64 ``[b c n]`` of the context, instead of the tokenizer's own.
        """
        later = context.new_zeros(len(context), horizon, *context.shape[2:])
        ids, _ = self.tokenizer.tokenize(torch.cat([context, later], dim=1))
        if codes is None:
            codes, _ = self.model.layout.split(ids, self.model.context_frames)
        if actions is None:
            return self._in_one_call(codes, actions, horizon, sampling)
        return self._decoded(self._frame_by_frame(codes, actions, horizon, sampling), codes)

    @torch.inference_mode()
    def planned(self, context: Tensor, actions: Tensor, sampling: Sampling) -> Tensor:
        """Imagine the futures of candidates as the official interface for VP2 does; return ``[k f c h w]`` in [0, 1].

        The context is tokenised for each candidate, 200 at a time; tokens are drawn for 100 and decoded for 67 at a
        time.

        Args:
            context: float ``[1 c 3 h w]`` in [0, 1], the same for all candidates.
            actions: ``[k f a]`` in model units.
            sampling: of the tokens.

        Source: thuml/iVideoGPT vp/ivideogpt_interface.py; same chunks.
        """
        repeated, horizon = context.expand(len(actions), -1, -1, -1, -1), actions.shape[1]
        padded = torch.cat([repeated, torch.zeros_like(repeated[:, 1:])], dim=1)
        ids = torch.cat([self.tokenizer.tokenize(chunk)[0] for chunk in padded.split(_TOKENISED_ROWS)])
        codes, _ = self.model.layout.split(ids, self.model.context_frames)
        drawn = torch.cat(
            [
                self._frame_by_frame(codes[rows], actions[rows], horizon, sampling)
                for rows in torch.arange(len(actions)).split(_DRAWN_ROWS)
            ]
        )
        return torch.cat(
            [
                self.tokenizer.detokenize(chunk)[:, self.model.context_frames :].clamp(0, 1)
                for chunk in drawn.split(_DECODED_ROWS)
            ]
        )

    def _frame_by_frame(self, codes: Tensor, actions: Tensor, horizon: int, sampling: Sampling) -> Tensor:
        """Draw the ids int64 ``[b length]`` of a clip; each call of ``generate`` reads the whole prefix again."""
        ids = self._prompt(codes)
        separators = ids[:, -1:]
        self.embedding.begin(len(codes), horizon, actions)
        for _ in range(horizon):
            self.embedding.position = 0
            tokens = self._generate(sampling, self.model.layout.dynamics_tokens, inputs_embeds=self.embedding(ids))
            ids = torch.cat([ids, tokens, separators], dim=1)
        return ids[:, :-1]

    @torch.inference_mode()
    def cached(
        self, context: Tensor, actions: Tensor | None, horizon: int, sampling: Sampling, codes: Tensor | None = None
    ) -> Clip:
        """Imagine with one call of ``generate`` for all frames; tokenise only the context. See `official`."""
        own, _ = self.tokenizer.encode_context(context)
        return self._in_one_call(own if codes is None else codes, actions, horizon, sampling)

    def _in_one_call(self, codes: Tensor, actions: Tensor | None, horizon: int, sampling: Sampling) -> Clip:
        ids, count = self._prompt(codes), self.model.layout.frame_length * horizon - 1
        self.embedding.begin(len(codes), horizon, actions)
        return self._decoded(self._generate(sampling, count, input_ids=ids), codes)

    def _prompt(self, codes: Tensor) -> Tensor:
        """Return the ids of the context and the first separator."""
        ids = self.model.layout.join(codes)
        return torch.cat([ids, torch.full_like(ids[:, :1], self.model.layout.dynamics_separator)], dim=1)

    def _decoded(self, ids: Tensor, codes: Tensor) -> Clip:
        layout, start = self.model.layout, self.model.layout.context_length(self.model.context_frames)
        future = rearrange(ids[:, start:], "b (f m) -> b f m", m=layout.frame_length)
        frames = self.tokenizer.detokenize(ids)[:, self.model.context_frames :].clamp(0, 1)
        return Clip(future[:, :, 1:], frames, codes, future[:, :, 0])

    def _generate(self, sampling: Sampling, count: int, **given: Tensor) -> Tensor:
        drawn = {} if sampling.greedy else {"temperature": sampling.temperature, "top_k": sampling.top_k or 0}
        settings = import_transformers().GenerationConfig(
            do_sample=not sampling.greedy,
            max_new_tokens=count,
            use_cache=True,
            pad_token_id=self.model.layout.vocab_size,  # no id, as in the official code: nothing is padding
            **drawn,
        )

        def only_legal(_: Tensor, scores: Tensor) -> Tensor:
            legal = self.model.layout.legal_ids(self.embedding.position, self.model.context_frames)
            if sampling.free_separators if len(legal) == 1 else not sampling.legal_only:
                return scores
            masked = torch.full_like(scores, -torch.inf)
            masked[:, legal.start : legal.stop] = scores[:, legal.start : legal.stop]
            return masked

        return self.llama.generate(**given, generation_config=settings, logits_processor=[only_legal])
