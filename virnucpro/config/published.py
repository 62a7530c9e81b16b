"""The published models that `virnucpro models` knows: where they are, how large, whose.

A source is pinned: a hub id by its revision, a file by its digest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MINI_DIRECTORY = Path(__file__).parents[1] / "data" / "mini"
"""The small model that ships with this package: docs/mini.md."""

# Not pinned by the address: the digests of the files pin them.
_CLASSIFIERS = "https://raw.githubusercontent.com/Li-Jing-1997/VirNucPro/HEAD"


@dataclass(frozen=True)
class PublishedModel:
    """A model that can be downloaded, or ships with this package.

    Attributes:
        name: What users type.
        about: What it is, in a few words.
        licence: Its licence, as far as its authors state one.
        num_bytes: About how much a download is.
        location: Where predict looks: `owner/name@revision` on the hub, or the name of a file.
        url: Where that file is published; None for a hub id, and for what ships.
        digests: By file, `sha256:HEX`, or `git:HEX` for the id of a git blob.
    """

    name: str
    about: str
    licence: str
    num_bytes: int
    location: str
    url: str | None = None
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def ships(self) -> bool:
        """Whether it is part of this package."""
        return self.location == str(MINI_DIRECTORY)

    @property
    def hub_id(self) -> tuple[str, str] | None:
        """The repository and the revision on the Hugging Face hub, if it is there."""
        repository, _, revision = self.location.partition("@")
        return (repository, revision) if revision else None


def _classifier(length_bp: int, blob: str) -> PublishedModel:
    file = f"{length_bp}_model.pth"
    return PublishedModel(
        str(length_bp),
        f"classifier for chunks of {length_bp} bp, by the authors of VirNucPro",
        "none stated",
        6_840_000,
        file,
        f"{_CLASSIFIERS}/{file}",
        {file: f"git:{blob}"},
    )


def _esm2(
    size: str, num_layers: int, num_bytes: int, revision: str, sha256: str = ""
) -> PublishedModel:
    # Without a digest here, the digest that the hub states is compared.
    return PublishedModel(
        f"esm2-{size.lower()}",
        f"ESM-2 of {size} parameters, for proteins",
        "MIT",
        num_bytes,
        f"facebook/esm2_t{num_layers}_{size}_UR50D@{revision}",
        digests={"model.safetensors": f"sha256:{sha256}"} if sha256 else {},
    )


DNABERT_S = PublishedModel(
    "dnabert-s",
    "DNABERT-S, for DNA",
    "see its page",
    468_489_281,
    "zhihan1996/DNABERT-S@00e47f96cdea35e4b6f5df89e5419cbe47d490c6",
    digests={
        "pytorch_model.bin": (
            "sha256:f3cfc3d0541859df64759e758cc4bc40fe1d5760799a7d098a9f9f09501c1e5f"
        ),
        "tokenizer.json": (
            "sha256:667f5a0e6e9630f7052b004784dda7c7aeba395cc4ca3c01b11b02e6aa29d7b1"
        ),
        "config.json": "sha256:d54c142114563aa34ef7c2b54ccc921d08e50cd7c3cd69c439d5e0d2bbcfcdee",
    },
)

ESM2_3B = _esm2("3B", 36, 11_370_000_000, "476b639933c8baad5ad09a60ac1a87f987b656fc")

PUBLISHED: Mapping[str, PublishedModel] = {
    model.name: model
    for model in (
        PublishedModel(
            "mini",
            "the small model of this package: both models and their classifiers",
            "MIT",
            7_300_000,
            str(MINI_DIRECTORY),
        ),
        _classifier(300, "a0b5b85e7c1e44f00cde146d091beb82b2c8e855"),
        _classifier(500, "fc35d5ef9f1f4564eea7036f34f4f8ec6000d33d"),
        DNABERT_S,
        _esm2(
            "8M",
            6,
            31_400_000,
            "c731040fcd8d73dceaa04b0a8e6329b345b0f5df",
            "24c5fa474c48f3b754b86efe752d5f189d2bcd88190fa2270fc92b2ef3034189",
        ),
        _esm2("35M", 12, 134_000_000, "6fbf070e65b0b7291e7bbcd451118c216cff79d8"),
        _esm2(
            "150M",
            30,
            595_300_000,
            "a695f6045e2e32885fa60af20c13cb35398ce30c",
            "c3f1da8aea53bddd32c246c86168c23b9fd72341fb9db9a94436f855f5053566",
        ),
        _esm2(
            "650M",
            33,
            2_609_500_000,
            "08e4846e537177426273712802403f7ba8261b6c",
            "a08adabb949fa67ad3c14b509d04fd60368b35007b0095e3358f81200c4f4db0",
        ),
        ESM2_3B,
        _esm2("15B", 48, 60_600_000_000, "5fbca39631164edc1d402a5aa369f982f72ee282"),
    )
}
"""The published models by the name that users type."""


def find_weights(location: str, backend: str) -> str:
    """Return the location of weights that a user may have named as `virnucpro models` names them.

    Args:
        location: A file, a directory, a hub id or a published model. A path that exists wins.
        backend: The backend that reads them; `mini` has weights for two.
    """
    model = PUBLISHED.get(location)
    if model is None or Path(location).exists():
        return location
    if model.ships:
        path = MINI_DIRECTORY / backend.replace("-", "_")
        return str(path) if path.exists() else location
    # A classifier has no weights of a backend.
    return location if model.hub_id is None else model.location
