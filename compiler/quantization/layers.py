"""The linear layers of a graph, each behind a placeholder whose computation can be changed while the graph stays.

The placeholder is an operator of our own, known to this process only: observing, simulating and fusing all run the same
graph. IPEX's passes do not know it and leave it alone; had they met `aten::quantize_per_tensor`, they would have handed the
graph to oneDNN Graph, whose partitions cannot be saved.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cpuc.compiler.rewrites.matching import constant_tensor, is_constant
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value

PLACEHOLDER = "cpuc::linear"
# What oneDNN's operator for layers in int8 does in the same pass; FBGEMM's does the second of them.
ACTIVATIONS = ("aten::gelu", "aten::relu")
ATTENTION = "aten::scaled_dot_product_attention"
MOVES = tuple(
    f"aten::{move}"
    for move in ("view", "reshape", "transpose", "permute", "contiguous", "flatten", "unflatten", "unsqueeze", "squeeze")
)
Compute = Callable[[torch.Tensor], torch.Tensor]


@dataclass(eq=False)
class Layer:
    """A linear layer: `weight` [out, in] and `bias` [out] are float32.

    Attributes:
        compute: what the placeholder does; by default the layer itself.
    """

    name: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    compute: Compute = field(init=False)

    def __post_init__(self) -> None:
        self.compute = self.exact

    def exact(self, x: torch.Tensor) -> torch.Tensor:
        """The layer in float32: x [..., in] → [..., out]."""
        return torch.nn.functional.linear(x, self.weight, self.bias)


@dataclass(eq=False)
class Group:
    """Layers that read the same tensor, which is therefore quantised once.

    Attributes:
        activation: that gives the tensor, if it is one that the operator of another layer does: it may come in int8 from there.
        free: whether what makes it can take factors in, see `smoothing`: attention, or a norm that only layers read.
        maker: the layer that the activation belongs to, if nothing but the only layer of this group reads what the two give.
    """

    activation: str | None
    layers: list[Layer] = field(default_factory=list)
    free: bool = False
    maker: Layer | None = None


_numbers = itertools.count()
_layers: weakref.WeakValueDictionary[int, Layer] = weakref.WeakValueDictionary()
_library = torch.library.Library("cpuc", "DEF")
_library.define("linear(Tensor x, int layer) -> Tensor")
_raised = threading.local()


def _run_layer(x: torch.Tensor, number: int) -> torch.Tensor:
    try:
        return _layers[number].compute(x)
    except BaseException as error:
        _raised.error = error
        raise


_library.impl("linear", _run_layer, "CompositeExplicitAutograd")


@contextlib.contextmanager
def calling() -> Iterator[None]:
    """Around every call of a graph with placeholders: what a layer raised, Ctrl-C too, comes out as what it was.

    The interpreter turns all of it into RuntimeError.
    """
    _raised.error = None
    try:
        yield
    except RuntimeError:
        if _raised.error is not None:
            raise _raised.error from None
        raise
    finally:
        _raised.error = None


class Network:
    """A graph whose linear layers are placeholders.

    Args:
        graph: of a frozen module; changed in place. Its first input is the module.
        weights: the model's own tensors by name, from which layers take theirs.
    """

    def __init__(self, graph: Graph, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.graph = graph
        self.groups: list[Group] = []
        self._numbers: dict[int, Layer] = {}
        self._uses: Counter[str] = Counter()
        named = {key: name for name, tensor in weights if tensor.dim() == 2 for key in _keys(tensor)}
        groups: dict[int, Group] = {}
        made: dict[int, Value] = {}
        for node in graph.findAllNodes("aten::linear"):
            if not _is_layer(node):
                continue
            layer = self._replace(node, named)
            read = node.inputsAt(0)
            shared = read.unique()
            if shared not in groups:
                kind = read.node().kind()
                groups[shared] = Group(kind if kind in ACTIVATIONS else None)
                self.groups.append(groups[shared])
                made[shared] = read
            groups[shared].layers.append(layer)
            node.destroy()
        for shared, group in groups.items():
            group.maker = self._maker(made[shared]) if group.activation else None
            group.free = _is_free(made[shared])

    def _replace(self, node: Node, named: dict[tuple[Any, ...], str]) -> Layer:
        weight, bias = constant_tensor(node, 1), constant_tensor(node, 2)
        assert weight is not None
        number = next(_numbers)
        name = named.get(_key(weight), f"linear {len(self._numbers) + 1}")
        uses = self._uses[name] = self._uses[name] + 1  # layers may share weights
        layer = Layer(f"{name} (use {uses})" if uses > 1 else name, weight.float(), None if bias is None else bias.float())
        self._numbers[number] = _layers[number] = layer
        with self.graph.insert_point_guard(node):
            index = self.graph.insertConstant(number)
            new = self.graph.insertNode(self.graph.create(PLACEHOLDER, [node.inputsAt(0), index], 1))
        node.output().replaceAllUsesWith(new.output())
        return layer

    def _maker(self, activated: Value) -> Layer | None:
        """The layer that an activation belongs to, if each of the two has one reader, and nobody asks for its size."""
        (made, *_) = activated.node().inputs()
        alone = all(len(value.uses()) == 1 for value in (activated, made))
        return self.layer_of(made.node()) if alone and made.node().kind() == PLACEHOLDER else None

    def layer_of(self, node: Node) -> Layer:
        """The layer that a placeholder of this graph, or of one made from it, stands for."""
        return self._numbers[node.inputsAt(1).toIValue()]

    def function(self) -> Callable[..., tuple[torch.Tensor, ...]]:
        """The graph as it is now, callable with its inputs."""
        return as_function(self.graph.copy())

    def restore(self, layers: Sequence[Layer], dtype: torch.dtype) -> None:
        """Make `layers` linear layers again, computed in `dtype`."""
        for node in self.graph.findAllNodes(PLACEHOLDER):
            layer = self.layer_of(node)
            if layer not in layers:
                continue
            with self.graph.insert_point_guard(node):
                x = cast(self.graph, node.inputsAt(0), dtype)
                bias = None if layer.bias is None else layer.bias.to(dtype)
                weights = [self.graph.insertConstant(each) for each in (layer.weight.to(dtype), bias)]
                y = self.graph.insertNode(self.graph.create("aten::linear", [x, *weights], 1)).output()
                y = cast(self.graph, y, torch.float32, known=dtype)
            node.output().replaceAllUsesWith(y)
            node.destroy()


def as_function(graph: Graph) -> Callable[..., Any]:
    """A network's graph, callable with its inputs; its first one, the module, is dropped in place."""
    graph.eraseInput(0)
    function: Callable[..., Any] = torch._C._create_function_from_graph("network", graph)
    return function


_NUMBERS = {torch.float32: 6, torch.bfloat16: 15}


def cast(graph: Graph, value: Value, dtype: torch.dtype, known: torch.dtype = torch.float32) -> Value:
    """`value`, whose dtype is `known`, as `dtype`."""
    if dtype == known:
        return value
    rest = [graph.insertConstant(each) for each in (_NUMBERS[dtype], False, False, None)]
    return graph.insertNode(graph.create("aten::to", [value, *rest], 1)).output()


def _is_free(value: Value) -> bool:
    """Whether a tensor is what attention gives, in another order, or a norm that only layers read."""
    alone = all(reader.kind() == PLACEHOLDER for reader in readers(value))
    while value.node().kind() in MOVES:
        value = value.node().inputsAt(0)
    return value.node().kind() == ATTENTION or (value.node().kind() == "aten::layer_norm" and alone)


def readers(value: Value) -> list[Node]:
    """The nodes that read the content of `value`, not only its size."""
    return [use.user for use in value.uses() if use.user.kind() != "aten::size"]


def _is_layer(node: Node) -> bool:
    weight = constant_tensor(node, 1)
    whole = weight is not None and weight.dim() == 2 and weight.dtype == torch.float32
    return whole and is_constant(node.inputsAt(2)) and not is_constant(node.inputsAt(0))


def _key(weight: torch.Tensor) -> tuple[Any, ...]:
    """What tells a weight from others: its shape, and the first and last values of its diagonal."""
    values = weight.diagonal().tolist()
    return (*weight.shape, *values[:8], *values[-8:])


def _keys(weight: torch.Tensor) -> list[tuple[Any, ...]]:
    """The same of a weight as it may stand in a graph: as it is, or transposed."""
    return [_key(weight), _key(weight.t())]
