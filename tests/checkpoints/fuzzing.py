"""Damages files in many ways, and reads what remains.

As a program it does so to one file of HDF5, whose library may end the process:
`python -m tests.checkpoints.fuzzing FILE FIRST_SEED NUM_SEEDS`.
"""

from __future__ import annotations

import random
import re
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.checkpoints.parts import check_part, finished_rows, read_identity
from virnucpro.errors import VirnucproError
from virnucpro.legacy.documents import read_documents
from virnucpro.legacy.steps import EmbeddingDims

DIMS = EmbeddingDims(6, 4)

_NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF, 1 << 40, 1 << 63)


def damage(content: bytes, seed: int) -> bytes:
    """Return `content` with one to three accidents that `seed` chooses."""
    chance = random.Random(seed)
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        place = chance.randrange(max(1, len(changed)))
        match chance.randrange(6):
            case 0 | 1:
                changed[place : place + 1] = [chance.randrange(256)]
            case 2:
                if place < len(changed):
                    changed[place] ^= 1 << chance.randrange(8)
            case 3:
                size = chance.choice([1, 2, 4, 8])
                number = chance.choice(_NUMBERS) & ((1 << 8 * size) - 1)
                changed[place : place + size] = number.to_bytes(size, "little")
            case 4:
                source = chance.randrange(max(1, len(changed)))
                size = chance.choice([1, 8, 64, 512])
                changed[place : place + size] = changed[source : source + size]
            case 5:
                del changed[place : place + chance.choice([1, 8, len(changed)])]
    return bytes(changed)


def damage_heap(content: bytes, seed: int) -> bytes:
    """Return an HDF5 file in which a global heap claims sizes at the edges of 64 bits."""
    chance = random.Random(seed)
    changed = bytearray(content)
    heap = chance.choice([mark.start() for mark in re.finditer(b"GCOL", content)])
    sizes, place = [heap + 8], heap + 16
    (end,) = struct.unpack_from("<Q", content, heap + 8)
    while place + 16 <= heap + end:
        sizes.append(place + 8)
        number, num_bytes = struct.unpack_from("<H6xQ", content, place)
        place += 16 + -(-num_bytes // 8) * 8 if number else num_bytes
    for place in chance.sample(sizes, chance.choice([1, 1, 2])):
        edge = chance.choice([0, len(content), 1 << 31, 1 << 32, 1 << 63, 1 << 64])
        struct.pack_into("<Q", changed, place, (edge + chance.randint(-33, 33)) % (1 << 64))
        if chance.randrange(2) and place > heap + 8:
            struct.pack_into("<H", changed, place - 8, chance.choice([0, 1, 2, 0xFFFF]))
    return bytes(changed)


def read_part(path: Path) -> dict[str, Any]:
    """Return what the part says, without its digest."""
    identity = read_identity(path)
    reader = EmbeddingReader([path])
    rows = finished_rows([path])
    return {"identity": identity, "ids": reader.gather_ids(rows), "embeddings": reader.gather(rows)}


def read_features(path: Path) -> list[dict[str, Any]]:
    """Return the documents in a file of an older program."""
    return [document for _, document in read_documents(path, DIMS)]


def check_hdf5(path: Path) -> None:
    """Read a damaged file in every way; what is read must go together."""
    for read in (check_part, read_part, read_features):
        try:
            found: Any = read(path)
        except VirnucproError:
            continue
        if read is read_part:
            assert len(found["ids"]) == len(found["embeddings"])
        for document in found if read is read_features else []:
            for embeddings in document["embeddings"].values():
                assert len(document["ids"]) == len(embeddings)
                assert np.isfinite(embeddings).all()


def main(path: Path, first_seed: int, num_seeds: int) -> None:
    """Damage a copy of `path` again and again, naming the seed before each."""
    import resource

    # A file of some kilobytes must not ask for gigabytes.
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    content = path.read_bytes()
    copy = path.with_name(f"damaged_{path.name}")
    for seed in range(first_seed, first_seed + num_seeds):
        sys.stdout.write(f"{seed}\n")
        sys.stdout.flush()
        has_heap = b"GCOL" in content and seed % 2
        copy.write_bytes((damage_heap if has_heap else damage)(content, seed))
        check_hdf5(copy)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
