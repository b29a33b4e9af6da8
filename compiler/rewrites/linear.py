"""Linear layers."""

from __future__ import annotations

from cpuc.compiler.rewrites.rewrite import Rewrite

LINEAR = (
    # IPEX leaves float32 linear layers to MKL unless its Python front end is asked to replace the modules. Packing
    # them here for oneDNN does the same to the graph, for every precision, and lets its passes fuse what follows.
    #
    #   x ─ linear(W, b)   →   x ─ linear_run(pack(W, b))      pack is folded into a constant
    Rewrite(
        "pack-linear",
        """
        graph(%x, %weight, %bias):
            %y = aten::linear(%x, %weight, %bias)
            return (%y)""",
        """
        graph(%x, %weight, %bias):
            %rows : NoneType = prim::Constant()
            %packed = ipex_prepack::linear_prepack(%weight, %bias, %rows)
            %y = ipex_prepack::linear_run(%x, %packed)
            return (%y)""",
    ),
)
