from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from tests.runs import read_table
from tools import find_prophages
from tools.find_prophages import PhageProteins, cut_words, find_densest
from virnucpro.errors import InputError

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
CODONS = [
    first + second + third
    for first in "ACGT"
    for second in "ACGT"
    for third in "ACGT"
    if first + second + third not in ("TAA", "TAG", "TGA")
]


def test_a_related_protein_is_found_and_another_is_not() -> None:
    generator = random.Random(0)
    proteins = ["".join(generator.choices(RESIDUES, k=300)) for _ in range(20)]
    related = [
        residue if generator.random() < 0.7 else generator.choice(RESIDUES)
        for residue in proteins[7]
    ]
    phages = PhageProteins(proteins)
    assert phages.has_like("".join(related))
    assert not phages.has_like("".join(generator.choices(RESIDUES, k=300)))


def test_words_keep_their_order() -> None:
    # So the same proteins are aligned in every run.
    assert cut_words("MKLVTMKLVT") == ["MKLVT", "KLVTM", "LVTMK", "VTMKL", "TMKLV"]


def test_the_densest_window_is_found() -> None:
    assert find_densest([50_000, 31_000, 0, 69_999, 70_000, 60_000]) == (50_000, 3)
    assert find_densest([]) == (0, 0)


def test_a_bacterium_with_the_genes_of_a_phage_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = random.Random(0)
    genes = (
        f"AGGAGGTTTTTTATG{''.join(generator.choices(CODONS, k=400))}TAAATTTTCATAAT"
        for _ in range(12)
    )
    phage = "".join(genes)
    plain = "".join(generator.choices("ACGT", k=120_000))
    sequences = {
        "phage": ("viral", "phage", "train", phage),
        "plain": ("bacteria", "chromosome", "test", plain),
        "lysogen": ("bacteria", "chromosome", "test", plain[:40_000] + phage + plain[40_000:]),
    }
    index = ["id\tfile\tlength\tclass\tsub\tgroup\tsplit\tprophage_like"]
    with (tmp_path / "all.fa").open("w") as file:
        for name, (kind, sub, split, letters) in sequences.items():
            file.write(f">{name}\n{letters}\n")
            index.append(f"{name}\tall.fa\t{len(letters)}\t{kind}\t{sub}\tg\t{split}\t0")
    (tmp_path / "index.tsv").write_text("\n".join(index) + "\n")
    words = f"find_prophages {tmp_path}/index.tsv --split test --output {tmp_path}/prophages.tsv"
    monkeypatch.setattr(sys, "argv", words.split())
    find_prophages.main()
    (row,) = read_table(tmp_path / "prophages.tsv")
    assert row["id"] == "lysogen"
    assert 39_000 < int(row["start"]) < 45_000
    assert int(row["end"]) == int(row["start"]) + 20_000
    assert int(row["phage_genes"]) >= 10
    # A failure leaves the earlier table.
    (tmp_path / "index.tsv").write_text("\n".join(index).replace("all.fa", "none.fa", 1) + "\n")
    with pytest.raises(InputError, match=r"none\.fa"):
        find_prophages.main()
    assert read_table(tmp_path / "prophages.tsv") == [row]
