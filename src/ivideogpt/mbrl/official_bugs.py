"""Mistakes of the official code, each by name, for ablations; by default none is repeated."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ivideogpt.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Compat:
    """What is done as in thuml/iVideoGPT mbrl/ although it is a mistake.

    Attributes:
        black_images: in imagination the agent's pixels are divided by 255 twice, so it sees next to nothing.
        late_rewards: the reward head learns, at each frame, what the next action will earn, not what led there.
        codebook_gradients: the tokenizer's codebooks are not trained, but their gradients, never reset and multiplied
            by ``gradient_scale``, join the norm that all others are clipped by.
        gradient_scale: the first one of mixed precision.
        dropout_in_imagination: attention drops out while imagining.
        short_segments: the last two starts of an episode are never drawn for the world model.
        imagined_forever: what was imagined never leaves.
    """

    black_images: bool = False
    late_rewards: bool = False
    codebook_gradients: bool = False
    gradient_scale: float = 65536.0
    dropout_in_imagination: bool = False
    short_segments: bool = False
    imagined_forever: bool = False


def named_compat(name: str) -> Compat:
    """No mistake for "none", all of them for "official".

    Raises:
        UserError: it is neither.
    """
    if name == "none":
        return Compat()
    if name == "official":
        return Compat(**{one.name: True for one in fields(Compat) if one.type == "bool"})
    raise UserError(f"compat is {name!r}; expected none or official")
