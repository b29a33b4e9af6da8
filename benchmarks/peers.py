"""The other engines, each as its own documentation says is fastest for latency on a CPU."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from engine import Arrays, Engine, UnsupportedError


class Eager(Engine):
    """transformers as it comes: scaled_dot_product_attention; in bfloat16 its weights are."""

    tcmalloc = True

    def load(self) -> None:
        import torch

        self._model: Callable[..., Any] = self.model().to(
            getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[self.precision])
        )
        self._dtype = next(self._model.parameters()).dtype  # type: ignore[attr-defined]

    def run(self, arrays: Arrays) -> np.ndarray:
        import torch

        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            cast = {name: each.to(self._dtype) if each.is_floating_point() else each for name, each in tensors.items()}
            return self._model(**cast)[0].float().numpy()

    def files(self) -> list[Path]:
        return [path for path in self.source.iterdir() if path.is_file()]


class Inductor(Eager):
    """torch.compile with frozen weights and max-autotune, for each shape (the tutorials on inductor's CPU backend).

    It has no int8 here: that takes another exporter and quantiser (PT2E, torchao), with which it was not tried.
    """

    one_shape = True

    def load(self) -> None:
        import torch
        import torch._dynamo
        import torch._inductor.config as inductor

        super().load()
        inductor.freezing = True
        inductor.cpp_wrapper = True
        torch._dynamo.config.recompile_limit = 64
        self._model = torch.compile(self._model, dynamic=False, mode="max-autotune")

    def run(self, arrays: Arrays) -> np.ndarray:
        import torch

        with torch.no_grad():  # freezing does not work in inference mode
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            cast = {name: each.to(self._dtype) if each.is_floating_point() else each for name, each in tensors.items()}
            return self._model(**cast)[0].float().numpy()


class OpenVino(Engine):
    """Hint LATENCY, a model cache, one model for all shapes; int8 by NNCF's post-training quantisation for transformers.

    What is not int8 then has the precision that OpenVINO chooses, bfloat16 where the CPU computes in it. Streams are those of
    the hint THROUGHPUT.
    """

    precisions = ("fp32", "bf16", "int8")

    def build(self) -> None:
        if (self.work / "model.xml").exists():
            return
        import openvino
        import torch

        model = self.exportable()
        with torch.inference_mode():
            converted = openvino.convert_model(model, example_input={n: torch.from_numpy(a) for n, a in self.example.items()})
        if self.precision == "int8":
            import nncf

            data = nncf.Dataset([dict(each) for each in self.calibration])
            converted = nncf.quantize(converted, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(self.calibration))
        openvino.save_model(converted, self.work / "model.xml", compress_to_fp16=self.precision == "bf16")

    def load(self) -> None:
        import openvino

        self._core = openvino.Core()
        self._core.set_property({"CACHE_DIR": str(self.work.with_name(self.work.name + "-cache"))})
        self._compiled = self._compile(self.work / "model.xml")

    def _compile(self, model: Any, hint: str = "LATENCY", **settings: Any) -> Any:
        kind = {"fp32": "f32", "bf16": "bf16"}.get(self.precision)
        rest = {"INFERENCE_PRECISION_HINT": kind} if kind else {}
        return self._core.compile_model(model, "CPU", {"PERFORMANCE_HINT": hint, **rest, **settings})

    def run(self, arrays: Arrays) -> np.ndarray:
        return np.asarray(self._compiled(dict(zip(_keys(self._compiled, arrays), arrays.values(), strict=True)))[0])

    def start_streams(self, count: int) -> None:
        self._streams = self._compile(self.work / "model.xml", "THROUGHPUT", NUM_STREAMS=count)
        self._requests = threading.local()

    def run_on_stream(self, arrays: Arrays) -> np.ndarray:
        if not hasattr(self._requests, "own"):
            self._requests.own = self._streams.create_infer_request()
        return np.array(self._requests.own.infer(dict(arrays))[0])


def _keys(model: Any, arrays: Arrays) -> list[str] | list[int]:
    """The names of inputs, or their positions where OpenVINO has renamed them, as it does if they are changed first."""
    names = {name for each in model.inputs for name in each.get_names()}
    return list(arrays) if names.issuperset(arrays) else list(range(len(arrays)))


class OpenVinoStatic(OpenVino):
    """The same, reshaped and compiled for each shape."""

    one_shape = True

    def start_streams(self, count: int) -> None:  # noqa: ARG002
        raise UnsupportedError("compiled for one shape at a time")

    def load(self) -> None:
        super().load()
        self._by_shape: dict[tuple[int, ...], Any] = {}

    def run(self, arrays: Arrays) -> np.ndarray:
        shape = next(iter(arrays.values())).shape
        if shape not in self._by_shape:
            model = self._core.read_model(self.work / "model.xml")
            model.reshape({key: list(array.shape) for key, array in zip(_keys(model, arrays), arrays.values(), strict=True)})
            self._by_shape[shape] = self._compile(model)
        compiled = self._by_shape[shape]
        return np.asarray(compiled(dict(zip(_keys(compiled, arrays), arrays.values(), strict=True)))[0])


class OnnxRuntime(Engine):
    """Exported by torch, fused by ONNX Runtime's optimiser for transformers; int8 by its dynamic quantisation.

    Its optimiser knows the attention of transformers' eager form, and not what torch makes of scaled_dot_product_attention.
    """

    precisions = ("fp32", "int8")
    tcmalloc = True

    def build(self) -> None:
        if (self.work / "model.onnx").exists():
            return
        import onnxruntime.quantization
        import onnxruntime.transformers.optimizer
        import torch

        model, export = self.exportable("eager"), self.work / "export.onnx"
        names = list(self.example)
        free = {name: {0: "batch"} | ({1: "sequence"} if array.ndim == 2 else {}) for name, array in self.example.items()}
        arguments = tuple(torch.from_numpy(array) for array in self.example.values())
        with torch.no_grad():
            torch.onnx.export(model, arguments, export, input_names=names, dynamic_axes=free, dynamo=False, opset_version=17)
        facts = model.config
        kind = "vit" if facts.model_type == "vit" else "bert"
        heads = getattr(facts, "num_attention_heads", 0) or facts.n_heads
        fused = onnxruntime.transformers.optimizer.optimize_model(
            str(export), model_type=kind, num_heads=heads, hidden_size=facts.hidden_size, opt_level=1, use_gpu=False
        )
        found = fused.get_fused_operator_statistics()
        if kind == "bert" and not found["Attention"]:
            raise UnsupportedError("its optimiser found no attention")
        fused.save_model_to_file(str(export))
        if self.precision == "int8":
            import onnx

            onnxruntime.quantization.quantize_dynamic(
                export,
                self.work / "model.onnx",
                per_channel=True,
                reduce_range=not _has_vnni(),
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # shapes behind fused operators are not inferred
            )
            export.unlink()
        else:
            export.rename(self.work / "model.onnx")

    def load(self) -> None:
        self._session = self._start()
        self._names = {each.name for each in self._session.get_inputs()}

    def _start(self, threads: int = 0) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        return onnxruntime.InferenceSession(self.work / "model.onnx", options, providers=["CPUExecutionProvider"])

    def run(self, arrays: Arrays) -> np.ndarray:
        return self._answer(self._session, arrays)

    def _answer(self, session: Any, arrays: Arrays) -> np.ndarray:
        return np.asarray(session.run(None, {name: array for name, array in arrays.items() if name in self._names})[0])

    def start_streams(self, count: int) -> None:
        self._streams = self._start(max(1, len(os.sched_getaffinity(0)) // count))

    def run_on_stream(self, arrays: Arrays) -> np.ndarray:
        return self._answer(self._streams, arrays)


class CTranslate2(Engine):
    """The encoder without its head, which CTranslate2 leaves to PyTorch. On CPUs it has no bfloat16."""

    precisions = ("fp32", "int8")
    hidden = True
    tcmalloc = True

    def build(self) -> None:
        if self.work.joinpath("model.bin").exists():
            return
        if "pixel_values" in self.example:
            raise UnsupportedError("has no models of images")
        import ctranslate2
        import transformers

        base = self.work.with_name(self.work.name + "-base")
        transformers.AutoModel.from_pretrained(self.source).save_pretrained(base)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(self.source / name, base)
        # Its converter reads what the configurations of transformers 5 no longer have.
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({"position_embedding_type": "absolute"} | config))
        try:
            converter = ctranslate2.converters.TransformersConverter(str(base))
            converter.convert(str(self.work), quantization={"fp32": "float32", "int8": "int8"}[self.precision], force=True)
        except Exception as error:
            raise UnsupportedError(f"its converter: {str(error).splitlines()[0]}") from error
        shutil.rmtree(base)

    def load(self) -> None:
        import ctranslate2

        threads = len(os.sched_getaffinity(0))  # left to itself it takes four at most
        self._encoder = ctranslate2.Encoder(str(self.work), device="cpu", inter_threads=1, intra_threads=threads)

    def start_streams(self, count: int) -> None:
        import ctranslate2

        threads = max(1, len(os.sched_getaffinity(0)) // count)
        self._streams = ctranslate2.Encoder(str(self.work), device="cpu", inter_threads=count, intra_threads=threads)

    def run(self, arrays: Arrays) -> np.ndarray:
        return self._answer(self._encoder, arrays)

    def run_on_stream(self, arrays: Arrays) -> np.ndarray:
        return self._answer(self._streams, arrays)

    def _answer(self, encoder: Any, arrays: Arrays) -> np.ndarray:
        lengths = arrays["attention_mask"].sum(1)
        rows = [row[:length].tolist() for row, length in zip(arrays["input_ids"], lengths, strict=True)]
        return np.asarray(encoder.forward_batch(rows).last_hidden_state)


def _has_vnni() -> bool:
    with contextlib.suppress(OSError):
        return "vnni" in Path("/proc/cpuinfo").read_text()
    return False
