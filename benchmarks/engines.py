"""The engines that are compared, each as its own documentation says is fastest for latency on a CPU.

Imported by the workers: the peers' environment has no cpuc, and cpuc's has no peers.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

Arrays = Mapping[str, np.ndarray]
FLOATS = ("fp32", "bf16")


class UnsupportedError(Exception):
    """Why an engine has nothing to show for a model, a precision or a case."""


class Engine:
    """A loaded model.

    Attributes:
        precisions: those that the engine has.
        one_shape: whether each shape is compiled for itself, so that cases of many shapes are not for it.
        hidden: whether it gives hidden states of the encoder instead of the head's outputs, which are not compared then.
        tcmalloc: whether its documentation advises that allocator; with it OpenVINO 2026.4 aborts.
    """

    precisions: ClassVar[tuple[str, ...]] = FLOATS
    one_shape: ClassVar[bool] = False
    hidden: ClassVar[bool] = False
    tcmalloc: ClassVar[bool] = False

    def __init__(
        self, source: Path, precision: str, work: Path, example: Arrays, calibration: list[dict[str, np.ndarray]]
    ) -> None:
        self.source, self.precision, self.work = source, precision, work
        self.example, self.calibration = example, calibration
        work.mkdir(parents=True, exist_ok=True)

    def build(self) -> None:
        """Make what a server would deploy, in `work`, unless it is there."""

    def load(self) -> None:
        """What a server's process does when it starts."""
        raise NotImplementedError

    def run(self, arrays: Arrays) -> np.ndarray:
        """The first output."""
        raise NotImplementedError

    def start_streams(self, count: int) -> None:  # noqa: ARG002
        """Load what `run_on_stream` takes, for `count` threads at once, each of which has its share of the CPUs."""
        raise UnsupportedError("has no streams")

    def run_on_stream(self, arrays: Arrays) -> np.ndarray:
        """As `run`, from one of several threads."""
        raise NotImplementedError

    def files(self) -> list[Path]:
        """What is deployed."""
        return [path for path in self.work.rglob("*") if path.is_file()]

    def exportable(self) -> Any:
        """The same with plain outputs. Models of images need their parts' names inside."""
        import torch

        model = self.model()
        if "pixel_values" not in self.example:
            model.config.return_dict = False
            return model

        class Logits(torch.nn.Module):
            config = model.config

            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, pixel_values: torch.Tensor) -> Any:
                return self.model(pixel_values=pixel_values).logits

        return Logits().eval()

    def model(self) -> Any:
        """The original, in float32 and in eager mode."""
        import transformers

        transformers.logging.set_verbosity_error()
        kind = "ImageClassification" if "pixel_values" in self.example else "QuestionAnswering"
        return getattr(transformers, f"AutoModelFor{kind}").from_pretrained(self.source, dtype="float32").eval()


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
    """torch.compile with frozen weights, for each shape (the tutorial on inductor's CPU backend)."""

    one_shape = True

    def load(self) -> None:
        import torch
        import torch._dynamo
        import torch._inductor.config as inductor

        super().load()
        inductor.freezing = True
        inductor.cpp_wrapper = True
        torch._dynamo.config.recompile_limit = 64
        self._model = torch.compile(self._model, dynamic=False)

    def run(self, arrays: Arrays) -> np.ndarray:
        import torch

        with torch.no_grad():  # freezing does not work in inference mode
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            cast = {name: each.to(self._dtype) if each.is_floating_point() else each for name, each in tensors.items()}
            return self._model(**cast)[0].float().numpy()


class OpenVino(Engine):
    """Hint LATENCY, a model cache, one model for all shapes; int8 by NNCF's post-training quantisation for transformers.

    Streams are those of the hint THROUGHPUT.
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
        openvino.save_model(converted, self.work / "model.xml", compress_to_fp16=False)

    def load(self) -> None:
        import openvino

        self._core = openvino.Core()
        self._core.set_property({"CACHE_DIR": str(self.work.with_name(self.work.name + "-cache"))})
        self._compiled = self._compile(self.work / "model.xml")

    def _compile(self, model: Any, hint: str = "LATENCY", **settings: Any) -> Any:
        kind = "bf16" if self.precision == "bf16" else "f32"
        wanted = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": kind, **settings}
        return self._core.compile_model(model, "CPU", wanted)

    def run(self, arrays: Arrays) -> np.ndarray:
        return np.asarray(self._compiled(dict(arrays))[0])

    def start_streams(self, count: int) -> None:
        self._streams = self._compile(self.work / "model.xml", "THROUGHPUT", NUM_STREAMS=count)
        self._requests = threading.local()

    def run_on_stream(self, arrays: Arrays) -> np.ndarray:
        if not hasattr(self._requests, "own"):
            self._requests.own = self._streams.create_infer_request()
        return np.array(self._requests.own.infer(dict(arrays))[0])


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
            model.reshape({name: list(array.shape) for name, array in arrays.items()})
            self._by_shape[shape] = self._compile(model)
        return np.asarray(self._by_shape[shape](dict(arrays))[0])


class OnnxRuntime(Engine):
    """Exported by torch, fused by ONNX Runtime's optimiser for transformers; int8 by its dynamic quantisation."""

    precisions = ("fp32", "int8")

    def build(self) -> None:
        if (self.work / "model.onnx").exists():
            return
        import onnxruntime.quantization
        import onnxruntime.transformers.optimizer
        import torch

        model, export = self.exportable(), self.work / "export.onnx"
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
    """The encoder without its head, which CTranslate2 leaves to PyTorch."""

    precisions = ("fp32", "bf16", "int8")
    hidden = True

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
            converter.convert(
                str(self.work), quantization={"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}[self.precision], force=True
            )
        except Exception as error:
            raise UnsupportedError(f"its converter: {str(error).splitlines()[0]}") from error
        shutil.rmtree(base)

    def load(self) -> None:
        import ctranslate2

        self._encoder = ctranslate2.Encoder(str(self.work), device="cpu", inter_threads=1)

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


class Cpuc(Engine):
    """What this repository makes."""

    precisions = ("fp32", "bf16", "int8")
    tcmalloc = True
    scheme: ClassVar[str] = ""

    def build(self) -> None:
        self._compile(self.work / "model.pt")

    def _compile(self, bundle: Path, *options: str) -> None:
        if bundle.exists():
            return
        task = "image-classification" if "pixel_values" in self.example else "question-answering"
        program = [sys.executable, "-c", "from cpuc.cli import program; program()"]
        command = [
            *program,
            "compile",
            str(self.source),
            "-o",
            str(bundle),
            "--precision",
            self._own(),
            "--task",
            task,
            *options,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnsupportedError(done.stderr.strip().splitlines()[-1])

    def _own(self) -> str:
        from cpuc.compiler.precision import PRECISIONS
        from cpuc.runtime.engine import cpu_offers

        name = self.precision + self.scheme
        return f"{name}-fp32" if PRECISIONS[name].int8 and not cpu_offers(PRECISIONS[name].isa) else name

    def load(self) -> None:
        import cpuc

        self._model = cpuc.load(self.work / "model.pt", warm_up=False)
        self._names = [spec.name for spec in self._model.manifest.inputs]

    def run(self, arrays: Arrays) -> np.ndarray:
        return self._answer(self._model, arrays)

    def start_streams(self, count: int) -> None:
        import cpuc

        self._streams = cpuc.load(self.work / "model.pt", warm_up=False, streams=count)

    def run_on_stream(self, arrays: Arrays) -> np.ndarray:
        return self._answer(self._streams, arrays)

    def _answer(self, model: Any, arrays: Arrays) -> np.ndarray:
        return next(iter(model.raw({name: arrays[name] for name in self._names}).values()))


class CpucDynamic(Cpuc):
    """The same with activations scaled while running."""

    precisions = ("int8",)
    scheme = "-dynamic"


class CpucTuned(Cpuc):
    """An artifact for each shape, in the forms that are fastest for that."""

    one_shape = True

    def build(self) -> None:
        """Shapes are not known yet."""

    def load(self) -> None:
        self._by_shape: dict[tuple[int, ...], Any] = {}

    def start_streams(self, count: int) -> None:  # noqa: ARG002
        raise UnsupportedError("compiled for one shape at a time")

    def run(self, arrays: Arrays) -> np.ndarray:
        import cpuc

        shape = next(iter(arrays.values())).shape
        if shape not in self._by_shape:
            size = "x".join(map(str, shape[:1] if "pixel_values" in arrays else shape))
            bundle = self.work / f"{size}.pt"
            self._compile(bundle, "--tune-shapes", size)
            self._by_shape[shape] = cpuc.load(bundle, warm_up=False)
        model = self._by_shape[shape]
        return next(iter(model.raw({spec.name: arrays[spec.name] for spec in model.manifest.inputs}).values()))


def _has_vnni() -> bool:
    with contextlib.suppress(OSError):
        return "vnni" in Path("/proc/cpuinfo").read_text()
    return False


ENGINES: dict[str, type[Engine]] = {
    "eager": Eager,
    "inductor": Inductor,
    "openvino": OpenVino,
    "openvino-static": OpenVinoStatic,
    "onnxruntime": OnnxRuntime,
    "ctranslate2": CTranslate2,
    "cpuc": Cpuc,
    "cpuc-dynamic": CpucDynamic,
    "cpuc-tuned": CpucTuned,
}
# Of those that run where cpuc is installed; the others have the peers' environment.
OWN = ("cpuc", "cpuc-dynamic", "cpuc-tuned")


def versions(name: str) -> dict[str, str]:
    """Of the packages that matter to an engine."""
    import importlib.metadata

    own = ["cpuc", "torch", "intel-extension-for-pytorch"]
    packages = {**dict.fromkeys(OWN, own), "onnxruntime": ["onnxruntime"], "ctranslate2": ["ctranslate2"]}
    wanted = packages.get(name, ["openvino", "nncf"] if name.startswith("openvino") else ["torch", "transformers"])
    return {package: importlib.metadata.version(package) for package in wanted}
