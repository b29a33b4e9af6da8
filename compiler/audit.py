"""``cpuc verify``: what can be known of an artifact without running it, and its parity on this machine."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cpuc.compiler.precision import PRECISIONS
from cpuc.compiler.processes import start_processes
from cpuc.compiler.source import resolve, snapshot
from cpuc.compiler.tasks import TASKS, select
from cpuc.runtime.bundle import Bundle, open_bundle
from cpuc.runtime.engine import check_cpu, check_versions
from cpuc.runtime.errors import BundleError, InputError, ModelError, ParityError, printable
from cpuc.runtime.manifest import Proof
from cpuc.runtime.summary import agreement
from cpuc.runtime.tasks import load_task


@dataclass(frozen=True)
class Verification:
    """What was checked of an artifact, all of which held.

    Attributes:
        members: how many the archive has; `digests` of them match their SHA-256.
        signer: the fingerprint of the key that the bundle names as its signer, None if it is not signed. Only if `trusted`
            was the signature checked, with the key that was given.
        problem: why this machine cannot run the artifact, None if it can.
        proof: agreement with the original on this machine, None if that was not asked for.
    """

    path: str
    task: str
    architecture: str
    precision: str
    source: str
    members: int
    digests: int
    signer: str | None
    trusted: bool
    problem: str | None
    proof: Proof | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def describe(self) -> list[str]:
        """What was checked, for a person, line by line."""
        signature = "none" if self.signer is None else f"by {self.signer}, "
        if self.signer is not None:
            signature += "the trusted key" if self.trusted else "not checked: give the signer's public key with --trust"
        rows = [
            ("archive", f"{self.members} members, laid out as the format says"),
            ("manifest", f"{self.task}, {self.architecture}, {self.precision}, from {self.source}"),
            ("digests", f"{self.digests} of {self.digests} members match their SHA-256"),
            ("signature", signature),
            ("machine", self.problem or "runs the artifact"),
            ("parity", "not checked: give the original with --against" if self.proof is None else agreement(self.proof)),
        ]
        return [printable(self.path), *(f"  {name:<11}{printable(text)}" for name, text in rows)]


def verify(
    path: str | os.PathLike[str],
    *,
    trust: str | os.PathLike[str] | None = None,
    against: str | None = None,
    revision: str | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Verification:
    """Check a bundle: layout, manifest, every digest, the files that its task reads, and the signature if a key is given.

    Nothing in it is executed unless `against` is given.

    Args:
        trust: a PEM file with an Ed25519 public key; the bundle must be signed by it.
        against: the original model, a folder, a Hub id or a short name: the artifact is compared with it on this machine, as
            a compile does.
        revision: branch, tag or commit of it on the Hub.
        report: called with the name of each stage as it begins.

    Raises:
        BundleError: something of the bundle is not as it must be, or this machine cannot run it and `against` is given.
        ParityError: the artifact does not agree with the original.
        ModelError, InputError: the original cannot be loaded; a wrong option or key.
    """
    if revision is not None and against is None:
        raise InputError("a revision belongs to a model: give --against")
    report("checking the bundle")
    bundle = open_bundle(path, trust=trust)
    bundle.check_digests()
    manifest = bundle.manifest
    load_task(manifest, bundle.read)
    problem = _problem(bundle)
    proof = None
    if against is not None:
        if problem is not None:
            raise BundleError(problem)
        proof = _parity(bundle, against, revision, report)
    return Verification(
        path=str(path),
        task=manifest.task,
        architecture=manifest.architecture,
        precision=manifest.build.precision,
        source=manifest.source.id + (f" at {manifest.source.revision}" if manifest.source.revision else ""),
        members=len(bundle.members),
        digests=len(manifest.members),
        signer=bundle.signature.signer if bundle.signature else None,
        trusted=bundle.trusted,
        problem=problem,
        proof=proof,
    )


def _problem(bundle: Bundle) -> str | None:
    try:
        check_versions(bundle)
        check_cpu(bundle)
    except BundleError as error:
        return str(error)
    return None


def _parity(bundle: Bundle, against: str, revision: str | None, report: Callable[[str], None]) -> Proof:
    """The check that a compile ends with, of an artifact that is there already."""
    manifest = bundle.manifest
    if manifest.build.precision not in PRECISIONS or manifest.task not in TASKS:
        raise BundleError(f"{bundle.path}: its precision or task is unknown to this cpuc: update cpuc")
    report("fetching weights")
    source = resolve(against, revision)
    task, kind = select(source, manifest.task, allow_unlisted=True)
    if kind != manifest.architecture:
        raise ModelError(f"{source.id}: is a {kind}, the artifact was compiled from a {manifest.architecture}")
    files = snapshot(source, sentence=task == "sentence-embeddings")
    report("loading the original model")
    start_processes()
    # These import torch and transformers, which take seconds.
    from cpuc.compiler.loading import load_original, quiet
    from cpuc.compiler.verification import compare, make_sample, replay, run_original, with_packed_sizes

    original = load_original(source, files, task, kind)
    runtime_task = load_task(manifest, bundle.read)
    sample = with_packed_sizes(make_sample(runtime_task, manifest, TASKS[task].records(manifest.preprocessing)), manifest)
    inputs, outputs = ([spec.name for spec in specs] for specs in (manifest.inputs, manifest.outputs))
    report("running both")
    with quiet():
        try:
            eager = run_original(original, inputs, outputs, sample.batches)
        except ModelError as error:
            raise ParityError(f"{source.id}: does not take the inputs that the artifact takes: {error}") from error
    artifact = replay(bundle.file, manifest, sample)
    return compare(runtime_task, manifest, sample, eager, artifact, PRECISIONS[manifest.build.precision].tolerance)
