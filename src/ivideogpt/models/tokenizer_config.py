"""Shape of a tokenizer, and its conversion from and to the official ``config.json``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ivideogpt.core.config import from_dict
from ivideogpt.core.errors import UserError
from ivideogpt.core.layout import TokenLayout

#: Largest height and width of a frame.
MOST_PIXELS = 4096

_SIZES = (
    "resolution",
    "layers_per_block",
    "latent_channels",
    "context_codes",
    "dynamics_codes",
    "context_frames",
    "patch_size",
    "pixel_unshuffle",
)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Shape of a compressive tokenizer. The defaults are the official 64 px tokenizer.

    Attributes:
        resolution: height and width of a frame in pixels.
        width: width of a frame that is not square; None: the same as ``resolution``.
        block_channels: width of each level of the encoder; each level but the last halves the map.
        layers_per_block: residual blocks of a level (the decoder has one more).
        latent_channels: width of the latent map.
        code_channels: width of a code; None: the same as ``latent_channels``, or the number of ``levels``.
        levels: levels of the numbers of a code (finite scalar quantisation): the codebooks are fixed, and have as many
            codes as the product of the levels. Empty: learned codebooks.
        norm_groups: groups of the group norms; 0: each pixel is normalised over its channels, so that a token does not
            depend on statistics of the whole frame.
        context_codes, dynamics_codes: sizes of the two codebooks.
        context_frames: number of context frames that the cross attention can attend to.
        max_attention_resolution: levels up to this width attend to the context frames.
        patch_size: latent pixels (per side) that share one dynamics token.
        mid_attention: self-attention in the middle of the plain networks (the conditional ones always have it).
        dropout: in cross attention, while training.
        pixel_unshuffle: pixels (per side) that are channels of the first convolution; 1 in the official models.
        conditional: future frames have networks of their own that attend to the context. False: one plain network and
            one codebook serve all frames (``patch_size`` is then 1): for small models that must learn fast.
        background: decoded frames are blended with a fixed picture (the usual background of the data) by a decoded
            mask; a patch that equals the background has a code of its own, whatever is around it. Needs
            ``conditional`` False.
    """

    resolution: int = 64
    width: int | None = None
    block_channels: tuple[int, ...] = (128, 256, 512)
    layers_per_block: int = 2
    latent_channels: int = 64
    code_channels: int | None = None
    levels: tuple[int, ...] = ()
    norm_groups: int = 32
    context_codes: int = 8192
    dynamics_codes: int = 8192
    context_frames: int = 2
    max_attention_resolution: int = 16
    patch_size: int = 4
    mid_attention: bool = False
    dropout: float = 0.1
    pixel_unshuffle: int = 1
    conditional: bool = True
    background: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: a size is out of range, or the sizes do not fit together.
        """
        sizes = {name: getattr(self, name) for name in _SIZES} | {"block_channels": min(self.block_channels, default=0)}
        for name, value in sizes.items():
            if value < 1:
                raise UserError(f"{name} is {value}; expected at least 1")
        for name, pixels in zip(("resolution", "width"), self.frame_size, strict=True):
            if pixels < 1:
                raise UserError(f"{name} is {pixels}; expected at least 1")
            if pixels > MOST_PIXELS:
                raise UserError(f"{name} is {pixels}; expected at most {MOST_PIXELS}")
        if self.code_channels is not None and self.code_channels < 1:
            raise UserError(f"code_channels is {self.code_channels}; expected at least 1, or None")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; expected 0 to below 1")
        if self.norm_groups < 0 or any(width % self.norm_groups for width in self.block_channels if self.norm_groups):
            raise UserError(
                f"norm_groups {self.norm_groups} does not divide block_channels {list(self.block_channels)}"
            )
        factor = self.pixel_unshuffle * 2 ** (len(self.block_channels) - 1)
        for name, pixels in zip(("resolution", "width"), self.frame_size, strict=True):
            if pixels % factor:
                raise UserError(f"{name} {pixels} is not a multiple of {factor}, by which this tokenizer shrinks")
        if any(side % self.patch_size for side in self.context_shape):
            rows, columns = self.context_shape
            raise UserError(f"patch_size {self.patch_size} does not divide the {rows} x {columns} latent map")
        self._check_levels()
        if not self.conditional and (self.patch_size != 1 or self.context_codes != self.dynamics_codes):
            raise UserError("a tokenizer that is not conditional needs patch_size 1 and two codebooks of one size")
        if self.background and self.conditional:
            raise UserError("a tokenizer with a background needs conditional False")

    def _check_levels(self) -> None:
        if not self.levels:
            return
        if min(self.levels) < 2:
            raise UserError(f"levels are {list(self.levels)}; expected at least 2 for each number of a code")
        if self.code_channels not in (None, len(self.levels)):
            raise UserError(f"code_channels is {self.code_channels}; expected {len(self.levels)}, as there are levels")
        if not self.context_codes == self.dynamics_codes == math.prod(self.levels):
            raise UserError(
                f"context_codes is {self.context_codes} and dynamics_codes {self.dynamics_codes}; expected "
                f"{math.prod(self.levels)}, the product of the levels"
            )
        if self.background:
            raise UserError("a tokenizer with a background has learned codes; leave levels empty")

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        return self.resolution, self.width if self.width is not None else self.resolution

    @property
    def context_shape(self) -> tuple[int, int]:
        """Rows and columns of the grid of context tokens, which is the latent map."""
        factor = self.pixel_unshuffle * 2 ** (len(self.block_channels) - 1)
        height, width = self.frame_size
        return height // factor, width // factor

    @property
    def dynamics_shape(self) -> tuple[int, int]:
        """Rows and columns of the grid of dynamics tokens."""
        rows, columns = self.context_shape
        return rows // self.patch_size, columns // self.patch_size

    @property
    def context_grid(self) -> int:
        """Rows of the grid of context tokens; its side where frames are square."""
        return self.context_shape[0]

    @property
    def dynamics_grid(self) -> int:
        """Rows of the grid of dynamics tokens; its side where frames are square."""
        return self.dynamics_shape[0]

    @property
    def code_width(self) -> int:
        """Width of a code."""
        return len(self.levels) or self.code_channels or self.latent_channels

    @property
    def layout(self) -> TokenLayout:
        """The layout of the token sequence."""
        return TokenLayout(
            context_tokens=math.prod(self.context_shape),
            dynamics_tokens=math.prod(self.dynamics_shape),
            context_codes=self.context_codes,
            dynamics_codes=self.dynamics_codes,
        )

    @property
    def unofficial_options(self) -> tuple[str, ...]:
        """Options that the official code cannot read, in words; empty if it reads everything."""
        (rows, columns), (dynamics_rows, dynamics_columns) = self.context_shape, self.dynamics_shape
        is_usual = (rows, columns, dynamics_rows, dynamics_columns) == (16, 16, 4, 4)
        options = {
            f"grids of {rows} x {columns} and {dynamics_rows} x {dynamics_columns} tokens": not is_usual,
            "finite scalar quantisation": bool(self.levels),
            "one network for all frames": not self.conditional,
            "pixels as channels": self.pixel_unshuffle != 1,
            "channel norms": not self.norm_groups,
            "a background": self.background,
        }
        return tuple(name for name, is_used in options.items() if is_used)

    @property
    def is_official(self) -> bool:
        """True where the official code can read it: a 16x16 latent map, 4x4 dynamics tokens and no option of ours."""
        return not self.unofficial_options

    def to_official(self) -> dict[str, Any]:
        """Return the fields of an official ``tokenizer/config.json``, with those options of ours that are used."""
        levels = len(self.block_channels)
        values: dict[str, Any] = {
            "_class_name": "CompressiveVQModel",
            "_diffusers_version": "0.27.2",
            "act_fn": "silu",
            "block_out_channels": list(self.block_channels),
            "context_length": self.context_frames,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "force_upcast": True,
            "in_channels": 3,
            "latent_channels": self.latent_channels,
            "layers_per_block": self.layers_per_block,
            "lookup_from_codebook": True,
            "max_att_resolution": self.max_attention_resolution,
            "mid_block_add_attention": self.mid_attention,
            "norm_num_groups": self.norm_groups,
            "norm_type": "group",
            "num_dyn_embeddings": self.dynamics_codes,
            "num_vq_embeddings": self.context_codes,
            "out_channels": 3,
            "patch_size": self.patch_size,
            "resolution": self.resolution,
            "sample_size": 32,
            "scaling_factor": 0.18215,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "vq_embed_dim": self.code_channels,
        }
        for name in ("dropout", "pixel_unshuffle", "conditional", "background", "width"):
            if getattr(self, name) != getattr(TokenizerConfig, name):
                values[name] = getattr(self, name)
        if self.levels:
            values |= {"_class_name": _FSQ_CLASSES[self.conditional], "width": self.frame_size[1]}
            fields = ("vq_fsq_levels", "dyn_fsq_levels") if self.conditional else ("fsq_levels",)
            values |= {name: list(self.levels) for name in fields}
        return values

    @classmethod
    def from_official(cls, values: dict[str, Any]) -> TokenizerConfig:
        """Read the fields of a ``tokenizer/config.json``, with the official defaults for missing ones.

        Raises:
            UserError: it describes another kind of model.
        """
        kind = values.get("_class_name") or values.get("model_type") or "no known class"
        is_finite = kind in _FSQ_CLASSES.values()
        if "num_dyn_embeddings" not in values and not is_finite:
            raise UserError(
                f"this config.json describes {kind}, not a compressive tokenizer: num_dyn_embeddings is missing"
            )
        expected = {"norm_type": "group", "act_fn": "silu", "in_channels": 3, "out_channels": 3}
        for name, value in expected.items():
            if values.get(name, value) != value:
                raise UserError(f"tokenizer option {name}={values[name]!r} is not supported; expected {value!r}")
        official = {**_OFFICIAL_DEFAULTS, **{name: values[name] for name in _OFFICIAL_NAMES.values() if name in values}}
        if is_finite:
            official |= _finite_scalars(values)
        ours = {name: official[field] for name, field in _OFFICIAL_NAMES.items() if field in official}
        return from_dict(cls, ours, where="tokenizer/config.json")


#: Official classes of tokenizers with finite scalars, by ``conditional``.
_FSQ_CLASSES = {True: "CompressiveVQModelFSQ", False: "CNNFSQModel256"}
#: Levels that RLVR-World writes as a number of bits; its source has more of them, which no released tokenizer uses.
_FSQ_LEVELS = {12: [7, 5, 5, 5, 5]}


def _finite_scalars(values: dict[str, Any]) -> dict[str, Any]:
    """Return the official fields that follow from those of a tokenizer of RLVR-World.

    Its files do not say that frames are 5/4 as wide as high: the source code does.

    Raises:
        UserError: levels that we cannot represent.
    """
    is_conditional = values["_class_name"] == _FSQ_CLASSES[True]
    fields = ("vq_fsq_levels", "dyn_fsq_levels") if is_conditional else ("fsq_levels",)
    levels = [values.get(name, 12) for name in fields]
    levels = [_FSQ_LEVELS.get(value) if isinstance(value, int) else value for value in levels]
    if levels[0] is None or levels[0] != levels[-1]:
        raise UserError(
            f"the tokenizer has {' and '.join(f'{name}={values.get(name)!r}' for name in fields)}; expected one list "
            "of levels for all codes, or 12, which stands for 7, 5, 5, 5, 5"
        )
    codes, resolution = math.prod(levels[0]), values.get("resolution", 256)
    fields = {"levels": levels[0], "num_vq_embeddings": codes, "num_dyn_embeddings": codes, "vq_embed_dim": None}
    fields |= {"conditional": is_conditional, "width": values.get("width", resolution * 5 // 4)}
    if not is_conditional:
        defaults = {"block_out_channels": [128, 256, 256, 512, 768], "layers_per_block": 2, "latent_channels": 64}
        fields |= {name: values.get(name, value) for name, value in defaults.items()}
        fields |= {"mid_block_add_attention": True, "patch_size": 1, "context_length": values.get("context_length", 4)}
    return fields


# Our names and the official ones; from dropout on they are options of ours, written only where they are used.
_OFFICIAL_NAMES = {
    "resolution": "resolution",
    "block_channels": "block_out_channels",
    "layers_per_block": "layers_per_block",
    "latent_channels": "latent_channels",
    "code_channels": "vq_embed_dim",
    "norm_groups": "norm_num_groups",
    "context_codes": "num_vq_embeddings",
    "dynamics_codes": "num_dyn_embeddings",
    "context_frames": "context_length",
    "max_attention_resolution": "max_att_resolution",
    "patch_size": "patch_size",
    "mid_attention": "mid_block_add_attention",
    "dropout": "dropout",
    "pixel_unshuffle": "pixel_unshuffle",
    "conditional": "conditional",
    "background": "background",
    "width": "width",
    "levels": "levels",
}
# Defaults of the official class that differ from ours.
_OFFICIAL_DEFAULTS = {
    "resolution": 256,
    "block_out_channels": [64],
    "layers_per_block": 1,
    "latent_channels": 3,
    "num_vq_embeddings": 256,
    "max_att_resolution": 32,
    "mid_block_add_attention": True,
}
