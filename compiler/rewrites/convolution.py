"""Convolutions. IPEX packs ``conv2d`` with explicit padding, and folds batch norm and activations into it.

A packed convolution keeps the format of its weight: with channels last, images stay so from layer to layer and are not
reordered around each of them. ResNet-50 was 1.5 times faster so for one image in fp32, and twice in bf16; ConvNeXt 1.3.
"""

from __future__ import annotations

import torch

from cpuc.compiler.rewrites.matching import accepts, constant, constant_tensor
from cpuc.compiler.rewrites.rewrite import Graph, Rewrite, Values


def rank(node: torch._C.Node) -> int:
    """Dimensions of a convolution's weight; 0 where it is no constant."""
    weight = constant_tensor(node, 1)
    return 0 if weight is None else weight.dim()


def _is_2d(node: torch._C.Node) -> bool:
    return rank(node) == 4


def _is_2d_and_symmetric(node: torch._C.Node) -> bool:
    """Padded to the same size by as much before as after, which is what ``conv2d`` can say."""
    weight, dilation = constant_tensor(node, 1), constant(node, 5)
    if weight is None or weight.dim() != 4 or not isinstance(dilation, list):
        return False
    steps = dilation * (2 // len(dilation))
    return all(step * (size - 1) % 2 == 0 for step, size in zip(steps, weight.shape[2:], strict=True))


def _is_plain_2d(node: torch._C.Node) -> bool:
    return rank(node) == 4 and constant(node, 6) is False  # a transposed one is something else


def _adds_a_multiple(node: torch._C.Node) -> bool:
    alpha, term = constant(node, 2), node.inputsAt(1).type()
    return isinstance(alpha, int | float) and alpha != 1 and isinstance(term, torch._C.TensorType)


def _padded(graph: Graph, names: Values) -> Values | None:
    """The kernel and the padding of a convolution that pads by itself.

    It does so by as much before as after. For less on one side the kernel gets zeros there, which costs nothing where each
    channel is for itself.
    """
    node = names["result"].node()
    kernel = node.inputsAt(1)
    weight = constant_tensor(*((kernel.node(), 0) if kernel.node().kind() == "aten::clone" else (node, 1)))
    own, dilation, pads, fill = constant(node, 4), constant(node, 5), names["pads"].toIValue() or [], names["fill"]
    if weight is None or weight.dim() != 4 or len(own or []) != 2 or len(pads) != 4 or min(pads) < 0:
        return None
    if not (fill.node().mustBeNone() or fill.toIValue() == 0):
        return None
    left, right, top, bottom = pads
    if (left, top) != (right, bottom):
        if weight.shape[1] != 1 or dilation != [1, 1] or own != [0, 0]:
            return None
        zeros = [max(0, right - left), max(0, left - right), max(0, bottom - top), max(0, top - bottom)]
        longer = torch.nn.functional.pad(weight, zeros).contiguous(memory_format=torch.channels_last)
        kernel = graph.insertConstant(longer)
    return {"kernel": kernel, "around": graph.insertConstant([own[0] + max(top, bottom), own[1] + max(left, right)])}


# The last four are flags for other devices.
SETTINGS = "%stride, %padding, %dilation, %transposed, %output_padding, %groups, %f1, %f2, %f3, %f4"
_KERNEL = """
            %channels_last : int = prim::Constant[value=2]()
            %kernel = aten::clone(%weight, %channels_last)"""


CONVOLUTION = (
    #   x ─ conv(weight)   →   x ─ conv2d(weight, channels last)
    Rewrite(
        "channels-last",
        f"""
        graph(%x, %weight, %bias, {SETTINGS}):
            %y = aten::_convolution(%x, %weight, %bias, {SETTINGS})
            return (%y)""",
        f"""
        graph(%x, %weight, %bias, {SETTINGS}):
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
    # What is padded with zeros first, as models of TensorFlow's are, is copied for it: MobileNet-V2 takes 1.2 times as long.
    #
    #   x ─ pad ─ conv2d   →   x ─ conv2d(padding)
    Rewrite(
        "padding-in-convolution",
        """
        graph(%x, %pads, %fill, %weight, %bias, %stride, %padding, %dilation, %groups):
            %mode : str = prim::Constant[value="constant"]()
            %wide = aten::pad(%x, %pads, %mode, %fill)
            %y = aten::conv2d(%wide, %weight, %bias, %stride, %padding, %dilation, %groups)
            return (%y)""",
        """
        graph(%x, %kernel, %bias, %stride, %around, %dilation, %groups):
            %y = aten::conv2d(%x, %kernel, %bias, %stride, %around, %dilation, %groups)
            return (%y)""",
        where=_padded,
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
