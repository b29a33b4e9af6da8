"""Models in local folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub import Hub
from sources import INDEX, OTHERS, SHORT, TINY, User, without, write

import cpuc
from cpuc.compiler.source import resolve, snapshot


class TestFolder:
    """Local folders."""

    def test_source(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "mine", {**TINY, **dict.fromkeys(OTHERS, "?")})
        source = resolve(str(folder))
        files = snapshot(source)
        assert (source.id, source.revision, source.license) == ("mine", None, "mit")
        assert (files.folder, files.weights) == (folder, "model.safetensors")

    def test_comes_before_a_short_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / SHORT, TINY)
        monkeypatch.chdir(tmp_path)
        source = resolve(SHORT)
        assert (source.id, source.revision) == (SHORT, None)

    def test_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(write(tmp_path / "mine", TINY))
        assert resolve(".").id == "mine"
        with pytest.raises(cpuc.ModelError, match="empty name"):
            resolve("")

    def test_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "mine", TINY)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert resolve("~/mine").id == "mine"

    @pytest.mark.parametrize(
        ("card", "licence"),
        [
            ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
            ("---\nlicense: other\nlicense_name: acme-1\n---\n", "acme-1"),
            ("---\nlicense: [mit, cc0-1.0]\n---\n", "mit, cc0-1.0"),
            ("---\nlanguage: en\n---\n", None),
            ("# A card without metadata\n", None),
            ("---\nlicense: [mit\n---\n", None),
            ("---\n- license\n---\n", None),
            ("---\nlicense: m\u00eet\n---\n".encode("latin-1"), None),
            (None, None),
        ],
    )
    def test_license(self, tmp_path: Path, card: str | bytes | None, licence: str | None) -> None:
        folder = write(tmp_path, without("README.md") if card is None else {**TINY, "README.md": card})
        assert resolve(str(folder)).license == licence

    @pytest.mark.parametrize(
        "config",
        ['{"model_type": ', "", "[1, 2]", "null", b'{"model_type": "\xff"}', "[" * 100_000, None],
        ids=["cut", "empty", "list", "null", "not-utf-8", "deep", "absent"],
    )
    def test_broken_configuration(self, tmp_path: Path, config: str | bytes | None) -> None:
        folder = write(tmp_path, without("config.json") if config is None else {**TINY, "config.json": config})
        with pytest.raises(cpuc.ModelError, match=r"config\.json") as caught:
            resolve(str(folder))
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("index", "message"),
        [
            ("{", "is not valid JSON"),
            ("[]", "holds no object"),
            ("{}", "has no weight_map"),
            ('{"weight_map": {}}', "has no weight_map"),
            ('{"weight_map": ["part-1.safetensors"]}', "has no weight_map"),
            (INDEX, "'part-2.safetensors', which is not there"),
            ('{"weight_map": {"a": "../outside.safetensors"}}', "'../outside.safetensors', which is not there"),
            ('{"weight_map": {"a": ".."}}', "'..', which is not there"),
            ('{"weight_map": {"a": ""}}', "'', which is not there"),
            ('{"weight_map": {"a": 1}}', "'1', which is not there"),
        ],
    )
    def test_broken_index(self, tmp_path: Path, index: str, message: str) -> None:
        name = "model.safetensors.index.json"
        folder = write(tmp_path / "mine", {**without("model.safetensors"), name: index, "part-1.safetensors": "?"})
        write(tmp_path, {"outside.safetensors": "?"})
        source = resolve(str(folder))
        with pytest.raises(cpuc.ModelError, match="mine") as caught:
            snapshot(source)
        assert name in str(caught.value) and message in str(caught.value)

    @pytest.mark.parametrize("name", ["./gone", "../gone", "/gone/model", "~/gone", "~nobody-of-that-name/model", "a/b/c"])
    def test_missing(self, user: User, name: str) -> None:
        line = user.fails(name)
        assert line.startswith(f"cpuc: {name}: ") and "no such folder" in line

    def test_very_long_name(self, user: User) -> None:
        assert "x" * 300 in user.fails("x" * 300)

    def test_file(self, user: User) -> None:
        write(user.home, {"model.safetensors": "?"})
        assert "model.safetensors: is a file; give the folder" in user.fails("model.safetensors")

    def test_no_weights(self, user: User) -> None:
        write(user.home / "mine", {**without("model.safetensors"), "training_args.bin": "?"})
        line = user.fails("./mine")
        assert "mine: has no weights" in line and "model.safetensors" in line and "pytorch_model.bin" in line

    def test_revision(self, user: User) -> None:
        write(user.home / "mine", TINY)
        assert "--revision is for models on the Hub" in user.fails("./mine", "--revision", "main")

    def test_asks_no_hub(self, hub: Hub, user: User) -> None:
        write(user.home / "mine", TINY)
        assert user.fetch("./mine")[:4] == ("mine", None, "mit", "model.safetensors")
        assert hub.requests == []
