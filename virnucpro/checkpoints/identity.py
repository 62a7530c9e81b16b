"""The identity of a part: all that decides its embeddings. FORMAT.md lists its attributes."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from virnucpro.config.frame_rule import OPEN_RULE

# What stores of sequences, and `embed --long`, add to the digest of their input.
_INPUT_DIGEST = re.compile(r"(.*?)(?:, (in pairs))?(?: from (\d+) bp on)?(?: in (windows))?", re.S)
_INPUT_SETTINGS = (
    ("--paired: the input", "in single reads"),
    ("--min-length-bp", "0"),
    ("--long", "cut"),
)


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that determines the values in a part.

    Attributes:
        input_digest: Digest of the input; a row is a position in this input.
        backend: The backend's name.
        backend_version: Version of the package that provides the backend.
        weights_identity: Digest of the weights.
        precision: Precision of the computation: `fp32`, `bf16`, `fp16` or `fp8`.
        chunk_length_bp: Length of the chunks; 0 if records were embedded whole.
        pooling: How token vectors became one vector.
        embedding_dim: Numbers in an embedding.
        frame_rule: What of a chunk is a row, as `FrameRule` writes it. A part does not name the
            original's rule, which is the default.
    """

    input_digest: str
    backend: str
    backend_version: str
    weights_identity: str
    precision: str
    chunk_length_bp: int
    pooling: str
    embedding_dim: int
    frame_rule: str = str(OPEN_RULE)

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of a part that has this identity."""
        attributes = asdict(self)
        # As FORMAT.md wants it: versions without frame rules can then read these parts.
        if self.frame_rule == str(OPEN_RULE):
            del attributes["frame_rule"]
        return attributes

    def differences(self, other: Identity) -> list[str]:
        """Return a sentence for each field in which this run differs from `other`, a part's."""
        theirs = asdict(other)
        return [
            _describe_input_change(value, theirs[name])
            if name == "input_digest"
            else f"{name.replace('_', ' ')} is {value} now and was {theirs[name]} there"
            for name, value in asdict(self).items()
            if value != theirs[name]
        ]


def _describe_input_change(ours: str, theirs: str) -> str:
    """Return the difference of two input digests in words, because people cannot read a digest."""
    (files, *settings), (their_files, *their_settings) = map(_split_digest, (ours, theirs))
    changes = [
        f"{option} is {ours_here or usual} now and was {theirs_here or usual} there"
        for (option, usual), ours_here, theirs_here in zip(
            _INPUT_SETTINGS, settings, their_settings, strict=True
        )
        if ours_here != theirs_here
    ]
    if files != their_files:
        changes.insert(0, "the input has changed: its bytes, its compression or its order of files")
    return "; ".join(changes)


def _split_digest(digest: str) -> tuple[str | None, ...]:
    """Return the digest of the files, and what is said of each setting; None if nothing is."""
    match = _INPUT_DIGEST.fullmatch(digest)
    assert match is not None, "every setting may be missing"
    return match.groups()
