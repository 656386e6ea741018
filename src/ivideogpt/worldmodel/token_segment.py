"""A segment of a token model: the tokenizer's features of the context, and the cache of the transformer."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from ivideogpt.decoding import cuda_graph, decode, speculative
from ivideogpt.decoding.decode import FrameTokens
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.decoding.speculative import DraftStatistics
from ivideogpt.models.dynamics import Dynamics
from ivideogpt.models.frame_reward import KnownReward
from ivideogpt.models.kv_cache import KVCache
from ivideogpt.models.tokenizer import CompressiveTokenizer, ContextFeatures
from ivideogpt.worldmodel import chunked_tokenizer
from ivideogpt.worldmodel.interfaces import StepRecord
from ivideogpt.worldmodel.lazy_frames import Frame, SegmentDecoder


class TokenSegment:
    """Steps of a token model since the context was last encoded.

    The tokenizer's features have a row for each row that the segment began with; the children of a row share it.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        cache: KVCache,
        encoder: ContextFeatures,
        decoder: SegmentDecoder,
        *,
        speculative: bool,
    ) -> None:
        """Join the parts; see `open`."""
        self.dynamics, self.cache, self.encoder, self.decoder = dynamics, cache, encoder, decoder
        self.random_numbers = 1 + dynamics.layout.dynamics_tokens
        self.speculative, self.statistics = speculative, DraftStatistics()

    @classmethod
    def open(
        cls,
        tokenizer: CompressiveTokenizer,
        dynamics: Dynamics,
        context: Tensor,
        frames: int,
        *,
        past_actions: Tensor | None = None,
        speculative: bool = True,
    ) -> TokenSegment:
        """Encode and read the context.

        Args:
            tokenizer: encodes frames.
            dynamics: predicts tokens.
            context: float32 ``[b c_frames c h w]`` in [0, 1].
            frames: most frames of the segment.
            past_actions: ``[b p a]`` in model units: those between the context frames, for a model that reads them.
            speculative: decode with drafts where they pay; False: token by token.
        """
        context, coded = context.to(dynamics.dtype), tokenizer.config.context_frames
        codes, encoder = chunked_tokenizer.encode_context(tokenizer, context[:, :coded])
        lead = None
        if dynamics.layout.lead_frames:
            lead = chunked_tokenizer.encode_future(tokenizer, context[:, None, coded:], encoder)[:, 0]
        cache = decode.prefill(dynamics, codes, frames, lead, past_actions)
        return cls(dynamics, cache, encoder, SegmentDecoder(tokenizer, codes), speculative=speculative)

    def step(
        self,
        action: Tensor | None,
        uniforms: Tensor,
        sampling: Sampling,
        previous: StepRecord | None,
        earlier: KnownReward | None,
    ) -> tuple[StepRecord, Frame]:
        """Sample the tokens of the next frame; see `Segment`."""
        separators = self._open_frame(previous, action)
        uniforms = uniforms.to(separators.device)
        tokens = self._decode(separators, action, sampling, uniforms[:, : self.dynamics.layout.dynamics_tokens])
        frame = Frame.waiting(self.dynamics.codes(tokens.ids), self.decoder)
        return self._record(tokens, separators, action, sampling, uniforms), frame

    def observe(
        self,
        pixels: Tensor,
        action: Tensor | None,
        uniforms: Tensor,
        sampling: Sampling,
        previous: StepRecord | None,
        earlier: KnownReward | None,
    ) -> tuple[StepRecord, Frame]:
        """Read the tokens of the real next frame; see `Segment`."""
        separators, decoder = self._open_frame(previous, action), self.decoder
        families = rearrange(pixels.to(self.dynamics.dtype), "(b k) c h w -> b k 1 c h w", b=decoder.rows)
        codes = chunked_tokenizer.encode_future(decoder.tokenizer, families, self.encoder)
        ids = rearrange(codes, "b k 1 m -> (b k) m") + self.dynamics.layout.dynamics_ids.start
        tokens = self._read(separators, ids, action, sampling)
        return self._record(tokens, separators, action, sampling, uniforms.to(separators.device)), Frame.shown(pixels)

    def draft(self, actions: Tensor | None, horizon: int) -> tuple[FrameTokens, list[Frame]]:
        """Forecast frames by the likeliest tokens of the forecast alone; the segment does not change.

        The transformer is not run: a frame costs one pass of a small convolutional network.

        Args:
            actions: ``[b horizon a]`` in model units, or None.
            horizon: frames f.

        Returns:
            Tokens ``[b f m]``, and the f frames; ``hidden`` is empty.
        """
        config, layout = self.dynamics.heads.config, self.dynamics.layout
        history = self.dynamics.history(
            self.cache.last_ids(config.forecast_frames * layout.frame_length - 1), config.forecast_frames
        )
        likeliest, tokens, frames = Sampling(greedy=True), [], []
        for step in range(horizon):
            forecast = self.dynamics.forecast(history, None if actions is None else actions[:, step])
            assert forecast is not None
            logits = self.dynamics.forecast_logits(forecast, layout.dynamics_ids)
            choice = likeliest.choose(logits.flatten(0, 1), logits.new_empty(0))
            codes, log_probs, entropies = (value.view(len(history), -1) for value in choice)
            history = torch.cat([history[:, 1:], codes[:, None]], dim=1)
            tokens.append((layout.dynamics_ids.start + codes, log_probs, entropies))
            frames.append(Frame.waiting(codes, self.decoder))
        ids, log_probs, entropies = (torch.stack(values, dim=1) for values in zip(*tokens, strict=True))
        return FrameTokens(ids, log_probs, entropies, log_probs.new_empty(len(history), 0)), frames

    def replay(self, record: StepRecord, frame: Frame, sampling: Sampling) -> None:
        """Read the tokens of a step that was made before; see `Segment`."""
        assert record.separators is not None
        self.dynamics.read_opening(self.cache, record.action)
        self._read(record.separators, record.ids, record.action, sampling)

    def truncate(self, steps: int) -> None:
        """Keep the first ``steps`` steps."""
        self.cache.truncate(self.dynamics.layout.length(self.dynamics.context_frames, steps))
        self.statistics.truncate(self.cache.length)

    def repeat(self, k: int) -> TokenSegment:
        """Return a segment with each row k times; its drafts begin without a record."""
        return TokenSegment(
            self.dynamics, self.cache.repeat(k), self.encoder, self.decoder, speculative=self.speculative
        )

    def select(self, rows: Tensor, count: int) -> TokenSegment:
        """Return a segment of the rows int64 ``[k]`` of ``count``."""
        parents = torch.div(rows, count // self.decoder.rows, rounding_mode="floor")
        cache = self.cache.select(rows.to(self.cache.keys.device))
        encoder, decoder = chunked_tokenizer.select_rows(self.encoder, parents), self.decoder.select(parents)
        return TokenSegment(self.dynamics, cache, encoder, decoder, speculative=self.speculative)

    def close(self) -> None:
        """Free the decoder's features; frames that are still to be decoded compute them again."""
        self.decoder.forget()

    def _decode(self, separators: Tensor, action: Tensor | None, sampling: Sampling, uniforms: Tensor) -> FrameTokens:
        """Sample the tokens of the next frame by the fastest decoder for this device and batch."""
        frame = decode.FrameInputs(self.dynamics, self.cache, separators, action, sampling, uniforms)
        if self.dynamics.device.type == "cuda":
            tokens = cuda_graph.decode_frame_by_graph(frame)
            if tokens is not None:
                return tokens
        with decode.decode_threads(self.dynamics):
            if self.speculative:
                return speculative.decode_frame_speculatively(frame, self.statistics)
            return decode.decode_frame(frame)

    def _read(self, separators: Tensor, ids: Tensor, action: Tensor | None, sampling: Sampling) -> FrameTokens:
        return decode.read_frame(self.dynamics, self.cache, separators, ids, action, sampling)

    def _open_frame(self, previous: StepRecord | None, action: Tensor | None) -> Tensor:
        """Read the opening of the next frame but its last position, and return the ids int64 ``[b]`` of that one."""
        separators = self.dynamics.read_opening(self.cache, action)
        if previous is not None and previous.next_separators is not None:
            return previous.next_separators
        return separators

    def _record(
        self,
        tokens: FrameTokens,
        separators: Tensor,
        action: Tensor | None,
        sampling: Sampling,
        uniforms: Tensor,
    ) -> StepRecord:
        hidden, next_separators = tokens.hidden, None
        if sampling.free_separators and not self.dynamics.layout.action_tokens:
            # The separator of the next frame is the last token that is sampled in this step.
            next_separators = sampling.choose(self.dynamics.logits(hidden), uniforms[:, -1]).index
        return StepRecord(
            tokens.ids,
            tokens.log_probs,
            tokens.entropies,
            action,
            self.dynamics.rewards(hidden),
            self.dynamics.terminations(hidden),
            separators,
            next_separators,
        )
