from __future__ import annotations

import pytest
import torch

from virnucpro.scoring.chunk_head import ChunkHead, ChunkHeadSizes, stretch_features

SIZES = ChunkHeadSizes(dna_dim=6, protein_dim=8, width=12, hidden=5)


@pytest.fixture
def head() -> ChunkHead:
    torch.manual_seed(0)
    return ChunkHead(SIZES, dropout=0.5).double().eval().requires_grad_(False)


def make_chunks(num: int, num_stretches: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    length = torch.randint(20, 160, (num, num_stretches), generator=generator)
    is_whole = torch.rand(num, num_stretches, generator=generator) < 0.5
    return [
        torch.randn(num, SIZES.dna_dim, generator=generator).double(),
        torch.randn(num, num_stretches, SIZES.protein_dim, generator=generator).double(),
        stretch_features(length, is_whole, 500).double(),
        torch.ones(num, num_stretches, dtype=torch.bool),
    ]


def test_padding_changes_nothing(head: ChunkHead) -> None:
    dna, protein, features, is_stretch = make_chunks(20, 3)
    padded = [torch.cat((x, 9 * torch.ones_like(x[:, :2])), 1) for x in (protein, features)]
    mask = torch.nn.functional.pad(is_stretch, (0, 2))
    torch.testing.assert_close(head(dna, *padded, mask), head(dna, protein, features, is_stretch))


def test_neighbours_change_nothing(head: ChunkHead) -> None:
    chunks = make_chunks(20, 2)
    alone = torch.cat([head(*(x[number : number + 1] for x in chunks)) for number in range(20)])
    torch.testing.assert_close(head(*chunks), alone)
    assert alone.std() > 0.01


def test_the_order_of_stretches_does_not_matter_but_all_of_them_do(head: ChunkHead) -> None:
    dna, protein, features, is_stretch = make_chunks(20, 3)
    logits = head(dna, protein, features, is_stretch)
    torch.testing.assert_close(head(dna, protein.flip(1), features.flip(1), is_stretch), logits)
    for number in range(3):
        other = protein.clone()
        other[:, number] += torch.randn(SIZES.protein_dim).double()
        assert (head(dna, other, features, is_stretch) - logits).abs().min() > 0


def test_a_chunk_without_stretches_is_judged_by_its_dna(head: ChunkHead) -> None:
    dna, protein, features, is_stretch = make_chunks(5, 2)
    nothing = torch.zeros_like(is_stretch)
    logits = head(dna, protein, features, nothing)
    torch.testing.assert_close(logits, head(dna, protein + 1, features + 1, nothing))
    assert logits.isfinite().all()
    assert logits.std() > 0


def test_the_gates_weigh_as_written_out(head: ChunkHead) -> None:
    dna, protein, features, is_stretch = make_chunks(1, 3)
    vectors = [
        head.protein(protein[0, number]) + head.features(features[0, number]) for number in range(3)
    ]
    gates = [head.gate(vector.tanh()).exp() for vector in vectors]
    mean = sum(gate * vector for gate, vector in zip(gates, vectors, strict=True)) / sum(gates)
    wanted = head.output(mean + head.dna(dna[0]))
    torch.testing.assert_close(
        head(dna, protein, features, is_stretch), wanted, rtol=1e-5, atol=1e-5
    )
