"""Models on the Hub, of which a stand-in is asked by the real client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hub import STRANGER, TOKEN, Hub
from sources import INDEX, LONG, NAME, OTHERS, SHORT, TINY, Publish, User, without

from cpuc.compiler.names import all_names


class TestHub:
    """Models that are there."""

    def test_fetches_only_what_a_compile_needs(self, hub: Hub, user: User, publish: Publish) -> None:
        commit = publish({**TINY, **dict.fromkeys(OTHERS, "?"), "pytorch_model.bin": "?", "vocab.txt": "[PAD]"})
        fetched = user.fetch(NAME)
        assert fetched[:4] == (NAME, commit, "mit", "model.safetensors")
        assert hub.downloads() == ["config.json", "README.md", "tokenizer.json", "vocab.txt", "model.safetensors"]
        unwanted = (*OTHERS, "pytorch_model.bin")
        assert [path for _, path in hub.requests if path.endswith(unwanted)] == []

    def test_what_came_is_what_is_there(self, user: User, publish: Publish) -> None:
        publish()
        folder = Path(user.fetch(NAME).folder)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
            name: content.encode() if isinstance(content, str) else content for name, content in TINY.items()
        }

    @pytest.mark.parametrize(
        ("there", "chosen", "downloaded"),
        [
            (["pytorch_model.bin", "model.safetensors"], "model.safetensors", ["model.safetensors"]),
            (["pytorch_model.bin"], "pytorch_model.bin", ["pytorch_model.bin"]),
            (
                ["pytorch_model.bin", "model.safetensors.index.json", "part-1.safetensors", "part-2.safetensors"],
                "model.safetensors.index.json",
                ["model.safetensors.index.json", "part-1.safetensors", "part-2.safetensors"],
            ),
            (
                ["pytorch_model.bin.index.json", "part-1.safetensors", "part-2.safetensors", "part-3.safetensors"],
                "pytorch_model.bin.index.json",
                ["pytorch_model.bin.index.json", "part-1.safetensors", "part-2.safetensors"],
            ),
        ],
        ids=["both", "pickle", "shards-and-pickle", "pickled-shards"],
    )
    def test_chooses_weights(
        self, hub: Hub, user: User, publish: Publish, there: list[str], chosen: str, downloaded: list[str]
    ) -> None:
        weights = {name: INDEX if name.endswith(".json") else name for name in there}
        publish({"config.json": TINY["config.json"], **weights})
        assert user.fetch(NAME).weights == chosen
        assert hub.downloads() == ["config.json", *downloaded]

    def test_short_name(self, user: User, publish: Publish) -> None:
        commit = publish(name=LONG)
        publish(name="someone/" + SHORT)
        assert user.fetch(SHORT)[:2] == (LONG, commit)

    def test_renamed_repository(self, hub: Hub, user: User, publish: Publish) -> None:
        commit = publish()
        hub.renamed["tiny"] = NAME
        assert user.fetch("tiny")[:4] == ("tiny", commit, "mit", "model.safetensors")

    @pytest.mark.parametrize("revision", ["v1.0", "refs/pr/7", "commit"])
    def test_revision(self, user: User, publish: Publish, revision: str) -> None:
        commit = publish(
            {**TINY, "README.md": "---\nlicense: wtfpl\n---\n"}, branch="old" if revision == "commit" else revision
        )
        newest = publish()
        asked = commit if revision == "commit" else revision
        assert user.fetch(NAME, asked)[:3] == (NAME, commit, "wtfpl")
        assert user.fetch(NAME)[:3] == (NAME, newest, "mit")

    def test_moved_branch(self, user: User, publish: Publish) -> None:
        before = publish()
        assert user.fetch(NAME).revision == before
        after = publish({**TINY, "model.safetensors": "new weights"})
        fetched = user.fetch(NAME)
        assert fetched.revision == after
        assert (Path(fetched.folder) / "model.safetensors").read_text() == "new weights"

    @pytest.mark.parametrize("revision", ["v9", "0" * 40])
    def test_unknown_revision(self, user: User, publish: Publish, revision: str) -> None:
        publish()
        line = user.fails(NAME, "--revision", revision)
        assert NAME in line and f"no revision '{revision}'" in line

    @pytest.mark.parametrize("token", ["", STRANGER, "hf_wrong"])
    def test_private(self, hub: Hub, user: User, publish: Publish, token: str) -> None:
        publish(private=True)
        line = user.having(HF_TOKEN=token).fails(NAME)
        assert NAME in line and "HF_TOKEN" in line
        assert not token or token not in line
        assert hub.downloads() == []

    @pytest.mark.parametrize("token", ["", STRANGER])
    def test_gated(self, hub: Hub, user: User, publish: Publish, token: str) -> None:
        publish(gated=True)
        line = user.having(HF_TOKEN=token).fails(NAME)
        assert NAME in line and "gated" in line and "accept its terms" in line
        assert hub.downloads() == []

    @pytest.mark.parametrize("access", ["private", "gated"])
    def test_token_opens(self, user: User, publish: Publish, access: str) -> None:
        commit = publish(**{access: True})
        assert user.having(HF_TOKEN=TOKEN).fetch(NAME)[:2] == (NAME, commit)


class TestNothingThere:
    """Names and repositories that are no models."""

    @pytest.mark.parametrize("name", ["someone/nothing", "nothing", "bert-base-uncased-squad1", "no such name!", "someone/"])
    def test_unknown_name(self, user: User, publish: Publish, name: str) -> None:
        publish()
        line = user.fails(name)
        assert f"'{name}' was tried as a local folder, as a short name and as a Hub repository" in line
        assert "HF_TOKEN" in line
        assert all(short in line for short in all_names())
        assert (f"did you mean {SHORT}" in line) == (name == "bert-base-uncased-squad1")

    def test_short_name_of_a_missing_repository(self, user: User) -> None:
        assert f"'{SHORT}' (short for '{LONG}')" in user.fails(SHORT)

    def test_no_configuration(self, hub: Hub, user: User, publish: Publish) -> None:
        publish(without("config.json"))
        line = user.fails(NAME)
        assert NAME in line and "no config.json" in line
        assert hub.downloads() == []

    def test_broken_configuration(self, hub: Hub, user: User, publish: Publish) -> None:
        publish({**TINY, "config.json": '{"model_type": '})
        line = user.fails(NAME)
        assert NAME in line and "config.json is not valid JSON" in line
        assert hub.downloads() == ["config.json"]

    def test_no_weights(self, user: User, publish: Publish) -> None:
        publish({**without("model.safetensors"), "tf_model.h5": "?"})
        line = user.fails(NAME)
        assert NAME in line and "has no weights" in line and "model.safetensors" in line and "pytorch_model.bin" in line

    def test_missing_shard(self, user: User, publish: Publish) -> None:
        publish({**without("model.safetensors"), "model.safetensors.index.json": INDEX, "part-1.safetensors": "?"})
        line = user.fails(NAME)
        assert NAME in line and "'part-2.safetensors'" in line and "'part-1.safetensors'" not in line

    @pytest.mark.parametrize(
        ("config", "part"),
        [
            ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "'gpt2' is not supported"),
            ({"model_type": "bert", "architectures": ["BertForNextSentencePrediction"]}, "BertForNextSentencePrediction"),
            ({"model_type": "bert", "architectures": ["BertForMaskedLM"], "quantization_config": {"bits": 4}}, "quantised"),
            ({"architectures": ["BertForQuestionAnswering"]}, "no model_type"),
        ],
        ids=["architecture", "task", "quantised", "no-type"],
    )
    def test_unsupported_costs_no_download(
        self, hub: Hub, user: User, publish: Publish, config: dict[str, Any], part: str
    ) -> None:
        publish({**TINY, "config.json": json.dumps(config)})
        line = user.fails(NAME)
        assert NAME in line and part in line
        assert hub.downloads() == ["config.json"]
