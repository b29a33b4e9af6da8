"""Vectors as answers: what feature extraction and embeddings share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cpuc.runtime.labels import with_id


@dataclass(frozen=True, eq=False)
class Features:
    """The model's last hidden states for one record, float32, such as [tokens, hidden] or [patches, hidden]."""

    features: np.ndarray
    id: Any = None

    def to_json(self) -> dict[str, Any]:
        return with_id(self.id, {"features": self.features.tolist()})


@dataclass(frozen=True, eq=False)
class Embedding:
    """One vector for one record, float32, [dimensions]."""

    embedding: np.ndarray
    id: Any = None

    def to_json(self) -> dict[str, Any]:
        return with_id(self.id, {"embedding": self.embedding.tolist()})
