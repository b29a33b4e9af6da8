"""Convolutions of a line, of sound or of tokens: products where one sample wide, and ``conv2d``, which IPEX packs, else."""

from __future__ import annotations

import torch

from cpuc.compiler.rewrites.convolution import SETTINGS, rank
from cpuc.compiler.rewrites.matching import accepts, constant, constant_tensor
from cpuc.compiler.rewrites.rewrite import Graph, Rewrite, Values

# Outputs of a block. For 149 of Wav2Vec2's position embedding in bf16, 16 took 1.11 times as long, 64 1.12.
_BLOCK = 32
# What a block sees is copied, so often as it is seen.
_REACH = 8 * _BLOCK
# A line of samples is an image of height 1.
_AS_2D = """
            %zero : int = prim::Constant[value=0]()
            %one : int = prim::Constant[value=1]()
            %two : int = prim::Constant[value=2]()
            %channels_last : int = prim::Constant[value=2]()
            %image = aten::unsqueeze(%x, %two)
            %flat = aten::unsqueeze(%weight, %two)
            %kernel = aten::clone(%flat, %channels_last)
            %s : int = aten::__getitem__(%stride, %zero)
            %p : int = aten::__getitem__(%padding, %zero)
            %d : int = aten::__getitem__(%dilation, %zero)
            %stride2 : int[] = prim::ListConstruct(%one, %s)
            %padding2 : int[] = prim::ListConstruct(%zero, %p)
            %dilation2 : int[] = prim::ListConstruct(%one, %d)
            %wide = aten::conv2d(%image, %kernel, %bias, %stride2, %padding2, %dilation2, %groups)"""


def _weight(node: torch._C.Node) -> torch.Tensor | None:
    """The weight of a convolution of a line, [outputs, inputs of a group, width], if it is constant."""
    transposed = constant(node, 6) is not False
    return None if transposed or rank(node) != 3 else constant_tensor(node, 1)


def _is_1d(node: torch._C.Node) -> bool:
    return _weight(node) is not None


def _in_blocks(graph: Graph, names: Values) -> Values | None:
    """The sizes of the blocks, for a convolution whose weights oneDNN orders by the length of the line."""
    node = names["result"].node()
    weight, groups = _weight(node), constant(node, 8)
    stride, padding, dilation = (constant(node, i) for i in (3, 4, 5))
    if weight is None or groups == 1 or not (stride and padding and dilation):
        return None
    outputs, inputs, width = weight.shape
    if all(size == 1 or (size % 32 == 0 and size % 48 != 0) for size in (inputs, outputs // groups)):
        return None
    reach = dilation[0] * (width - 1) + 1
    if reach > _REACH * stride[0]:
        return None
    sizes = {
        "kernel": weight.unsqueeze(2).contiguous(memory_format=torch.channels_last),
        "stride2": [1, *stride],
        "padding2": [0, 0],
        "dilation2": [1, *dilation],
        "before": padding[0],
        "around": 2 * padding[0] - reach,
        "stride": stride[0],
        "width": (_BLOCK - 1) * stride[0] + reach,
        "step": _BLOCK * stride[0],
        "count": _BLOCK,
        "up": _BLOCK - 1,
    }
    return {name: graph.insertConstant(value) for name, value in sizes.items()}


def _pointwise(node: torch._C.Node) -> torch.Tensor | None:
    """The weight of a convolution that is one sample wide, [outputs, inputs of a group]."""
    weight, settings = _weight(node), [constant(node, i) for i in (3, 4, 5)]
    wide = weight is None or weight.shape[-1] != 1 or settings != [[1], [0], [1]]
    return None if weight is None or wide else weight.squeeze(-1)


def _dense(graph: Graph, names: Values) -> Values | None:
    node = names["result"].node()
    weight = _pointwise(node)
    return {"dense": graph.insertConstant(weight)} if weight is not None and constant(node, 8) == 1 else None


def _by_group(graph: Graph, names: Values) -> Values | None:
    """A matrix and a vector for each group, and what else its product takes."""
    node = names["result"].node()
    weight, bias, groups = _pointwise(node), constant(node, 2), constant(node, 8)
    if weight is None or not (bias is None or isinstance(bias, torch.Tensor)):
        return None
    outputs, inputs = weight.shape
    values = {
        "weights": weight.view(groups, -1, inputs).transpose(1, 2).contiguous(),
        "biases": (weight.new_zeros(outputs) if bias is None else bias).view(groups, -1),
        "nothing": weight.new_zeros(1, 1, 1),
        "grouped": [-1, groups, inputs],
        "channels": outputs,
    }
    return {name: graph.insertConstant(value) for name, value in values.items()}


def _follows_1d(node: torch._C.Node) -> bool:
    convolution = node.inputsAt(0).node()
    return convolution.kind() == "aten::_convolution" and _is_1d(convolution)


CONVOLUTION_1D = (
    # SqueezeBERT's layers.
    #
    #   x ─ conv1d(width 1)   →   x ─ transpose ─ linear ─ transpose
    Rewrite(
        "pointwise-as-linear",
        f"""
        graph(%x, %weight, %bias, {SETTINGS}):
            %y = aten::_convolution(%x, %weight, %bias, {SETTINGS})
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
    # A convolution takes 0.8 to 1.1 times as long for 128 tokens, and up to 30 times where oneDNN wants its weights otherwise
    # than they were packed; one linear layer with zeros for weights between groups takes three times as long.
    #
    #   x ─ conv1d(width 1, groups)   →   x ─ transpose ─ product for each group ─ add ─ transpose
    Rewrite(
        "grouped-pointwise-as-products",
        f"""
        graph(%x, %weight, %bias, {SETTINGS}):
            %y = aten::_convolution(%x, %weight, %bias, {SETTINGS})
            return (%y)""",
        """
        graph(%x, %weights, %biases, %nothing, %grouped, %channels):
            %zero : int = prim::Constant[value=0]()
            %one : int = prim::Constant[value=1]()
            %two : int = prim::Constant[value=2]()
            %factor : float = prim::Constant[value=1.]()
            %batch : int = aten::size(%x, %zero)
            %length : int = aten::size(%x, %two)
            %rows = aten::transpose(%x, %one, %two)
            %split = aten::reshape(%rows, %grouped)
            %groups = aten::transpose(%split, %zero, %one)
            %products = torch_ipex::bmm_add(%nothing, %groups, %weights, %factor)
            %back = aten::transpose(%products, %zero, %one)
            %outputs = aten::add(%back, %biases, %one)
            %shape : int[] = prim::ListConstruct(%batch, %length, %channels)
            %joined = aten::reshape(%outputs, %shape)
            %y = aten::transpose(%joined, %one, %two)
            return (%y)""",
        where=_by_group,
    ),
    # oneDNN wants the weights of some groups in another order for up to 80 outputs in a line than for more, and brings them
    # there in every call of the other kind: 0.14 s for Wav2Vec2's position embedding in bf16. Blocks are all of one size.
    #
    #   x ─ conv1d(groups)   →   x ─ transpose ─ pad ─ unfold ─ conv2d ─ reshape ─ slice ─ transpose
    Rewrite(
        "grouped-conv1d-in-blocks",
        f"""
        graph(%x, %weight, %bias, {SETTINGS}):
            %y = aten::_convolution(%x, %weight, %bias, {SETTINGS})
            return (%y)""",
        """
        graph(%x, %bias, %groups, %kernel, %stride2, %padding2, %dilation2,
              %before, %around, %stride, %width, %step, %count, %up):
            %zero : int = prim::Constant[value=0]()
            %one : int = prim::Constant[value=1]()
            %two : int = prim::Constant[value=2]()
            %three : int = prim::Constant[value=3]()
            %all : int = prim::Constant[value=-1]()
            %fill : float = prim::Constant[value=0.]()
            %batch : int = aten::size(%x, %zero)
            %channels : int = aten::size(%x, %one)
            %length : int = aten::size(%x, %two)
            %room : int = aten::add(%length, %around)
            %steps : int = aten::floordiv(%room, %stride)
            %outputs : int = aten::add(%steps, %one)
            %rounded : int = aten::add(%outputs, %up)
            %blocks : int = aten::floordiv(%rounded, %count)
            %beyond : int = aten::sub(%blocks, %one)
            %start : int = aten::mul(%beyond, %step)
            %needed : int = aten::add(%start, %width)
            %given : int = aten::add(%length, %before)
            %after : int = aten::sub(%needed, %given)
            %pads : int[] = prim::ListConstruct(%zero, %zero, %before, %after)
            %rows = aten::transpose(%x, %one, %two)
            %padded = aten::constant_pad_nd(%rows, %pads, %fill)
            %windows = aten::unfold(%padded, %one, %width, %step)
            %turned = aten::transpose(%windows, %two, %three)
            %lines : int[] = prim::ListConstruct(%all, %one, %width, %channels)
            %images = aten::reshape(%turned, %lines)
            %order : int[] = prim::ListConstruct(%zero, %three, %one, %two)
            %image = aten::permute(%images, %order)
            %wide = aten::conv2d(%image, %kernel, %bias, %stride2, %padding2, %dilation2, %groups)
            %back : int[] = prim::ListConstruct(%zero, %two, %three, %one)
            %last = aten::permute(%wide, %back)
            %out : int = aten::size(%wide, %one)
            %joint : int[] = prim::ListConstruct(%batch, %all, %out)
            %joined = aten::reshape(%last, %joint)
            %cut = aten::slice(%joined, %one, %zero, %outputs, %one)
            %y = aten::transpose(%cut, %one, %two)
            return (%y)""",
        where=_in_blocks,
    ),
    # IPEX's own conv1d announces on standard error that it will go, once a layer, whenever an artifact is loaded.
    #
    #   x ─ conv1d ─ gelu   →   x ─ unsqueeze ─ conv2d ─ gelu ─ squeeze      GELU stays where IPEX fuses it, but in blocks
    Rewrite(
        "conv1d-gelu-as-2d",
        f"""
        graph(%x, %weight, %bias, {SETTINGS}, %form):
            %line = aten::_convolution(%x, %weight, %bias, {SETTINGS})
            %y = aten::gelu(%line, %form)
            return (%y)""",
        f"""
        graph(%x, %weight, %bias, {SETTINGS}, %form):
            {_AS_2D}
            %active = aten::gelu(%wide, %form)
            %y = aten::squeeze(%active, %two)
            return (%y)""",
        where=accepts(_follows_1d),
    ),
    #   x ─ conv1d   →   x ─ unsqueeze ─ conv2d ─ squeeze
    Rewrite(
        "conv1d-as-2d",
        f"""
        graph(%x, %weight, %bias, {SETTINGS}):
            %y = aten::_convolution(%x, %weight, %bias, {SETTINGS})
            return (%y)""",
        f"""
        graph(%x, %weight, %bias, {SETTINGS}):
            {_AS_2D}
            %y = aten::squeeze(%wide, %two)
            return (%y)""",
        where=accepts(_is_1d),
    ),
)
