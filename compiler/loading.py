"""The original model: eager, float32, with what turns a user's input into its tensors, from a local snapshot."""

from __future__ import annotations

import contextlib
import os
import pickle
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cpuc.compiler.preprocessing import Preprocessing, read_preprocessing
from cpuc.compiler.source import Snapshot, Source
from cpuc.compiler.tasks import TASKS, architecture_of
from cpuc.runtime.errors import ModelError


@dataclass(frozen=True)
class Original:
    """The model to compile and its preprocessing.

    `pretrained` is the PreTrainedModel, `module` what is captured: the same, or what the task put around it. `origin` is what
    another process needs to load it again: folder, weights, task, architecture.
    """

    pretrained: Any
    module: Any
    preprocessing: Preprocessing
    origin: tuple[str, str, str, str]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and progress bars of the libraries below: none of them is about something a user can change."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()


def load_original(source: Source, snapshot: Snapshot, task: str, kind: str, attention: str | None = "eager") -> Original:
    """Load weights and preprocessing without executing anything that the snapshot holds.

    `attention` is transformers' implementation of it; None takes its default for the model.

    Raises:
        ModelError: files that cannot be read, weights that do not fit the configuration, or no usable tokenizer.
    """
    with quiet():
        model = _load_model(source.id, snapshot, task, attention)
        preprocessing = read_preprocessing(source, snapshot.folder, task, model, architecture_of(kind))
    adapt = TASKS[task].adapt
    module = model if adapt is None else adapt(model, source, snapshot.folder).eval()
    return Original(model, module, preprocessing, (str(snapshot.folder.absolute()), snapshot.weights, task, kind))


def _load_model(name: str, snapshot: Snapshot, task: str, attention: str | None) -> Any:
    import torch
    import transformers

    try:
        model, info = getattr(transformers, TASKS[task].auto_class).from_pretrained(
            os.fspath(snapshot.folder),
            dtype=torch.float32,
            attn_implementation=attention,
            use_safetensors="safetensors" in snapshot.weights,
            weights_only=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{name}: {snapshot.weights} holds more than tensors, or is damaged, and was not loaded: "
            "use a repository with safetensors"
        ) from error
    except Exception as error:  # transformers raises whatever config.json or the weights made it stumble over
        raise ModelError(
            f"{name}: config.json or {snapshot.weights} cannot be loaded: {type(error).__name__}: {_first_line(error)}"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing and TASKS[task].auto_class == "AutoModel" and all(name.startswith("pooler.") for name in missing):
        # Checkpoints of heads that read no pooler have none, as those of masked language models.
        model.pooler, missing = None, []
    if missing:
        raise ModelError(
            f"{name}: the weights lack {missing[0]!r}{_and_more(missing)}: the model was not trained for {task}, "
            "or its configuration is of another model"
        )
    if mismatched := sorted(map(str, info["mismatched_keys"])):
        raise ModelError(f"{name}: weights of another shape than config.json says: {mismatched[0]}{_and_more(mismatched)}")
    # float32 whatever the repository stores, whatever its configuration says.
    return model.float().eval()


def _and_more(items: list[str]) -> str:
    return f" and {len(items) - 1} more" if len(items) > 1 else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
