"""Outliers of single neurons: copies of a neuron with lower biases give what it has above the range of the others.

    uint8(gelu(x · w + b)) · v   →   uint8(gelu(x · [w w w …] + [b, b - c, b - 2c, …])) · [v v v …]

Rounding to uint8 cuts each copy off at c, so that together they give up to n · c: of ReLU exactly, of GELU but for up to 0.17
around each multiple of c, if that is 2 or more. Of BERT's family, one to four of the neurons between a block's two last layers
give several times what all others do, for separators. The range is then that of the others, and no value is lost.

Which copies there are stands with how the layer that reads them is computed: without its rounding they would be wrong. It is
outlier channel splitting (Zhao et al., 2019) across an activation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812

from cpuc.compiler.quantization.rounding import Weight

ACTIVATED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"aten::gelu": F.gelu, "aten::relu": F.relu}
# Of GELU, several copies with lower limits give too little below the first of them.
_LEAST = {"aten::gelu": 2.0, "aten::relu": 0.0}
# Values that were not observed may be larger by this.
_MARGIN = 1.1
# For so many neurons there may be one copy. oneDNN's layers of 384 and 1536 channels take 1.02 to 1.06 times as long for 16 or
# 32 more channels (EPYC, Zen 4), and those in bfloat16 1.9 times as long.
_NEURONS_EACH = 128


@dataclass(frozen=True, eq=False)
class Split:
    """The neurons that a layer reads, after it has been given copies of some.

    Attributes:
        sources: int64 [wide], of which neuron each is a copy; the first are the neurons themselves.
        shifts: float32 [wide], what is subtracted from the bias of each.
        read: bool [wide], whether it is read. Others stand between copies, because weights of neighbours limit each other
            (`rounding`), or fill the last block.
        limit: what each gives at most.
        activation: of torch, that the neurons have.
    """

    sources: torch.Tensor
    shifts: torch.Tensor
    read: torch.Tensor
    limit: float
    activation: str

    def filled(self, block: int) -> Split:
        """The same with as many as whole blocks have."""
        missing = -len(self.sources) % block
        sources, shifts, read = (F.pad(each, (0, missing)) for each in (self.sources, self.shifts, self.read))
        return dataclasses.replace(self, sources=sources, shifts=shifts, read=read)

    def widened(self, x: torch.Tensor) -> torch.Tensor:
        """The neurons' outputs [..., in] with about those of the copies, not cut off yet: [..., wide].

        What went into an activation is known of what is positive, but for GELU's curve near zero; elsewhere copies give next to
        nothing.
        """
        own = x.shape[-1]
        source = x[..., self.sources[own:]]
        copies = ACTIVATED[self.activation](source - self.shifts[own:]) * (source > 0)
        return torch.cat([x, copies], -1)

    def columns(self, weight: Weight) -> Weight:
        """The weight of the layer that reads them."""
        return Weight(weight.values[:, self.sources] * self.read, weight.scales)

    def rows(self, weight: Weight) -> Weight:
        """The weight of the layer whose outputs they are."""
        return Weight(weight.values[self.sources], weight.scales[self.sources])

    def biases(self, bias: torch.Tensor | None) -> torch.Tensor:
        """The biases of that layer."""
        return (0.0 if bias is None else bias[self.sources]) - self.shifts


def split(highest: torch.Tensor, activation: str) -> Split | None:
    """The copies for the narrowest range that needs few of them; None if there is none.

    Args:
        highest: float32 [in], the largest value of each neuron that was observed.
        activation: a key of `ACTIVATED`.
    """
    peaks, count = highest * _MARGIN, len(highest)
    most = count // _NEURONS_EACH
    for limit in peaks.topk(min(most + 2, count)).values.flip(0).tolist()[:-1]:
        if limit <= _LEAST[activation]:
            continue
        copies = ((peaks / limit).ceil() - 1).clamp(min=0)
        if 0 < copies.sum() <= most:
            break
    else:
        return None
    neurons = torch.arange(count).repeat_interleave(copies.long())
    start = count + count % 2
    wide = start + 2 * len(neurons)
    places = torch.arange(start, start + 2 * len(neurons), 2)
    sources, shifts, read = torch.zeros(wide, dtype=torch.int64), torch.zeros(wide), torch.arange(wide) < count
    sources[:count] = torch.arange(count)
    sources[places], read[places] = neurons, True
    shifts[places] = limit * torch.cat([torch.arange(1, n + 1) for n in copies.long().tolist()])
    return Split(sources, shifts, read, limit, activation)
