"""What tests of sources share: a tiny repository, and users who run programs against a Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

NAME = "someone/tiny"
SHORT, LONG = "bert-base-uncased-squad-v1", "csarron/bert-base-uncased-squad-v1"
# Nobody reads the weights before they are loaded, so they need not be any.
WEIGHTS = bytes(range(256)) * 400
TINY: dict[str, str | bytes] = {
    "config.json": json.dumps({"architectures": ["BertForQuestionAnswering"], "model_type": "bert"}),
    "README.md": "---\nlicense: mit\n---\n# Tiny\n",
    "tokenizer.json": "{}",
    "model.safetensors": WEIGHTS,
}
INDEX = json.dumps(
    {"metadata": {}, "weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors", "c": "part-1.safetensors"}}
)
# What repositories hold beside the model, none of which is any business of a compiler.
OTHERS = (
    ".gitattributes",
    "flax_model.msgpack",
    "modeling_evil.py",
    "onnx/model.onnx",
    "optimizer.pt",
    "tf_model.h5",
    "training_args.bin",
)

FETCH = """
import json, sys
from cpuc.compiler.source import resolve, snapshot
source = resolve(*sys.argv[1:])
files = snapshot(source)
print(json.dumps([source.id, source.revision, source.license, files.weights, str(files.folder)]))
assert not {"torch", "transformers"} & set(sys.modules), "finding a model takes no torch"
"""
# The Hub's client waits between its attempts for up to eight seconds, and nothing in its settings says otherwise.
IMPATIENCE = "import time\nsleep = time.sleep\ntime.sleep = lambda seconds: sleep(min(seconds, 0.01))\n"


class Fetched(NamedTuple):
    """What FETCH prints."""

    id: str
    revision: str | None
    license: str | None
    weights: str
    folder: str


@dataclass(frozen=True)
class User:
    """Somebody who runs programs against a Hub, with a cache and a folder for bundles of their own."""

    home: Path
    endpoint: str
    settings: Mapping[str, str]

    def having(self, **settings: str) -> User:
        """The same user with other environment variables."""
        return replace(self, settings={**self.settings, **settings})

    @property
    def bundle(self) -> Path:
        """What `compile` writes."""
        return self.home / "bundles" / "model.pt"

    def compile(self, name: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run ``cpuc compile``."""
        self.bundle.parent.mkdir(exist_ok=True)
        return self._run(Path(sys.executable).with_name("cpuc"), "compile", name, "-o", self.bundle, *options)

    def fetch(self, *arguments: str) -> Fetched:
        """Do what ``cpuc compile`` does before it loads the model."""
        done = self._run(sys.executable, "-c", FETCH, *arguments)
        assert done.returncode == 0, done.stderr
        return Fetched(*json.loads(done.stdout))

    def fails(self, name: str, *options: str) -> str:
        """Check that ``cpuc compile`` fails as it should: one line for the user, nothing written. Returns that line."""
        done = self.compile(name, *options)
        assert done.returncode == 1, done
        assert done.stdout == "" and "Traceback" not in done.stderr
        assert list(self.bundle.parent.iterdir()) == []
        # Above it there may be the client's warnings about its attempts.
        *above, line = done.stderr.splitlines()
        assert line.startswith("cpuc: ") and not any(other.startswith("cpuc: ") for other in above), done.stderr
        assert not line.startswith("cpuc: unexpected"), line
        return line

    def _run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        left_out = ("HF_", "HUGGING", "TRANSFORMERS_")
        inherited = {key: value for key, value in os.environ.items() if not key.upper().startswith(left_out)}
        own = {
            "HOME": str(self.home),
            "HF_HOME": str(self.home / "cache"),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(self.home / "site"),
        }
        environment = {**inherited, **own, **self.settings}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.home, timeout=300, check=False)


def write(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """Make a folder with these files."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def without(*names: str) -> dict[str, str | bytes]:
    """The tiny repository's files but these."""
    return {name: content for name, content in TINY.items() if name not in names}


def new_user(home: Path, endpoint: str) -> User:
    """A user whose programs do not wait."""
    write(home / "site", {"sitecustomize.py": IMPATIENCE})
    return User(home, endpoint, {})


Publish = Callable[..., str]
