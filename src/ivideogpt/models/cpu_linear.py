"""Linear layers that multiply with a copy of their weight, reordered or rounded for this CPU, in inference mode.

While a model imagines on a CPU, nearly all its time goes into reading weights for one or few positions. PyTorch's own
product uses one core for one position, and on AMD processors half of their speed for many; that of oneDNN, from weights
that were reordered once, is two to three times as fast (docs/performance.md). Weights of 8 bits are read four times as
fast again but are less exact, so they are used only on request.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.core.errors import UserError
from ivideogpt.models.weight_cache import WeightCache

Product = Callable[[Tensor], Tensor]

#: Positions that the weights are reordered for: good for one, and for hundreds (measured).
PACKED_POSITIONS = 16
#: Weights up to this size stay in a core's cache: for a single position the plain product is the fastest.
SMALL_BYTES = 2**20
_INT8 = 127


class Projection(nn.Linear):
    """A linear layer without bias that may multiply with a copy of its weight.

    In inference mode on a CPU the copy is made at first use, and again when the weight has changed. Training, other
    devices and other modes use the weight itself.

    Attributes:
        int8: in inference mode on a CPU the weight is rounded to 8 bits with a scale for each row, and the input to 8
            bits, or to twice 7, with a scale for each call.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        """Create the weight; the module that holds the layer initialises it."""
        super().__init__(in_features, out_features, bias=False)
        self.int8 = False
        self._products: WeightCache[Product] = WeightCache()

    def forward(self, x: Tensor, rows: range | None = None) -> Tensor:
        """Multiply ``[... in_features]`` with the weight.

        Args:
            x: of the weight's dtype.
            rows: only these rows of the weight; None: all.

        Returns:
            ``[... out_features]``, or ``[... len(rows)]``.
        """
        if self._may_copy(x):
            return self._products.get(self.weight, (rows, self.int8), lambda weight: self._product(weight, rows))(x)
        return F.linear(x, self.weight if rows is None else self.weight[rows.start : rows.stop])

    def _may_copy(self, x: Tensor) -> bool:
        if not torch.is_inference_mode_enabled() or x.device.type != "cpu":
            return False
        if self.int8:
            return x.dtype == torch.float32
        if x.dtype not in _packed_dtypes():
            return False
        single = x.numel() == x.shape[-1]
        return not (single and self.weight.numel() * self.weight.element_size() <= SMALL_BYTES)

    def _product(self, weight: Tensor, rows: range | None) -> Product:
        weight = weight if rows is None else weight[rows.start : rows.stop]
        return int8_product(weight) if self.int8 else packed_product(weight)


def packed_product(weight: Tensor) -> Product:
    """Return the product with ``weight`` ``[out in]``, reordered for oneDNN; equal up to rounding."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_POSITIONS)
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, packed, None, "none", [], "")


def int8_product(weight: Tensor) -> Product:
    """Return the product with ``weight`` float32 ``[out in]`` rounded to 8 bits.

    Where sums of products overflow, inputs may have 7 bits only, which errs by several percent where a few inputs are
    much larger than the others; there a second product adds the remainder of that rounding (docs/decisions.md).
    """
    scales = (weight.abs().amax(dim=1) / _INT8).clamp(min=torch.finfo(torch.float32).tiny).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch plans to move quantised tensors to another package
        zeros = torch.zeros(len(weight), dtype=torch.long)
        rounded = torch.quantize_per_channel(weight.contiguous(), scales, zeros, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(rounded, None)
    multiply = torch.ops.quantized.linear_dynamic
    if _sums_without_overflow():
        return lambda x: multiply(x, packed, False)

    def in_two_parts(x: Tensor) -> Tensor:
        if not x.numel():  # has no largest and smallest
            return multiply(x, packed, True)
        coarse = torch.quantize_per_tensor_dynamic(x, torch.quint8, True).dequantize()
        return multiply(x, packed, True).add_(multiply(x - coarse, packed, True))

    return in_two_parts


def set_int8(module: nn.Module, on: bool = True) -> None:
    """Switch 8-bit products in inference mode on or off for all projections of ``module``.

    Raises:
        UserError: the weights or the processor do not allow it.
    """
    projections = [part for part in module.modules() if isinstance(part, Projection)]
    for part in projections if on else []:
        weight = part.weight
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            name = str(weight.dtype).removeprefix("torch.")
            raise UserError(
                f"int8 was asked for with weights of {name} on {weight.device.type}; "
                "expected float32 on a CPU, which it starts from; leave int8 out, or use the CPU"
            )
        if not hasattr(torch.ops.quantized, "linear_dynamic") or torch.backends.quantized.engine == "none":
            raise UserError(f"PyTorch {torch.__version__} has no products of 8 bits on this processor; leave int8 out")
    for part in projections:
        part.int8 = on


@functools.cache
def _packed_dtypes() -> tuple[torch.dtype, ...]:
    """Return the types whose products oneDNN has: none without it, bfloat16 only where the processor computes in it."""
    try:
        x = torch.ones(2, 8)
        if not torch.equal(packed_product(x)(x), F.linear(x, x)):
            return ()
        native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):
        return ()
    return (torch.float32, torch.bfloat16) if native else (torch.float32,)


@functools.cache
def _sums_without_overflow() -> bool:
    """Return whether products of 8 bits are added without loss: x86 without VNNI adds pairs of them in 16 bits.

    It is measured, because settings such as ATEN_CPU_CAPABILITY do not decide which kernel fbgemm takes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rounded = torch.quantize_per_tensor(torch.ones(8, 64), 1 / _INT8, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(rounded, None)
    return bool((torch.ops.quantized.linear_dynamic(torch.ones(1, 64), packed, False) > 63).all())
