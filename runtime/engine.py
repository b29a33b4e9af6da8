"""The engine: loads a bundle's fused graph and runs it on named tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cpuc.runtime.allocation import heap_for
from cpuc.runtime.archive import reopened
from cpuc.runtime.bundle import Bundle
from cpuc.runtime.errors import BundleError, InputError
from cpuc.runtime.libraries import installed_versions, load_ipex, packing_for_fbgemm
from cpuc.runtime.manifest import Manifest, TensorSpec
from cpuc.runtime.turns import KERNELS

if TYPE_CHECKING:
    import torch

# So many sets of input shapes are remembered. Recordings have new ones without end.
_MOST_MET = 4096
# In rising order, as torch.backends.cpu.get_cpu_capability names them.
CAPABILITIES = ("NO AVX", "DEFAULT", "AVX2", "AVX512")


class Engine:
    """A loaded artifact. Calls may come from several threads.

    Args:
        bundle: what ``open_bundle`` returned.
        check_digests: compare every member with its SHA-256 first. Leave it on unless the file was verified otherwise.

    Attributes:
        manifest: the bundle's.
        module: the loaded TorchScript module, for those who look into it; calls go through the engine.

    Raises:
        BundleError: the bundle is damaged, or was made for other versions or another CPU.
        InputError: digests are not to be checked of a bundle whose signature was asked for.
    """

    def __init__(self, bundle: Bundle, *, check_digests: bool = True) -> None:
        if bundle.trusted and not check_digests:
            raise InputError("a signature covers digests: with a trusted key they have to be checked")
        self.manifest = bundle.manifest
        self._path = bundle.path
        check_versions(bundle)
        if check_digests:
            verified = _Background(bundle.check_digests)
        import torch  # takes seconds: the digests are checked meanwhile

        load_ipex()
        check_cpu(bundle)
        if check_digests:
            verified.result()
        self._names = [spec.name for spec in self.manifest.inputs]
        self._bounded = [spec for spec in self.manifest.inputs if spec.minimum is not None and spec.maximum is not None]
        self._met: set[tuple[object, ...]] = set()
        try:
            with heap_for(bundle.file.size), packing_for_fbgemm():
                self.module = torch.jit.load(reopened(bundle.file.handle), map_location="cpu")
        except RuntimeError as error:
            _explain(error, self._path)
            raise BundleError(f"{self._path}: torch cannot load the graph: {str(error).splitlines()[0]}") from error
        self._forward = self.module.forward

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the graph; `inputs` and the result are named as in the manifest's signature.

        Raises InputError naming the tensor whose name, dtype, shape or values do not fit the signature, BundleError if an
        operator has no kernel on this CPU, and MemoryError.
        """
        import torch

        arguments = [inputs[name] for name in self._names if name in inputs]
        met = (len(inputs), *((tensor.shape, tensor.dtype) for tensor in arguments))
        known = met in self._met
        if not known:
            check_inputs(self.manifest, inputs)
        for spec in self._bounded:
            _check_values(spec, inputs[spec.name])
        # The graph is fused already: the JIT's executor would only profile and optimise it again. The flag belongs
        # to the thread, so it is set around each call.
        with KERNELS.together if known else KERNELS.alone, torch.jit.optimized_execution(False), torch.inference_mode():
            try:
                outputs = self._forward(*arguments)
            except RuntimeError as error:
                _explain(error, self._path)
                raise
        if not known:
            if len(self._met) >= _MOST_MET:
                self._met.clear()
            self._met.add(met)
        return {spec.name: tensor for spec, tensor in zip(self.manifest.outputs, outputs, strict=True)}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same for numpy arrays."""
        import torch

        tensors = {}
        for name, array in inputs.items():
            if array.dtype.kind not in "iufb" or not array.dtype.isnative:
                raise InputError(f"input {name!r} is {array.dtype}, expected numbers")
            try:
                usable = array.flags.c_contiguous and array.flags.writeable
                tensors[name] = torch.from_numpy(array if usable else np.require(array, requirements=["C", "W"]))
            except TypeError:
                raise InputError(f"input {name!r} is {array.dtype}, which torch does not have") from None
        return {name: tensor.numpy() for name, tensor in self(tensors).items()}


# What torch says of layers in int8 where its library for telling CPUs apart, which reads /proc, has failed.
_NOT_FBGEMM = ("not implemented for this packed parameter", "Didn't find engine for operation quantized::linear_prepack")


def _explain(error: RuntimeError, path: Path) -> None:
    """Raise in the place of an error of torch that says what is wrong with this machine."""
    if "could not create a primitive" in str(error):
        raise BundleError(
            f"{path}: oneDNN has no kernels here for the graph's layers: unset ONEDNN_MAX_CPU_ISA if it is set, "
            "or compile with another --precision"
        ) from error
    if any(said in str(error) for said in _NOT_FBGEMM):
        raise BundleError(
            f"{path}: FBGEMM, which computes the graph's layers, does not know this CPU: /proc has to be mounted"
        ) from error
    if "can't allocate memory" in str(error):
        raise MemoryError from error


class _Background:
    """One call on a thread of its own, whose exception `result` raises."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function,), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:  # handed to the caller of result
            self._error = error

    def result(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


def check_versions(bundle: Bundle) -> None:
    """Raise BundleError unless torch and IPEX are of the releases the bundle was compiled with.

    The graph names operators and packed weight classes that both may change between releases.
    """
    installed = installed_versions()
    for key, package in (("torch", "torch"), ("ipex", "intel-extension-for-pytorch")):
        wanted = getattr(bundle.manifest.build, key).split("+")[0]
        if wanted != installed[key]:
            raise BundleError(
                f"{bundle.path}: compiled with {package} {wanted}, but {installed[key]} is installed: "
                f"pip install {package}=={wanted}, or compile the model again"
            )


def cpu_offers(isa: str) -> bool:
    """Whether this CPU has a capability, as ``torch.backends.cpu.get_cpu_capability`` names them."""
    import torch

    here = torch.backends.cpu.get_cpu_capability()
    return here in CAPABILITIES and CAPABILITIES.index(here) >= CAPABILITIES.index(isa)


def check_cpu(bundle: Bundle) -> None:
    """Raise BundleError if this CPU lacks instructions that the artifact needs."""
    needed = bundle.manifest.build.isa
    if needed not in CAPABILITIES:
        raise BundleError(f"{bundle.path}: needs CPU capability {needed!r}, which this cpuc does not know: update cpuc")
    if not cpu_offers(needed):
        raise BundleError(
            f"{bundle.path}: needs a CPU with {needed}, which this one lacks: "
            f"compile with another --precision, or run on another machine"
        )


def check_inputs(manifest: Manifest, inputs: Mapping[str, torch.Tensor]) -> None:
    """Compare `inputs` with the signature: names, dtypes, ranks and sizes of axes."""
    names = [spec.name for spec in manifest.inputs]
    for name in inputs:
        if name not in names:
            raise InputError(f"unexpected input {name!r}; the model takes {', '.join(names)}")
    sizes: dict[str, tuple[int, str]] = {}
    for spec in manifest.inputs:
        if spec.name not in inputs:
            raise InputError(f"input {spec.name!r} is missing; the model takes {', '.join(names)}")
        _check_tensor(manifest, spec, inputs[spec.name], sizes)


def _check_tensor(manifest: Manifest, spec: TensorSpec, tensor: torch.Tensor, sizes: dict[str, tuple[int, str]]) -> None:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype != spec.dtype:
        raise InputError(f"input {spec.name!r} is {dtype}, expected {spec.dtype}")
    shape = list(tensor.shape)
    if len(shape) != len(spec.shape):
        raise InputError(f"input {spec.name!r} has shape {shape}, expected {spec.shape}")
    for size, expected in zip(shape, spec.shape, strict=True):
        if isinstance(expected, int):
            if size != expected:
                raise InputError(f"input {spec.name!r} has shape {shape}, expected {spec.shape}")
            continue
        axis = manifest.axes[expected]
        if size < axis.minimum or (axis.maximum is not None and size > axis.maximum):
            bounds = f"at least {axis.minimum}" + ("" if axis.maximum is None else f" and at most {axis.maximum}")
            raise InputError(f"input {spec.name!r} has shape {shape}: {expected} is {size}, must be {bounds}")
        first = sizes.setdefault(expected, (size, spec.name))
        if first[0] != size:
            raise InputError(f"inputs {first[1]!r} and {spec.name!r} differ in {expected}: {first[0]} and {size}")


def _check_values(spec: TensorSpec, tensor: torch.Tensor) -> None:
    assert spec.minimum is not None and spec.maximum is not None
    low, high = (int(value) for value in tensor.aminmax())
    if low < spec.minimum or high > spec.maximum:
        wrong = low if low < spec.minimum else high
        raise InputError(f"input {spec.name!r} holds {wrong}, must be {spec.minimum} to {spec.maximum}")
