"""Signatures: what a trusted key lets through and what it stops, and ``cpuc verify``."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from archives import Member, pack, unpack, with_manifest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from hypothesis import given, settings
from hypothesis import strategies as st
from keys import PEM, Keys, make_keys

import cpuc
from cpuc.runtime.bundle import MANIFEST, SIGNATURE, open_bundle
from cpuc.runtime.signature import Signature

RECORD = {"question": "Who wrote it?", "context": "Ada Lovelace wrote it in London."}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """The keys of somebody else."""
    return make_keys(tmp_path_factory.mktemp("keys"), "other")


@pytest.fixture(scope="module")
def signed(tiny: Path, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle, signed."""
    path = tmp_path_factory.mktemp("signed") / "signed.pt"
    cpuc.sign(tiny, cpuc.read_private_key(keys.private), path)
    return path


def written(path: Path, members: list[Member]) -> Path:
    path.write_bytes(pack(members))
    return path


def test_a_signed_bundle_is_the_same_but_for_its_signature(tiny: Path, signed: Path, keys: Keys) -> None:
    before, after = open_bundle(tiny), open_bundle(signed, trust=keys.public)
    assert list(after.members) == [*before.members, SIGNATURE]
    assert all(after.file.read(*after.members[name]) == before.file.read(*place) for name, place in before.members.items())
    assert signed.read_bytes()[: before.members[MANIFEST][0]] == tiny.read_bytes()[: before.members[MANIFEST][0]]
    assert (after.trusted, open_bundle(signed).trusted) == (True, False)
    answer = cpuc.load(tiny)(RECORD)
    assert cpuc.load(signed, trust=keys.public)(RECORD) == answer
    assert cpuc.load(signed)(RECORD) == answer


def test_openssl_agrees(tiny: Path, tmp_path: Path) -> None:
    """Keys made by OpenSSL are taken, and OpenSSL accepts what was signed."""

    def openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, cwd=tmp_path)

    openssl("genpkey", "-algorithm", "ed25519", "-out", "key.pem")
    openssl("pkey", "-in", "key.pem", "-pubout", "-out", "key.pub.pem")
    bundle = cpuc.sign(tiny, cpuc.read_private_key(tmp_path / "key.pem"), tmp_path / "signed.pt")
    open_bundle(tmp_path / "signed.pt", trust=tmp_path / "key.pub.pem")
    assert bundle.signature is not None
    manifest = bundle.file.read(*bundle.members[MANIFEST])
    (tmp_path / "message").write_bytes(b"cpuc bundle signature 1\n" + manifest)
    (tmp_path / "signature").write_bytes(base64.b64decode(bundle.signature.signature))
    verify = ["pkeyutl", "-verify", "-pubin", "-inkey", "key.pub.pem", "-rawin", "-in", "message", "-sigfile", "signature"]
    openssl(*verify)


def test_signing_again_replaces_the_signature(signed: Path, tiny: Path, others: Keys, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pt"
    copy.write_bytes(signed.read_bytes())
    cpuc.sign(copy, cpuc.read_private_key(others.private))
    assert open_bundle(copy, trust=others.public).trusted
    direct = tmp_path / "direct.pt"
    cpuc.sign(tiny, cpuc.read_private_key(others.private), direct)
    assert copy.read_bytes() == direct.read_bytes()


def test_what_the_key_did_not_sign_is_refused_everywhere(
    tiny: Path, signed: Path, keys: Keys, others: Keys, tmp_path: Path, cli: Any
) -> None:
    members = unpack(signed)
    signature = members[-1]
    forged = json.loads(signature.data)
    forged["public_key"] = json.loads(_signed_by(tiny, others, tmp_path))["public_key"]
    altered = with_manifest(members[:-1], lambda m: m.update(task="text-classification"))
    cases = {
        "unsigned": (members[:-1], "is not signed"),
        "other": ([*members[:-1], Member(signature.name, _signed_by(tiny, others, tmp_path))], "is signed by SHA256:"),
        "altered": ([*altered, signature], "the signature is not one of this manifest"),
        "renamed-key": ([*members[:-1], Member(signature.name, json.dumps(forged).encode())], "is signed by SHA256:"),
        "broken": ([*members[:-1], Member(signature.name, b"{}")], "signature.json is not readable"),
    }
    for name, (changed, message) in cases.items():
        path = written(tmp_path / f"{name}.pt", changed)
        for call in (cpuc.load, cpuc.verify, open_bundle):
            with pytest.raises(cpuc.BundleError, match=message):
                call(path, trust=keys.public)
    for command in (
        ("run", tmp_path / "unsigned.pt", "--input", "-"),
        ("run", tmp_path / "altered.pt", "--raw", "--input", "-"),
        ("verify", tmp_path / "other.pt"),
    ):
        done = cli(*command, "--trust", keys.public, stdin=json.dumps(RECORD))
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.splitlines()) == 1 and "sign" in done.stderr


def _signed_by(bundle: Path, keys: Keys, tmp_path: Path) -> bytes:
    other = tmp_path / "by-other.pt"
    other.unlink(missing_ok=True)
    cpuc.sign(bundle, cpuc.read_private_key(keys.private), other)
    return unpack(other)[-1].data


def test_a_member_altered_after_signing_is_refused(signed: Path, keys: Keys, tmp_path: Path) -> None:
    offset, size = open_bundle(signed).members["constants/0"]
    data = bytearray(signed.read_bytes())
    data[offset + size // 2] ^= 1
    path = tmp_path / "altered.pt"
    path.write_bytes(data)
    # The archive's own checksum of the member no longer fits either, which nobody but us reads.
    for call in (cpuc.load, cpuc.verify):
        with pytest.raises(cpuc.BundleError, match="'constants/0' does not match its SHA-256"):
            call(path, trust=keys.public)
    with pytest.raises(cpuc.BundleError, match="does not match its SHA-256"):
        cpuc.sign(path, cpuc.read_private_key(keys.private), tmp_path / "again.pt")
    assert not (tmp_path / "again.pt").exists()


def test_the_signature_is_checked_before_the_manifest_is_read(signed: Path, keys: Keys, tmp_path: Path) -> None:
    members = unpack(signed)
    members[-2] = Member(members[-2].name, b"[" * 100_000)
    path = written(tmp_path / "deep.pt", members)
    with pytest.raises(cpuc.BundleError, match="the signature is not one of this manifest"):
        open_bundle(path, trust=keys.public)
    with pytest.raises(cpuc.BundleError, match="is not valid JSON"):
        open_bundle(path)


def test_nothing_comes_after_the_manifest_but_a_signature(signed: Path, keys: Keys, tmp_path: Path) -> None:
    members = unpack(signed)
    swapped = [*members[:-2], members[-1], members[-2]]
    early = [members[-1], *members[:-1]]
    for order in (swapped, early):
        with pytest.raises(cpuc.BundleError, match=r"manifest.json' is not the last one"):
            open_bundle(written(tmp_path / "swapped.pt", order))
    with pytest.raises(cpuc.BundleError, match="not in both"):
        open_bundle(written(tmp_path / "more.pt", [*members, Member(b"cpuc/extra/z", b"")]), trust=keys.public)


def test_digests_go_with_a_trusted_key(signed: Path, keys: Keys, cli: Any) -> None:
    with pytest.raises(cpuc.InputError, match="a signature covers digests"):
        cpuc.load(signed, trust=keys.public, check_digests=False)
    done = cli("run", signed, "--trust", keys.public, "--no-check-digests", "-i", "-", stdin=json.dumps(RECORD))
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize("kind", ["absent", "text", "private", "rsa-like", "folder", "empty"])
def test_a_key_that_is_none_is_named(signed: Path, keys: Keys, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "key.pem"
    if kind == "text":
        path.write_text("hello")
    elif kind == "private":
        path = keys.private
    elif kind == "rsa-like":
        public = generate_private_key(SECP256R1()).public_key()
        path.write_bytes(public.public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    elif kind == "folder":
        path = tmp_path
    elif kind == "empty":
        path.touch()
    with pytest.raises(cpuc.InputError, match=r"cannot be read|holds no Ed25519 public key") as error:
        open_bundle(signed, trust=path)
    assert str(path) in str(error.value)
    if kind != "private":
        with pytest.raises(cpuc.InputError, match=r"cannot be read|holds no Ed25519 private key"):
            cpuc.read_private_key(path)


def test_encrypted_keys_take_their_password_from_the_environment(tiny: Path, tmp_path: Path, cli: Any) -> None:
    keys = make_keys(tmp_path, "encrypted", b"secret")
    for environment, message in (
        ({}, "give its password"),
        ({"CPUC_KEY_PASSWORD": "wrong"}, "is not that of the key"),
        ({"CPUC_KEY_PASSWORD": "\udcfc"}, "is not that of the key"),  # a byte that is no UTF-8
    ):
        done = cli("sign", tiny, "--key", keys.private, "-o", tmp_path / "signed.pt", **environment)
        assert done.returncode == 1 and message in done.stderr
        assert not (tmp_path / "signed.pt").exists()
    done = cli("sign", tiny, "--key", keys.private, "-o", tmp_path / "signed.pt", CPUC_KEY_PASSWORD="secret")
    assert (done.returncode, done.stderr) == (0, "")
    assert open_bundle(tmp_path / "signed.pt", trust=keys.public).trusted


def test_signing_does_not_replace_another_file(tiny: Path, keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "there.pt").write_text("precious")
    key = cpuc.read_private_key(keys.private)
    with pytest.raises(cpuc.CpucError, match="exists already; give --force"):
        cpuc.sign(tiny, key, tmp_path / "there.pt")
    assert (tmp_path / "there.pt").read_text() == "precious"
    cpuc.sign(tiny, key, tmp_path / "there.pt", force=True)
    (tmp_path / "there.pt").chmod(0o600)
    cpuc.sign(tmp_path / "there.pt", key)
    assert open_bundle(tmp_path / "there.pt", trust=keys.public).trusted
    assert (tmp_path / "there.pt").stat().st_mode & 0o777 == 0o600


def test_verify_says_what_it_checked_and_runs_nothing(signed: Path, tiny: Path, keys: Keys, cli: Any) -> None:
    done = cli("verify", signed, "--trust", keys.public, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert (facts["trusted"], facts["digests"], facts["members"]) == (True, facts["members"] - 2, len(unpack(signed)))
    assert facts["problem"] is None and facts["proof"] is None
    script = "import sys, cpuc; cpuc.verify(sys.argv[1], trust=sys.argv[2]); print(sorted(set(sys.modules) & {'transformers'}))"
    watched = f"import torch\ntorch.jit.load = None\n{script}"
    done = subprocess.run([sys.executable, "-c", watched, signed, keys.public], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
    done = cli("verify", signed)
    assert "not checked: give the signer's public key with --trust" in done.stdout
    assert "signature  none" in cli("verify", tiny).stdout


def test_verify_against_the_original(tiny: Path, tiny_model: Path, tmp_path: Path, cli: Any) -> None:
    done = cli("verify", tiny, "--against", tiny_model, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    proof = json.loads(done.stdout)["proof"]
    assert proof == json.loads(cli("inspect", tiny, "--json").stdout)["proof"]
    # Another model of the same shapes: the artifact is whole, and not this model's.
    from tiny import make_model

    other = make_model(tmp_path / "other", "bert", num_hidden_layers=1)
    done = cli("verify", tiny, "--against", other)
    assert (done.returncode, done.stdout) == (3, "")
    assert "differs from the original model" in done.stderr
    smaller = make_model(tmp_path / "smaller", "bert", max_position_embeddings=64)
    assert cli("verify", tiny, "--against", smaller).returncode == 3
    assert cli("verify", tiny, "--revision", "main").returncode == 1


@pytest.mark.slow
def test_a_model_of_other_sizes_does_not_agree_where_ipex_is_loaded(tiny: Path, tmp_path: Path) -> None:
    """There the original runs in a process of its own."""
    from tiny import make_model

    smaller = make_model(tmp_path / "smaller", "bert", max_position_embeddings=64)
    cpuc.load(tiny, warm_up=False)
    with pytest.raises(cpuc.ParityError, match="smaller: does not take the inputs that the artifact takes"):
        cpuc.verify(tiny, against=str(smaller))


@pytest.mark.slow
def test_verify_runs_the_file_that_it_has_checked(tiny: Path, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(tiny.read_bytes())

    def swap(stage: str) -> None:
        if stage == "running both":
            (tmp_path / "evil.pt").write_bytes(b"evil")
            (tmp_path / "evil.pt").replace(path)

    assert cpuc.verify(path, against=str(tiny_model), report=swap).proof == open_bundle(tiny).manifest.proof
    assert path.read_bytes() == b"evil"


def test_what_a_bundle_says_cannot_move_the_cursor(tiny: Path, tmp_path: Path, cli: Any) -> None:
    evil = "\x1b[2J\rok\u202e"
    path = written(tmp_path / "evil.pt", with_manifest(unpack(tiny), lambda m: m["source"].update(id=evil, license=evil)))
    for command in ("inspect", "verify"):
        done = cli(command, path)
        assert done.returncode == 0
        assert not {"\x1b", "\r", "\u202e"} & set(done.stdout + done.stderr)
        assert r"\x1b[2J\rok\u202e" in done.stdout
    bad = written(tmp_path / "bad.pt", with_manifest(unpack(tiny), lambda m: m.update(format_version=3, color=evil)))
    wrong = written(tmp_path / "wrong.pt", with_manifest(unpack(tiny), lambda m: m["build"].update(torch=f"2.8.0; {evil}")))
    for each, message in ((bad, "unknown field 'color'"), (wrong, "is no version")):
        done = cli("inspect", each)
        assert done.returncode == 1 and message in done.stderr
        assert not {"\x1b", "\r", "\u202e"} & set(done.stderr)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_any_signature_member_is_read_or_refused(data: bytes) -> None:
    try:
        signature = Signature.from_json(data)
    except cpuc.BundleError:
        return
    assert len(base64.b64decode(signature.signature)) == 64


def test_signatures_need_their_library_only_when_asked_for(signed: Path, keys: Keys) -> None:
    script = (
        "import sys; sys.modules['cryptography'] = None\nimport cpuc\nfrom cpuc.runtime.bundle import open_bundle\n"
        "assert open_bundle(sys.argv[1]).signature\n"
        "try: open_bundle(sys.argv[1], trust=sys.argv[2])\nexcept cpuc.CpucError as error: print(error)"
    )
    command = [sys.executable, "-c", script, signed, keys.public]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
    assert "pip install 'cpuc[sign]'" in done.stdout
