"""Where a model comes from: a local folder, a Hub id, or a short name; brought to one local folder."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpuc.compiler import names
from cpuc.runtime.errors import ModelError

CONFIG = "config.json"
# Says that a model is one of sentence-transformers, and which modules follow the encoder.
SENTENCE_TRANSFORMERS = "modules.json"
# Of the encoder in a folder of sentence-transformers, by its class in old ones; the first that says something counts.
SENTENCE_SETTINGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
# Everything but the weights that a compile may need; small, and nothing that is executed.
SIDE_FILES = (
    "README.md",
    "added_tokens.json",
    "config_sentence_transformers.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    *SENTENCE_SETTINGS,
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
# In order of preference; an index names the shards.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class Source:
    """A model's files. `fetch` makes a file local and returns its path, or None if the model does not have it.

    `unlisted` says why the Hub could not list the files: then the model has what the cache has.
    """

    id: str
    revision: str | None
    config: dict[str, Any]
    fetch: Callable[[str], Path | None]
    unlisted: str | None = None

    @property
    def license(self) -> str | None:
        """The licence that the model card's metadata names, or None."""
        from huggingface_hub import metadata_load

        card = self.fetch("README.md")
        if card is None:
            return None
        try:
            metadata = metadata_load(card) or {}
        except Exception:  # a card is prose by anybody; its YAML may be broken in any way
            return None
        value = metadata.get("license_name") if metadata.get("license") == "other" else metadata.get("license")
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value) if value else None


@dataclass(frozen=True)
class Snapshot:
    """A folder that holds all of a model's files; `weights` is the file (or index) that was chosen in it."""

    folder: Path
    weights: str


def resolve(name: str, revision: str | None = None) -> Source:
    """Find the model and read its configuration; weights are not downloaded yet.

    Args:
        name: a local folder, a Hub id such as ``deepset/roberta-base-squad2``, or a short name.
        revision: a branch, tag or commit of the Hub repository.

    Raises:
        ModelError: nothing of that name, no access, no connection, or a broken ``config.json``.
    """
    if not name:
        raise ModelError("(empty name): no such folder")
    try:
        folder = Path(name).expanduser()
        is_folder, exists = folder.is_dir(), folder.exists()
    except (OSError, RuntimeError) as error:  # a name too long, a folder above that is closed to us, no such user
        raise ModelError(f"{name}: no such folder ({_first_line(error)})") from None
    if is_folder:
        if revision is not None:
            raise ModelError(f"{name}: --revision is for models on the Hub, this is a local folder")
        return _local(folder)
    if exists:
        raise ModelError(f"{name}: is a file; give the folder that holds config.json and the weights")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{name}: no such folder")
    return _hub(name, names.hub_id(name) or name, revision)


def _local(folder: Path) -> Source:
    def fetch(file: str) -> Path | None:
        return folder / file if (folder / file).is_file() else None

    return Source(folder.resolve().name, None, _read_config(str(folder), fetch(CONFIG)), fetch)


def _read_config(name: str, path: Path | None) -> dict[str, Any]:
    if path is None:
        raise ModelError(f"{name}: has no {CONFIG}; give a folder or repository in Hugging Face layout")
    return _read_json(name, path)


def is_sentence_model(source: Source) -> bool:
    """Whether sentence-transformers would pool what the encoder gives; it writes the same file for rerankers."""
    path = source.fetch(SENTENCE_TRANSFORMERS)
    return path is not None and [kind for _, kind in _read_modules(source, path)][:2] == ["Transformer", "Pooling"]


def sentence_modules(source: Source) -> list[tuple[str, str]]:
    """The modules that follow the encoder in a model of sentence-transformers: (folder, class) of each, in order."""
    path = source.fetch(SENTENCE_TRANSFORMERS)
    if path is None:
        raise ModelError(f"{source.id}: has no {SENTENCE_TRANSFORMERS}, so it is no model of sentence-transformers")
    modules = _read_modules(source, path)
    if modules[:1] != [("", "Transformer")]:
        raise ModelError(f"{source.id}: {SENTENCE_TRANSFORMERS} does not begin with a Transformer in the model's own folder")
    for folder, _ in modules[1:]:
        if not folder or Path(folder).name != folder or folder == "..":
            raise ModelError(f"{source.id}: {SENTENCE_TRANSFORMERS} names the folder {folder!r}, which is not one of its own")
    return modules[1:]


def _read_modules(source: Source, path: Path) -> list[tuple[str, str]]:
    try:
        return [(str(entry["path"]), str(entry["type"]).split(".")[-1]) for entry in json.loads(path.read_bytes())]
    except (ValueError, RecursionError, TypeError, KeyError, OSError) as error:
        raise ModelError(f"{source.id}: {SENTENCE_TRANSFORMERS} cannot be read ({_first_line(error)})") from None


def _read_json(name: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name}: {path.name} is not valid JSON ({error})") from None
    except OSError as error:
        raise ModelError(f"{name}: {path.name} cannot be read: {error.strerror}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{name}: {path.name} holds no object")
    return value


def _hub(name: str, repository: str, revision: str | None) -> Source:
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.errors import HTTPError, RevisionNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()

    def download(file: str, commit: str | None) -> Path:
        try:
            return Path(hf_hub_download(repository, file, revision=commit))
        except RevisionNotFoundError as error:
            raise ModelError(f"{name}: {repository} has no revision {revision!r}") from error
        except Exception as error:  # of the Hub's client, and of what it downloads with (hf_xet has errors of its own)
            raise _explain(name, repository, revision, file, error) from error

    path = download(CONFIG, revision)
    # The cache names a snapshot's folder by its commit, to which all other files are pinned.
    commit, cached = path.parent.name, path.parent
    unlisted = None
    try:
        info = HfApi().model_info(repository, revision=commit, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        available = {sibling.rfilename for sibling in info.siblings or []}
    except (HTTPError, OSError, ValueError) as error:  # offline: what is in the cache is what there is
        unlisted = f"the Hub at {constants.ENDPOINT} did not list the files: {_first_line(error)}"
        if constants.HF_HUB_OFFLINE:
            unlisted = "HF_HUB_OFFLINE forbids to download it"
        available = {str(file.relative_to(cached)) for file in cached.rglob("*") if file.is_file()}

    def fetch(file: str) -> Path | None:
        return download(file, commit) if file in available else None

    return Source(repository, commit, _read_config(repository, path), fetch, unlisted)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _explain(name: str, repository: str, revision: str | None, file: str, error: Exception) -> ModelError:
    """What the Hub client's error means to a user who asked for `name`."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    tried = f"{name!r}" if name == repository else f"{name!r} (short for {repository!r})"
    if isinstance(error, GatedRepoError):
        return ModelError(f"{tried} is gated: accept its terms on the Hub, then log in with 'hf auth login' or set HF_TOKEN")
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        close = difflib.get_close_matches(name, names.all_names(), 3, 0.5)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        return ModelError(
            f"{tried} was tried as a local folder, as a short name and as a Hub repository, and is none of them; {hint}"
            "If the repository is private, log in with 'hf auth login' or set HF_TOKEN. "
            f"Short names: {', '.join(names.all_names())}"
        )
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError):
        error = error.__cause__  # the Hub can be reached, it answered
    if isinstance(error, LocalEntryNotFoundError):
        at = f" at revision {revision!r}" if revision else ""
        if constants.HF_HUB_OFFLINE:
            return ModelError(f"{tried}{at}: {file} is not in the cache, and HF_HUB_OFFLINE forbids to download it")
        return ModelError(f"{tried}{at}: the Hub at {constants.ENDPOINT} cannot be reached and {file} is not in the cache")
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status == 404:
            return ModelError(f"{tried}: the repository has no {file}")
        return ModelError(f"{tried}: the Hub answered {status} for {file}; try again, or check your access (HF_TOKEN)")
    return ModelError(f"{tried}: downloading {file} failed: {_first_line(error)}; try again, finished files are kept")


def snapshot(source: Source, *, sentence: bool = False) -> Snapshot:
    """Make all needed files local, with `sentence` those of sentence-transformers' modules too.

    Raises ModelError if there are no weights, or shards are missing.
    """
    for file in SIDE_FILES:
        source.fetch(file)
    for folder, _ in sentence_modules(source) if sentence else []:
        for file in (CONFIG, WEIGHTS[0], WEIGHTS[2]):
            source.fetch(f"{folder}/{file}")
    for weights in WEIGHTS:
        path = source.fetch(weights)
        if path is not None:
            break
    else:
        if source.unlisted:
            raise ModelError(f"{source.id}: the weights are not in the cache, and {source.unlisted}")
        raise ModelError(f"{source.id}: has no weights: none of {', '.join(WEIGHTS)} is there")
    if weights.endswith(".index.json"):
        shards = _read_json(source.id, path).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelError(f"{source.id}: {weights} has no weight_map")
        for shard in sorted(set(map(str, shards.values()))):
            if Path(shard).name != shard or source.fetch(shard) is None:
                where = f"in the cache, and {source.unlisted}" if source.unlisted else "there"
                raise ModelError(f"{source.id}: {weights} names {shard!r}, which is not {where}")
    return Snapshot(path.parent, weights)
