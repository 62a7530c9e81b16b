from __future__ import annotations

import os
import zipfile

import pytest

from tests import legacy_files as old
from virnucpro.errors import CheckpointError
from virnucpro.legacy.pickles import read_torch_file
from virnucpro.legacy.steps import EmbeddingDims

DIMS = EmbeddingDims(6, 4)
DNA = old.make_frames(5, DIMS.dna, seed=1)
PROTEIN = old.make_frames(5, DIMS.protein, seed=2)


class Bomb:
    """Leaves a file behind when it is unpickled as pickles are meant to be."""

    def __init__(self, target, function=os.system):
        self.target, self.function = target, function

    def __reduce__(self):
        return self.function, (f"touch {self.target}",)


@pytest.mark.parametrize("place", ["alone", "in a list", "as an id", "in the data", "metadata"])
@pytest.mark.parametrize("function", [os.system, eval, getattr])
def test_nothing_is_run(tmp_path, place, function):
    bomb = Bomb(tmp_path / "ran", function)
    document = {
        "alone": bomb,
        "in a list": [1, [bomb]],
        "as an id": old.protein_document(PROTEIN) | {"proteins": [bomb]},
        "in the data": old.dna_document(DNA) | {"data": [bomb]},
        "metadata": old.batch_document(PROTEIN) | {"metadata": bomb},
    }[place]
    path = old.save(tmp_path / "x.pt", document)
    with pytest.raises(CheckpointError, match="refused, because it names"):
        read_torch_file(path)
    assert not (tmp_path / "ran").exists()


def rewrite(path, change, compression=zipfile.ZIP_STORED):
    """Write the archive anew with other contents; sums and sizes are right."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in change(entries).items():
            archive.writestr(name, content)


def replace_in_pickle(path, before, after):
    def change(entries):
        (name,) = [name for name in entries if name.endswith("data.pkl")]
        assert before in entries[name]
        lines = entries[name].replace(before, after)
        return entries | {name: lines}

    rewrite(path, change)


def test_a_compressed_archive_is_refused(tmp_path):
    path = old.save(tmp_path / "x.pt", old.protein_document(PROTEIN))
    rewrite(path, lambda entries: entries, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="is compressed"):
        read_torch_file(path)


def test_an_opcode_that_claims_memory_is_refused(tmp_path):
    path = old.save(tmp_path / "x.pt", [])
    rewrite(path, lambda entries: {"x/data.pkl": b"\x80\x05\x96" + b"\xff" * 7 + b"\x00."})
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_torch_file(path)
