"""Verifiable rewards of imagined futures: how close they are to the recorded ones.

    reward = RewardSum(parse_reward("perceptual+mae"))  # that of RLVR-World
    reward = RewardSum(parse_reward("mae+0.2*block_position+my_rewards:sharpness"))
    total, parts = reward(rollouts)                     # [b f], and the value of each term

A term is a built-in reward of `REWARDS`, or a function ``module:function`` of a user. A new built-in reward is one more
entry of `REWARDS`. Higher is better everywhere, so errors are negative.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.pusht_metrics import locate_block
from ivideogpt.evaluation.pusht_shape import block_shape
from ivideogpt.metrics.backbones import Network
from ivideogpt.metrics.image import mse, psnr, ssim
from ivideogpt.metrics.perceptual import PerceptualDistance, load_perceptual


@dataclass(frozen=True)
class Rollouts:
    """Imagined futures of p prompts, g of each, beside the recorded futures.

    Attributes:
        imagined: float32 ``[b f c h w]`` in [0, 1]; b is p * g, and the futures of a prompt are consecutive.
        real: float32 ``[p f c h w]`` in [0, 1].
        ids: int64 ``[b f m]``: the imagined tokens.
        real_ids: int64 ``[p f m]``: the tokens of the recorded futures.
        previous_ids: int64 ``[p m]``: dynamics ids of the last context frame; None where it has another grid.
        following: float32 ``[b f]`` in nats a token, see `REWARDS`; None: not computed.
    """

    imagined: Tensor
    real: Tensor
    ids: Tensor
    real_ids: Tensor
    previous_ids: Tensor | None = None
    following: Tensor | None = None

    @property
    def group(self) -> int:
        """Number g of futures of a prompt."""
        return len(self.imagined) // len(self.real)

    @property
    def real_rows(self) -> Tensor:
        """The recorded future of each row, ``[b f c h w]``."""
        return repeat(self.real, "p ... -> (p g) ...", g=self.group)


#: Reward of each future frame: float ``[b f]``, higher is better.
FrameReward = Callable[[Rollouts], Tensor]


class BuiltInReward(NamedTuple):
    """A reward of the package.

    Attributes:
        measure: computes it; for "perceptual" it is made by `parse_reward`, with the weights of the network.
        meaning: one line for people, with the unit.
    """

    measure: FrameReward
    meaning: str


def _mean_absolute_error(rollouts: Rollouts) -> Tensor:
    return -reduce((rollouts.imagined - rollouts.real_rows).abs(), "b f c h w -> b f", "mean")


def _perceptual(rollouts: Rollouts, distance: PerceptualDistance | None = None) -> Tensor:
    """Return the negative distance; the features of a recorded frame are computed once for its group."""
    distance = distance if distance is not None else _load_distance("vgg").to(rollouts.imagined.device)
    imagined = rearrange(rollouts.imagined, "(p g) f c h w -> g p f c h w", g=rollouts.group)
    return -rearrange(distance(imagined.contiguous(), rollouts.real), "g p f -> (p g) f")


def _repetition(rollouts: Rollouts) -> Tensor:
    """Return minus the share of tokens equal to those of the frame before, beyond that of the recorded future."""

    def share(ids: Tensor, before: Tensor | None) -> Tensor:
        first = ids[:, :1] if before is None else before[:, None]
        equal = (ids == torch.cat([first, ids[:, :-1]], dim=1)).float().mean(dim=-1)
        if before is None:  # nothing to compare the first frame with
            equal = torch.cat([torch.zeros_like(equal[:, :1]), equal[:, 1:]], dim=1)
        return equal

    group, before = rollouts.group, rollouts.previous_ids
    imagined = share(rollouts.ids, None if before is None else before.repeat_interleave(group, dim=0))
    return -(imagined - share(rollouts.real_ids, before).repeat_interleave(group, dim=0)).clamp(min=0)


def _following(rollouts: Rollouts) -> Tensor:
    if rollouts.following is None:
        raise UserError("the reward following needs a model with actions, and this one has none; leave it out")
    return rollouts.following


def _block_position(rollouts: Rollouts) -> Tensor:
    real = locate_block(rollouts.real).xy.repeat_interleave(rollouts.group, dim=0)
    return -(locate_block(rollouts.imagined).xy - real).norm(dim=-1)


def _block_angle(rollouts: Rollouts) -> Tensor:
    real = locate_block(rollouts.real).angle.repeat_interleave(rollouts.group, dim=0)
    turn = locate_block(rollouts.imagined).angle - real
    return -torch.atan2(turn.sin(), turn.cos()).abs()


#: Built-in rewards by name.
REWARDS: Mapping[str, BuiltInReward] = {
    "mae": BuiltInReward(_mean_absolute_error, "minus the mean absolute error, 0 to 1"),
    "mse": BuiltInReward(lambda x: -mse(x.imagined, x.real_rows), "minus the mean squared error, 0 to 1"),
    "psnr": BuiltInReward(lambda x: psnr(x.imagined, x.real_rows), "PSNR in dB"),
    "ssim": BuiltInReward(lambda x: ssim(x.imagined, x.real_rows), "SSIM, at most 1; frames of 11 pixels or more"),
    "perceptual": BuiltInReward(_perceptual, "minus LPIPS, or ST-LPIPS without its weights"),
    "repetition": BuiltInReward(
        _repetition, "minus the share of tokens that repeat the frame before, beyond that of the recorded future"
    ),
    "following": BuiltInReward(
        _following,
        "how much likelier the start model finds the tokens under their own actions than under those of another clip, "
        "in nats a token",
    ),
    "block_position": BuiltInReward(_block_position, "PushT: minus the distance of the block in px of 64"),
    "block_angle": BuiltInReward(_block_angle, "PushT: minus the angle between the blocks in rad"),
    "block_shape": BuiltInReward(lambda x: block_shape(x.imagined).score, "PushT: T score of the block, 0 to 1"),
}


class RewardTerm(NamedTuple):
    """A weighted term of a sum.

    Attributes:
        name: of a built-in reward, or ``module:function``.
        weight: its factor.
    """

    name: str
    weight: float


class RewardSum:
    """A weighted sum of rewards; see the top of the module."""

    def __init__(
        self, terms: tuple[RewardTerm, ...], *, network: Network = "vgg", device: torch.device | None = None
    ) -> None:
        """Load what the terms need.

        Args:
            terms: the terms.
            network: of the perceptual distance.
            device: of its weights.

        Raises:
            UserError: there is no such reward or function.
            MissingExtraError: the perceptual distance is not installed.
        """
        self.terms = terms
        self._measures = [_find_measure(term.name, network, device) for term in terms]

    @property
    def needs_following(self) -> bool:
        """True where the rollouts must bring ``following``."""
        return any(term.name == "following" for term in self.terms)

    @torch.no_grad()
    def __call__(self, rollouts: Rollouts) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the reward float32 ``[b f]`` of each frame, and the unweighted value ``[b f]`` of each term by name.

        A function that returns one number a future, ``[b]``, gives it to every frame.

        Raises:
            UserError: a function returns another shape than ``[b]`` or ``[b f]``, or a value that is not finite.
        """
        values, shape = {}, tuple(rollouts.ids.shape[:2])
        for term, measure in zip(self.terms, self._measures, strict=True):
            value = measure(rollouts)
            if tuple(value.shape) not in (shape[:1], shape):
                raise UserError(
                    f"reward {term.name} returned shape {list(value.shape)}; expected [{shape[0]}], one number a "
                    f"future, or {list(shape)}, one a frame"
                )
            if not bool(value.isfinite().all()):
                raise UserError(f"reward {term.name} returned a value that is not finite; expected finite numbers")
            values[term.name] = (value if value.ndim == 2 else value[:, None].expand(shape)).float()
        return sum(term.weight * values[term.name] for term in self.terms), values  # type: ignore[return-value]


def parse_reward(text: str) -> tuple[RewardTerm, ...]:
    """Read a sum such as "perceptual+mae" or "mae+0.5*my_module:my_reward".

    Raises:
        UserError: it is no such sum, or a name occurs twice.
    """
    terms = []
    for part in text.replace(" ", "").split("+"):
        match = re.fullmatch(r"(?:(-?\d*\.?\d+(?:e-?\d+)?)\*)?([A-Za-z_][\w.]*(?::\w+)?)", part)
        if match is None:
            raise UserError(
                f"reward is {text!r}, and {part!r} is no term; expected names with weights, such as perceptual+0.5*mae"
            )
        terms.append(RewardTerm(match[2], float(match[1] or 1)))
    for term in terms:
        if ":" not in term.name and term.name not in REWARDS:
            raise UserError(
                f"there is no reward {term.name!r}; {suggestion(term.name, REWARDS)} (a function of "
                "your own is written module:function)"
            )
        if sum(other.name == term.name for other in terms) > 1:
            raise UserError(f"reward is {text!r}, and {term.name} occurs twice; give it once with its whole weight")
    return tuple(terms)


def _find_measure(name: str, network: Network, device: torch.device | None) -> FrameReward:
    if name == "perceptual":
        return partial(_perceptual, distance=_load_distance(network).to(device or torch.device("cpu")))
    return REWARDS[name].measure if name in REWARDS else _user_reward(name)


def _user_reward(name: str) -> FrameReward:
    """Import ``module:function``, also from the current folder; it is given imagined and recorded frames."""
    module_name, _, function_name = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"reward {name!r} cannot be imported ({error}); expected module:function, with the module in the current "
            "folder or installed"
        ) from error
    return lambda rollouts: function(rollouts.imagined, rollouts.real_rows)


@cache
def _load_distance(network: Network) -> PerceptualDistance:
    return load_perceptual(network=network)
