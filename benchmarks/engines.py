"""The engines that are compared."""

from __future__ import annotations

from engine import Engine
from own import Cpuc, CpucDynamic, CpucTuned, Fused
from peers import CTranslate2, Eager, Inductor, OnnxRuntime, OpenVino, OpenVinoStatic

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
    "fused": Fused,
}
# Of those that run where cpuc is installed; the others have the peers' environment.
OWN = ("cpuc", "cpuc-dynamic", "cpuc-tuned", "fused")


def versions(name: str) -> dict[str, str]:
    """Of the packages that matter to an engine."""
    import importlib.metadata

    own = ["cpuc", "torch", "intel-extension-for-pytorch"]
    packages = {**dict.fromkeys(OWN, own), "onnxruntime": ["onnxruntime"], "ctranslate2": ["ctranslate2"]}
    wanted = packages.get(name, ["openvino", "nncf"] if name.startswith("openvino") else ["torch", "transformers"])
    return {package: importlib.metadata.version(package) for package in wanted}
