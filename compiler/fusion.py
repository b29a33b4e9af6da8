"""Fusion: a frozen graph becomes the fused graph that the artifact stores, fused for good at compile time."""

from __future__ import annotations

import contextlib
import functools
import io
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cpuc.compiler import rewrites
from cpuc.compiler.by_rows import Packing, has_both, use_both
from cpuc.compiler.capture import Inputs, to_tensors
from cpuc.compiler.flash import KERNEL, use_flash
from cpuc.compiler.forms import Forms, defaults, int8_kernels, norm_adds
from cpuc.compiler.neighbours import join
from cpuc.compiler.norms import choose_norms
from cpuc.compiler.packed import use_packed
from cpuc.compiler.position import narrow_last_layer
from cpuc.compiler.products import use_products
from cpuc.compiler.quantization import Fbgemm, Lowering, Quantized, calling, lower
from cpuc.compiler.residual import find_sums
from cpuc.compiler.several import pack_for_several
from cpuc.compiler.short import find_short, use_short
from cpuc.compiler.sizes import fix_sizes
from cpuc.compiler.smoothing import absorb
from cpuc.compiler.xsmm import alternatives, sizes_of_layers, use_xsmm
from cpuc.runtime.errors import ModelError
from cpuc.runtime.libraries import load_ipex
from cpuc.runtime.manifest import Quantization

# torch's own attention is one kernel on a CPU (FlashAttention with a mask), whatever follows it in the graph.
_FUSED = ("ipex::", "ipex_prepack::", "onednn::", "quantized::", "torch_ipex::", "aten::scaled_dot_product_attention")
# Work that a fused operator should have taken over; what is left of it is listed in the manifest.
HEAVY = (
    "aten::_convolution",
    "aten::_convolution_mode",
    "aten::_softmax",
    "aten::addbmm",
    "aten::addmm",
    "aten::addmv",
    "aten::baddbmm",
    "aten::bilinear",
    "aten::bmm",
    "aten::conv1d",
    "aten::conv2d",
    "aten::conv3d",
    "aten::conv_transpose1d",
    "aten::conv_transpose2d",
    "aten::conv_transpose3d",
    "aten::convolution",
    "aten::dot",
    "aten::einsum",
    "aten::fft_fft",
    "aten::fft_fft2",
    "aten::fft_fftn",
    "aten::gru",
    "aten::inner",
    "aten::linalg_multi_dot",
    "aten::linear",
    "aten::lstm",
    "aten::matmul",
    "aten::mkldnn_convolution",
    "aten::mm",
    "aten::mv",
    "aten::softmax",
    "aten::tensordot",
)
# Operators that end so pack weights in every call, because they are no constants.
_PACKS = "_prepack"
# Nodes that tie a graph to shapes it was profiled with; none may be stored.
_GUARDS = ("prim::TypeCheck", "prim::RequiresGradCheck", "prim::BailOut", "prim::profile", "prim::TensorExprGroup")


@dataclass(frozen=True)
class FusedGraph:
    """`program` can be saved, and runs the fused graph once it is loaded; the counts are of its operators, see `_count`."""

    program: Any
    fused: dict[str, int]
    unfused: dict[str, int]
    quantization: Quantization | None

    @property
    def graph(self) -> Any:
        """What `program` runs."""
        module = isinstance(self.program, torch._C.ScriptModule)
        return self.program._get_method("forward").graph if module else self.program.graph

    def saved(self) -> bytes:
        """The TorchScript archive of the program."""
        buffer = io.BytesIO()
        # What gives a module's state is a graph too. If optimised, IPEX's pass would see it the second time, and announce its
        # retirement on standard error.
        with torch.jit.optimized_execution(False):
            torch.jit.save(self.program, buffer)
        return buffer.getvalue()


def fuse(
    frozen: torch.jit.ScriptModule,
    names: Sequence[str],
    example: Inputs,
    quantize: Callable[[Any], Quantized] | None = None,
    *,
    fixed: bool = False,
) -> FusedGraph:
    """`prepare` and `Fusible.build` in one, in the default forms."""
    fusible = prepare(frozen, names, example, quantize, fixed=fixed)
    return fusible.build(fusible.defaults)


def prepare(
    frozen: torch.jit.ScriptModule,
    names: Sequence[str],
    example: Inputs,
    quantize: Callable[[Any], Quantized] | None = None,
    *,
    fixed: bool = False,
) -> Fusible:
    """Apply our rewrites and IPEX's passes.

    IPEX registers its passes with the JIT's profiling executor, which runs them after one profiled call (they need
    concrete sizes, which more calls of different sizes would blur); the graph that it executes next is taken out
    and freed of everything it learnt of shapes.

    Args:
        frozen: what `capture` returned.
        names: names of the graph's inputs.
        example: a batch to profile, of sizes that occur nowhere in the model. Convolutions are packed for its sizes; others
            work too, some slower.
        quantize: called with the graph after our rewrites, when linear layers are plain operators; None leaves them so.
        fixed: whether inputs have the sizes of `example`, but for the number of rows.
    """
    load_ipex()
    found: list[Quantized] = []
    tensors = to_tensors(example, names)
    if fixed:
        fix_sizes(frozen.graph, tensors)

    def before_packing(graph: Any) -> None:
        narrow_last_layer(graph, tensors)
        if quantize is not None:
            found.append(quantize(graph))

    rewrites.apply(frozen.graph, before_packing)
    use_flash(frozen.graph, tensors)
    graph = _executed(frozen, tensors)
    torch._C._jit_pass_erase_shape_information(graph)
    _drop_self(graph)
    return Fusible(graph, names, tensors, found[0] if found else None, fixed=fixed)


class Fusible:
    """A graph with all but its last fusions: those that have more than one form.

    Attributes:
        defaults: the forms that it is built in unless others are asked for.
    """

    def __init__(
        self, graph: Any, names: Sequence[str], tensors: Sequence[torch.Tensor], quantized: Quantized | None, *, fixed: bool
    ) -> None:
        self._graph, self._names, self._tensors, self._quantized, self._fixed = graph, names, tensors, quantized, fixed
        self._expected: list[torch.Tensor] = []
        sizes = sizes_of_layers(graph)
        self._dtypes = {dtype for dtype, *_ in sizes}
        # Scales found while running would make more of it that a row is rounded otherwise alone than in a batch.
        self._alike = quantized is not None and quantized.summary.scheme == "dynamic"
        dtype = torch.float32 if torch.float32 in self._dtypes else torch.bfloat16
        by_rows = not quantized and any(has_both(*size) for size in sizes)
        self.defaults = Forms(int8=int8_kernels()) if self._alike else defaults(dtype, by_rows=by_rows)

    def expect(self, batch: Inputs) -> None:
        """Let it be an alternative to pack layers for the size of `batch`."""
        self._expected = to_tensors(batch, self._names)

    def alternatives(self) -> dict[str, list[str]]:
        """The fields of `Forms` that can make a difference here, in the order to decide them, and what else each can be."""
        kinds: Counter[str] = Counter() if self._alike else _count(self._graph)
        added = norm_adds() and self._dtypes and kinds["ipex_prepack::linear_add_run"]
        packs = self._expected and torch.float32 in self._dtypes and self._quantized is None
        return {
            "layers": [
                *(["libxsmm"] if self.defaults.layers == "by-rows" else []),
                *alternatives(self._graph),
                *(["mkl"] if packs else []),
            ],
            "int8": ["onednn" if self.defaults.int8 == "fbgemm" else "fbgemm"] if self._quantized is not None else [],
            "residual": ["layer" if self.defaults.residual == "norm" else "norm"] if added else [],
            "attention": ["flash" if self.defaults.attention == "products" else "products"] if kinds[KERNEL] else [],
        }

    def build(self, forms: Forms) -> FusedGraph:
        """The fused graph in these forms, as a function of its own."""
        graph, quantized = self._graph.copy(), self._quantized
        use_xsmm(graph, self._tensors, forms.layers)
        residual, static = forms.residual == "norm", quantized is not None and not self._alike
        choose_norms(graph, adding=norm_adds(), summed=static, residual=residual, by_rows=not self._alike)
        join(graph)
        if quantized:
            quantized = absorb(graph, quantized, self._tensors)
        if forms.attention == "products":
            use_products(graph, self._tensors)
        rewrites.finish(graph)
        if self._fixed:
            pack_for_several(graph)
        _restore_chunks(graph)
        if forms.layers == "mkl":
            use_packed(graph, self._expected)
        short = [] if self._alike else find_short(graph, self._tensors)
        sums = find_sums(graph, self._tensors) if static else {}
        packing: Lowering | Packing | None = None
        if quantized:
            packing = lower(graph, quantized, self._tensors, sums, Fbgemm if forms.int8 == "fbgemm" else Lowering)
        if short:
            use_short(graph, short)
        if forms.layers == "by-rows" and not quantized:
            packing = use_both(graph)
        for value, name in zip(graph.inputs(), self._names, strict=False):
            value.setDebugName(name)
        kinds = _count(graph)
        if guards := [kind for kind in _GUARDS if kinds[kind]]:
            raise ModelError(f"the fused graph still depends on the shapes it was traced with ({guards[0]}): not supported")
        function = torch._C._create_function_from_graph("forward", graph)
        if packing:
            function = packing.package(function, self._names)
        return FusedGraph(
            function,
            fused={kind: n for kind, n in sorted(kinds.items()) if kind.startswith(_FUSED) and not _is_unfused(kind)},
            unfused={kind: n for kind, n in sorted(kinds.items()) if _is_unfused(kind)},
            quantization=quantized.summary if quantized else None,
        )


def _executed(frozen: torch.jit.ScriptModule, tensors: Sequence[torch.Tensor]) -> Any:
    """A copy of the graph that the JIT executes once IPEX's passes have seen a profiled call."""
    with calling(), torch.no_grad(), _profiling(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # IPEX announces the retirement of the pass that it runs
        for _ in range(2):
            frozen(*tensors)
        return torch.jit.last_executed_optimized_graph().copy()


def _is_unfused(kind: str) -> bool:
    return kind in HEAVY or kind.endswith(_PACKS)


@contextlib.contextmanager
def _profiling() -> Iterator[None]:
    """The profiling executor as fusion needs it, whatever the process has set: one profiled call, then optimise."""
    profiling = torch._C._jit_set_profiling_executor(True), torch._C._get_graph_executor_optimize(True)
    set_runs: Any = torch._C._jit_set_num_profiled_runs  # annotated with the type of a size
    count = set_runs(1)
    expressions = torch._C._jit_texpr_fuser_enabled()
    torch._C._jit_set_texpr_fuser_enabled(False)
    try:
        yield
    finally:
        torch._C._jit_set_texpr_fuser_enabled(expressions)
        set_runs(count)
        torch._C._jit_set_profiling_executor(profiling[0])
        torch._C._set_graph_executor_optimize(profiling[1])


def _drop_self(graph: torch._C.Graph) -> None:
    module = next(iter(graph.inputs()))
    if module.uses():
        raise ModelError("the fused graph still reads attributes of the module: freezing did not reach them")
    graph.eraseInput(0)


def _restore_chunks(graph: Any) -> None:
    """Undo what the executor makes of ``aten::chunk``: an operator that can be saved but not loaded."""
    for node in graph.findAllNodes("prim::ConstantChunk"):
        with graph.insert_point_guard(node):
            numbers = [graph.insertConstant(node.i(name)) for name in ("chunks", "dim")]
            chunks = graph.insertNode(graph.create("aten::chunk", [node.inputsAt(0), *numbers], 1)).output()
            chunks.setType(torch._C.ListType.ofTensors())
            unpacked = graph.insertNode(graph.create("prim::ListUnpack", [chunks], node.outputsSize()))
        for old, new in zip(node.outputs(), unpacked.outputs(), strict=True):
            old.replaceAllUsesWith(new)
        node.destroy()


def _count(graph: torch._C.Graph | torch._C.Block) -> Counter[str]:
    """The operators of each kind; of ways of which a call takes one, as many as the way has that has most of that kind."""
    kinds: Counter[str] = Counter()
    for node in graph.nodes():
        kinds[node.kind()] += 1
        kinds += functools.reduce(operator.or_, map(_count, node.blocks()), Counter[str]())
    return kinds
