"""Convolutions. IPEX packs ``conv2d`` with explicit padding, and folds batch norm and activations into it.

A packed convolution keeps the format of its weight: with channels last, images stay so from layer to layer and are not
reordered around each of them. ResNet-50 was 1.5 times faster so for one image in fp32, and twice in bf16; ConvNeXt 1.3.
"""

from __future__ import annotations

import torch

from cpuc.compiler.rewrites.matching import accepts, constant, constant_tensor
from cpuc.compiler.rewrites.rewrite import Graph, Rewrite, Values


def _rank(node: torch._C.Node) -> int:
    """Dimensions of a convolution's weight; 0 where it is no constant."""
    weight = constant_tensor(node, 1)
    return 0 if weight is None else weight.dim()


def _is_2d(node: torch._C.Node) -> bool:
    return _rank(node) == 4


def _is_2d_and_symmetric(node: torch._C.Node) -> bool:
    """Padded to the same size by as much before as after, which is what ``conv2d`` can say."""
    weight, dilation = constant_tensor(node, 1), constant(node, 5)
    if weight is None or weight.dim() != 4 or not isinstance(dilation, list):
        return False
    steps = dilation * (2 // len(dilation))
    return all(step * (size - 1) % 2 == 0 for step, size in zip(steps, weight.shape[2:], strict=True))


def _is_plain_2d(node: torch._C.Node) -> bool:
    return _rank(node) == 4 and constant(node, 6) is False  # a transposed one is something else


def _is_1d(node: torch._C.Node) -> bool:
    return _rank(node) == 3 and constant(node, 6) is False


def _is_grouped_1d(node: torch._C.Node) -> bool:
    groups = constant(node, 8)
    return isinstance(groups, int) and groups > 1 and _is_1d(node)


def _dense(graph: Graph, names: Values) -> Values | None:
    """The weight of a linear layer that does what a convolution of width 1 does, to all channels or to groups of them."""
    node = names["result"].node()
    if not _is_1d(node) or [constant(node, i) for i in (3, 4, 5)] != [[1], [0], [1]]:
        return None
    weight = constant_tensor(node, 1)
    if weight is None or weight.shape[-1] != 1:
        return None
    return {"dense": graph.insertConstant(torch.block_diag(*weight.squeeze(-1).chunk(constant(node, 8))))}


def _follows_1d(node: torch._C.Node) -> bool:
    convolution = node.inputsAt(0).node()
    return convolution.kind() == "aten::_convolution" and _is_1d(convolution)


def _adds_a_multiple(node: torch._C.Node) -> bool:
    alpha, term = constant(node, 2), node.inputsAt(1).type()
    return isinstance(alpha, int | float) and alpha != 1 and isinstance(term, torch._C.TensorType)


# The last four are flags for other devices.
_SETTINGS = "%stride, %padding, %dilation, %transposed, %output_padding, %groups, %f1, %f2, %f3, %f4"
_KERNEL = """
            %channels_last : int = prim::Constant[value=2]()
            %kernel = aten::clone(%weight, %channels_last)"""


def _as_2d(memory_format: int = 2) -> str:
    """A line of samples is an image of height 1. The format of the weight is 2, channels last, or 0, the sound's too."""
    image = "%image = aten::unsqueeze(%x, %two)"
    if memory_format == 0:
        image = "%line = aten::unsqueeze(%x, %two)\n            %image = aten::contiguous(%line, %format)"
    return f"""
            %zero : int = prim::Constant[value=0]()
            %one : int = prim::Constant[value=1]()
            %two : int = prim::Constant[value=2]()
            %format : int = prim::Constant[value={memory_format}]()
            {image}
            %flat = aten::unsqueeze(%weight, %two)
            %kernel = aten::clone(%flat, %format)
            %s : int = aten::__getitem__(%stride, %zero)
            %p : int = aten::__getitem__(%padding, %zero)
            %d : int = aten::__getitem__(%dilation, %zero)
            %stride2 : int[] = prim::ListConstruct(%one, %s)
            %padding2 : int[] = prim::ListConstruct(%zero, %p)
            %dilation2 : int[] = prim::ListConstruct(%one, %d)
            %wide = aten::conv2d(%image, %kernel, %bias, %stride2, %padding2, %dilation2, %groups)"""


CONVOLUTION = (
    #   x ─ conv(weight)   →   x ─ conv2d(weight, channels last)
    Rewrite(
        "channels-last",
        f"""
        graph(%x, %weight, %bias, {_SETTINGS}):
            %y = aten::_convolution(%x, %weight, %bias, {_SETTINGS})
            return (%y)""",
        f"""
        graph(%x, %weight, %bias, {_SETTINGS}):
            {_KERNEL}
            %y = aten::conv2d(%x, %kernel, %bias, %stride, %padding, %dilation, %groups)
            return (%y)""",
        where=accepts(_is_plain_2d),
    ),
    # A padding that has a name is a form that IPEX does not know.
    #
    #   x ─ conv(padding="valid")   →   x ─ conv2d(padding=[0, 0])
    Rewrite(
        "valid-padding",
        """
        graph(%x, %weight, %bias, %stride, %dilation, %groups):
            %mode : str = prim::Constant[value="valid"]()
            %y = aten::_convolution_mode(%x, %weight, %bias, %stride, %mode, %dilation, %groups)
            return (%y)""",
        f"""
        graph(%x, %weight, %bias, %stride, %dilation, %groups):
            {_KERNEL}
            %padding : int[] = prim::Constant[value=[0, 0]]()
            %y = aten::conv2d(%x, %kernel, %bias, %stride, %padding, %dilation, %groups)
            return (%y)""",
        where=accepts(_is_2d),
    ),
    #   x ─ conv(padding="same")   →   x ─ conv2d(padding=dilation · (kernel - 1) / 2)
    Rewrite(
        "same-padding",
        """
        graph(%x, %weight, %bias, %stride, %dilation, %groups):
            %mode : str = prim::Constant[value="same"]()
            %y = aten::_convolution_mode(%x, %weight, %bias, %stride, %mode, %dilation, %groups)
            return (%y)""",
        f"""
        graph(%x, %weight, %bias, %stride, %dilation, %groups):
            %first : int = prim::Constant[value=0]()
            %last : int = prim::Constant[value=-1]()
            %one : int = prim::Constant[value=1]()
            %two : int = prim::Constant[value=2]()
            %height : int = aten::size(%weight, %two)
            %width : int = aten::size(%weight, %last)
            %h : int = aten::sub(%height, %one)
            %w : int = aten::sub(%width, %one)
            %down : int = aten::__getitem__(%dilation, %first)
            %across : int = aten::__getitem__(%dilation, %last)
            %rows : int = aten::mul(%h, %down)
            %columns : int = aten::mul(%w, %across)
            %top : int = aten::floordiv(%rows, %two)
            %left : int = aten::floordiv(%columns, %two)
            {_KERNEL}
            %padding : int[] = prim::ListConstruct(%top, %left)
            %y = aten::conv2d(%x, %kernel, %bias, %stride, %padding, %dilation, %groups)
            return (%y)""",
        where=accepts(_is_2d_and_symmetric),
    ),
    # SqueezeBERT's layers. Those of four groups have four times the weights as one linear layer, most of them zero, and are
    # much faster all the same: in bf16 what follows took ten times as long.
    #
    #   x ─ conv1d(width 1)   →   x ─ transpose ─ linear(block diagonal) ─ transpose
    Rewrite(
        "pointwise-as-linear",
        f"""
        graph(%x, %weight, %bias, {_SETTINGS}):
            %y = aten::_convolution(%x, %weight, %bias, {_SETTINGS})
            return (%y)""",
        """
        graph(%x, %dense, %bias):
            %one : int = prim::Constant[value=1]()
            %two : int = prim::Constant[value=2]()
            %rows = aten::transpose(%x, %one, %two)
            %outputs = aten::linear(%rows, %dense, %bias)
            %y = aten::transpose(%outputs, %one, %two)
            return (%y)""",
        where=_dense,
    ),
    # IPEX's own conv1d announces on standard error that it will go, once a layer, whenever an artifact is loaded.
    #
    #   x ─ conv1d ─ gelu   →   x ─ unsqueeze ─ conv2d ─ gelu ─ squeeze      the GELU stays where IPEX fuses it
    Rewrite(
        "conv1d-gelu-as-2d",
        f"""
        graph(%x, %weight, %bias, {_SETTINGS}, %form):
            %line = aten::_convolution(%x, %weight, %bias, {_SETTINGS})
            %y = aten::gelu(%line, %form)
            return (%y)""",
        f"""
        graph(%x, %weight, %bias, {_SETTINGS}, %form):
            {_as_2d()}
            %active = aten::gelu(%wide, %form)
            %y = aten::squeeze(%active, %two)
            return (%y)""",
        where=accepts(_follows_1d),
    ),
    # For groups of channels, oneDNN wants channels-last weights in another order for short sounds than for long ones, and
    # brings them there in every call of the other kind: 0.14 s for Wav2Vec2's position embedding in bf16, instead of 6 ms.
    # With both as they are it takes 15 ms for any length.
    #
    #   x ─ conv1d(groups)   →   x ─ unsqueeze ─ contiguous ─ conv2d ─ squeeze
    Rewrite(
        "grouped-conv1d-as-2d",
        f"""
        graph(%x, %weight, %bias, {_SETTINGS}):
            %y = aten::_convolution(%x, %weight, %bias, {_SETTINGS})
            return (%y)""",
        f"""
        graph(%x, %weight, %bias, {_SETTINGS}):
            {_as_2d(0)}
            %y = aten::squeeze(%wide, %two)
            return (%y)""",
        where=accepts(_is_grouped_1d),
    ),
    #   x ─ conv1d   →   x ─ unsqueeze ─ conv2d ─ squeeze
    Rewrite(
        "conv1d-as-2d",
        f"""
        graph(%x, %weight, %bias, {_SETTINGS}):
            %y = aten::_convolution(%x, %weight, %bias, {_SETTINGS})
            return (%y)""",
        f"""
        graph(%x, %weight, %bias, {_SETTINGS}):
            {_as_2d()}
            %y = aten::squeeze(%wide, %two)
            return (%y)""",
        where=accepts(_is_1d),
    ),
    # What IPEX calls a bottleneck forgets the factor of its sum: see below.
    #
    #   x, y ─ add(alpha)   →   x, y · alpha ─ add
    Rewrite(
        "sum-without-factor",
        """
        graph(%x, %y, %alpha):
            %z = aten::add(%x, %y, %alpha)
            return (%z)""",
        """
        graph(%x, %y, %alpha):
            %one : int = prim::Constant[value=1]()
            %term = aten::mul(%y, %alpha)
            %z = aten::add(%x, %term, %one)
            return (%z)""",
        where=accepts(_adds_a_multiple),
    ),
)

# After fusion: IPEX runs a block of ResNet as one operator, which takes its activations from the packed weights. They are
# not saved with them: loaded again, the block would compute something else.
BOTTLENECKS = (
    #   x ─ bottleneck(a, b, c)   →   x ─ relu(conv a) ─ relu(conv b) ─ relu(conv c + x)
    Rewrite(
        "bottleneck",
        """
        graph(%x, %a, %b, %c):
            %y = ipex_prepack::convolution_bottleneck_run(%x, %a, %b, %c)
            return (%y)""",
        """
        graph(%x, %a, %b, %c):
            %one : int = prim::Constant[value=1]()
            %narrow = ipex_prepack::convolution_relu_run(%x, %a)
            %inner = ipex_prepack::convolution_relu_run(%narrow, %b)
            %y = ipex_prepack::convolution_add_relu_run(%inner, %x, %one, %c)
            return (%y)""",
    ),
    #   x ─ bottleneck(a, b, s, c)   →   x ─ relu(conv a) ─ relu(conv b) ─ relu(conv c + conv s (x))
    Rewrite(
        "bottleneck-with-projection",
        """
        graph(%x, %a, %b, %s, %c):
            %y = ipex_prepack::convolution_bottleneck_run(%x, %a, %b, %s, %c)
            return (%y)""",
        """
        graph(%x, %a, %b, %s, %c):
            %one : int = prim::Constant[value=1]()
            %narrow = ipex_prepack::convolution_relu_run(%x, %a)
            %inner = ipex_prepack::convolution_relu_run(%narrow, %b)
            %shortcut = ipex_prepack::convolution_run(%x, %s)
            %y = ipex_prepack::convolution_add_relu_run(%inner, %shortcut, %one, %c)
            return (%y)""",
    ),
)
