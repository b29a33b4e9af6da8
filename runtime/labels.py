"""Scores of labels: what classification of text, images and sound shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cpuc.runtime.errors import BundleError
from cpuc.runtime.manifest import Manifest

ACTIVATIONS = ("softmax", "sigmoid", "none")


@dataclass(frozen=True)
class Label:
    """A label of the model and its score; `id` is the record's own."""

    label: str
    score: float
    id: Any = None

    def to_json(self) -> dict[str, Any]:
        return with_id(self.id, {"label": self.label, "score": self.score})


@dataclass(frozen=True)
class Labels:
    """The best labels of one record, best first; what ``top_k`` asks for."""

    labels: list[Label]
    id: Any = None

    def to_json(self) -> dict[str, Any]:
        return with_id(self.id, {"labels": [{"label": each.label, "score": each.score} for each in self.labels]})


def with_id(identity: Any, record: dict[str, Any]) -> dict[str, Any]:
    """`record` with the user's id in front, if there is one."""
    return record if identity is None else {"id": identity, **record}


def read_labels(manifest: Manifest) -> list[str]:
    """``preprocessing.labels``: the label of each score, in order. Raises BundleError if they are not there."""
    labels = manifest.preprocessing.get("labels")
    shapes = [spec.shape for spec in manifest.outputs if spec.name == "logits"]
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise BundleError("manifest.json.preprocessing: labels is missing or wrong")
    if len(shapes) != 1 or not shapes[0] or (isinstance(shapes[0][-1], int) and shapes[0][-1] != len(labels)):
        raise BundleError("manifest.json: the outputs are not the scores of the labels in 'preprocessing'")
    return labels


def activate(logits: np.ndarray, activation: str) -> np.ndarray:
    """Scores of float32 logits along the last axis: "softmax", "sigmoid" or "none"."""
    if activation == "softmax":
        exponentials = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(-1, keepdims=True))
    if activation == "sigmoid":
        # exp of the negative magnitude only, which cannot overflow
        small = np.exp(-np.abs(logits))
        return np.asarray(np.where(logits >= 0, 1 / (1 + small), small / (1 + small)))
    return np.asarray(logits)


class LabelDecoder:
    """The model's labels and activation, read from a manifest, applied to logits of shape [labels]."""

    def __init__(self, manifest: Manifest) -> None:
        self.labels = read_labels(manifest)
        self.activation = str(manifest.preprocessing.get("activation"))
        if self.activation not in ACTIVATIONS:
            raise BundleError("manifest.json.preprocessing: activation is missing or wrong")

    def decode(self, logits: np.ndarray, top_k: int | None, identity: Any) -> Label | Labels:
        """The best label, or with `top_k` a list of the best ones."""
        scores = activate(logits, self.activation)
        order = np.argsort(-scores, kind="stable")[: top_k or 1]
        best = [Label(self.labels[i], float(scores[i])) for i in order]
        return Labels(best, identity) if top_k else Label(best[0].label, best[0].score, identity)


class Classifier:
    """Mixed into a task whose answer is the model's label, before the class that knows what is labelled."""

    def __init__(self, manifest: Manifest, *extra: bytes) -> None:
        super().__init__(manifest, *extra)  # type: ignore[call-arg]
        self._decoder = LabelDecoder(manifest)

    def decode(self, record: Any, rows: list[Any], outputs: list[dict[str, np.ndarray]], options: Any) -> Label | Labels:  # noqa: ARG002
        """The best label, or with ``top_k`` a list."""
        return self._decoder.decode(outputs[0]["logits"], options.top_k, record.id)
