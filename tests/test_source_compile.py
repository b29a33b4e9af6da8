"""From a repository all the way to answers, and code in repositories that is never executed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tokenizers
from hub import TOKEN, Hub
from sources import LONG, NAME, OTHERS, SHORT, User, new_user, write

import cpuc
from cpuc.runtime.manifest import Manifest


class Evil:
    """Unpickled, creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def with_code(config: Path, executed: Path) -> dict[str, str | bytes]:
    """A configuration that names code of its own, and that code: it creates a file."""
    classes = {"AutoModelForQuestionAnswering": "modeling_evil.Evil", "AutoTokenizer": ["modeling_evil.Evil", None]}
    return {
        "config.json": json.dumps({**json.loads(config.read_text()), "auto_map": classes}),
        "modeling_evil.py": f"open({str(executed)!r}, 'w').close()\n",
    }


class TestCode:
    """Weights that are programs, and programs beside the weights."""

    @pytest.mark.parametrize("form", ["archive", "bare", "shard"])
    def test_is_not_executed(self, user: User, minilm: Path, tmp_path: Path, form: str) -> None:
        import torch

        evil = Evil(tmp_path / "executed")
        write(user.home / "mine", with_code(minilm / "config.json", evil.file))
        target = user.home / "mine" / "pytorch_model.bin"
        if form == "bare":
            target.write_bytes(pickle.dumps({"bert.embeddings.word_embeddings.weight": evil}))
            pickle.loads(target.read_bytes())
        else:
            if form == "shard":
                index = {"metadata": {}, "weight_map": {"bert.embeddings.word_embeddings.weight": "part-1.bin"}}
                write(target.parent, {"pytorch_model.bin.index.json": json.dumps(index)})
                target = target.with_name("part-1.bin")
            torch.save({"bert.embeddings.word_embeddings.weight": evil}, target)
            torch.load(target, weights_only=False)
        assert evil.file.exists(), "the weights of this test are harmless"
        evil.file.unlink()

        line = user.fails("./mine")
        assert not evil.file.exists()
        assert "pytorch_model.bin" in line and "holds more than tensors" in line and "safetensors" in line


class Compiled(NamedTuple):
    """A bundle, what ``cpuc compile`` printed of it, the Hub's commit, and what was downloaded."""

    bundle: Path
    printed: Manifest
    commit: str
    downloads: list[str]


def compile_from_hub(user: User, hub: Hub, folder: Path, name: str, *options: str, **access: Any) -> Compiled:
    """Put a folder on the Hub and compile it from there. `access` holds options of `Hub.add`."""
    commit = hub.add(access.pop("repository", name), folder, **access)
    done = user.compile(name, "--json", *options)
    assert done.returncode == 0, done.stderr
    return Compiled(user.bundle, Manifest.from_json(done.stdout), commit, hub.downloads())


@pytest.fixture(scope="module")
def old(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The embedded model as repositories were years ago, and with code in it, compiled by a short name."""
    import torch
    from safetensors.torch import load_file

    home = tmp_path_factory.mktemp("old")
    vocabulary = json.loads((minilm / "tokenizer.json").read_text())["model"]["vocab"]
    files = {
        **dict.fromkeys(OTHERS, "?"),
        **with_code(minilm / "config.json", home / "executed"),
        "README.md": "---\nlicense: mit\n---\n",
        "vocab.txt": "".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.__getitem__)),
    }
    folder = write(home / "repository", files)
    torch.save(load_file(minilm / "model.safetensors"), folder / "pytorch_model.bin")
    with Hub() as hub:
        return compile_from_hub(new_user(home, hub.url), hub, folder, SHORT, repository=LONG)


@pytest.fixture(scope="module")
def sharded(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The embedded model in three parts on a branch of a private repository, compiled through a bad connection."""
    from safetensors.torch import load_file, save_file

    home = tmp_path_factory.mktemp("sharded")
    files = {file.name: file.read_bytes() for file in minilm.iterdir() if file.suffix != ".safetensors"}
    folder = write(home / "repository", files)
    weights = load_file(minilm / "model.safetensors")
    parts = {f"model-{part + 1:05}-of-00003.safetensors": sorted(weights)[part::3] for part in range(3)}
    for file, names in parts.items():
        save_file({name: weights[name] for name in names}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in parts.items() for name in names}}
    write(folder, {"model.safetensors.index.json": json.dumps(index)})
    with Hub() as hub:
        hub.fail("drop", "model-00002", times=1)
        user = new_user(home, hub.url).having(HF_TOKEN=TOKEN)
        return compile_from_hub(user, hub, folder, NAME, "--revision", "v1", branch="v1", private=True)


@pytest.mark.slow
class TestCompiled:
    """All the way from the Hub to answers."""

    def test_old_manifest(self, old: Compiled) -> None:
        manifest = cpuc.open_bundle(old.bundle).manifest
        assert (manifest.source.id, manifest.source.revision) == (LONG, old.commit)
        assert (manifest.source.license, manifest.source.weights) == ("mit", "pytorch_model.bin")
        assert manifest == old.printed

    def test_old_downloads(self, old: Compiled) -> None:
        assert old.downloads == ["config.json", "README.md", "vocab.txt", "pytorch_model.bin"]
        assert not (old.bundle.parent.parent / "executed").exists()

    def test_sharded_manifest(self, sharded: Compiled) -> None:
        manifest = cpuc.open_bundle(sharded.bundle).manifest
        assert (manifest.source.id, manifest.source.revision) == (NAME, sharded.commit)
        assert (manifest.source.license, manifest.source.weights) == ("apache-2.0", "model.safetensors.index.json")

    def test_sharded_downloads(self, sharded: Compiled) -> None:
        parts = [f"model-0000{part}-of-00003.safetensors" for part in (1, 2, 2, 3)]
        side = ["config.json", "README.md", "tokenizer.json", "tokenizer_config.json"]
        assert sharded.downloads == [*side, "model.safetensors.index.json", *parts]

    @pytest.mark.parametrize("form", ["old", "sharded"])
    def test_answers(self, model: cpuc.Model, form: str, request: pytest.FixtureRequest) -> None:
        """Where the files lay and what they were called changes nothing."""
        records = [
            {"question": "Who wrote it?", "context": "The first program was written by Ada Lovelace in 1843."},
            {"question": "When?", "context": "The first program was written by Ada Lovelace in 1843."},
            {"question": "WHO wróte the café's menü?", "context": "Naïve Zoë wrote it; 東京 did not — [MASK] neither. " * 40},
        ]
        compiled: Compiled = request.getfixturevalue(form)
        assert list(cpuc.load(compiled.bundle)(records)) == list(model(records))

    @pytest.mark.parametrize(
        "text", ["Ada LOVELACE's café", "東京 is naïve", "un[MASK]able [SEP] ...", "ﬁ\u200b\t\u0000 \ufffd", ""]
    )
    def test_old_vocabulary(self, old: Compiled, minilm: Path, text: str) -> None:
        made = tokenizers.Tokenizer.from_str(cpuc.open_bundle(old.bundle).read("tokenizer.json").decode())
        original = tokenizers.Tokenizer.from_file(str(minilm / "tokenizer.json"))
        first, second = made.encode(text, "and more"), original.encode(text, "and more")
        assert (first.ids, first.type_ids, first.offsets) == (second.ids, second.type_ids, second.offsets)
