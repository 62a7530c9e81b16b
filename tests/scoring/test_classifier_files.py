"""The files of classifiers: ours, the published ones, and damaged ones."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tests.scoring.test_classifier import CALIBRATED, DNA, METADATA, PROTEIN, read_state
from tools.make_classifier_weights import make_classifier
from virnucpro.backend.changes import Changes, LowRank, digest_changes
from virnucpro.backend.interface import Alphabet
from virnucpro.backend.weights import digest_files
from virnucpro.errors import ClassifierError
from virnucpro.scoring.chunk_head import ChunkHead, ChunkHeadSizes
from virnucpro.scoring.classifier import ClassifierMetadata
from virnucpro.scoring.classifier_files import load_classifier, read_classifier, save_classifier
from virnucpro.scoring.region_model import REGION_MODEL, RegionModel


@pytest.mark.parametrize("name", ["500_model.pth", "state.pt", "parallel.pth"])
def test_scores_are_the_published_modules(published: Path, name: str) -> None:
    classifier = load_classifier(published / name)
    expected = torch.load(published / "expected.pt", weights_only=True)
    scores = classifier.score(expected["features"].numpy())
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected["scores"], rtol=0, atol=3e-7)
    assert classifier.input_dim == 20
    assert classifier.metadata is None
    assert classifier.identity == digest_files([published / name])


def test_our_file_scores_the_same_and_tells_what_it_is_for(published: Path, tmp_path: Path) -> None:
    path = tmp_path / "misleading.pth"
    save_classifier(path, read_state(published), METADATA)
    classifier = load_classifier(path)
    assert classifier.metadata == METADATA
    features = torch.load(published / "expected.pt", weights_only=True)["features"].numpy()
    original = load_classifier(published / "500_model.pth")
    np.testing.assert_array_equal(classifier.score(features), original.score(features))


def test_safetensors_of_others_are_a_state_dict(published: Path, tmp_path: Path) -> None:
    save_file(read_state(published), tmp_path / "model.safetensors")
    assert load_classifier(tmp_path / "model.safetensors").metadata is None


def test_same_weights_same_identity(published: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(5)]
    for path in paths:
        save_classifier(path, read_state(published), METADATA)
    assert len({load_classifier(path).identity for path in paths}) == 1


def test_calibration_and_origin_are_kept(published: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_classifier(tmp_path / name, read_state(published), CALIBRATED)
    assert load_classifier(tmp_path / "a").metadata == CALIBRATED
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_version_1_is_read_and_tells_less(published: Path, tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    document = {
        "format_version": 1,
        "class_names": ["others", "virus"],
        "dna_backend": "dnabert-s",
        "protein_backend": "esm2",
        "dna_dim": 8,
        "protein_dim": 12,
        "chunk_length_bp": 500,
    }
    save_file(read_state(published), path, {"virnucpro_classifier": json.dumps(document)})
    classifier = load_classifier(path)
    assert classifier.metadata == METADATA
    assert classifier.calibration is None
    classifier.check_fits(DNA, PROTEIN, 500, ("sha256:any", "sha256:thing"))


@pytest.mark.parametrize(
    "change", [{"slope": -1.0}, {"offset": float("nan")}, {"slope": "1"}, {"x": 1}]
)
def test_an_impossible_calibration_is_refused(published: Path, tmp_path: Path, change) -> None:
    save_classifier(tmp_path / "c", read_state(published), CALIBRATED)
    with safe_open(tmp_path / "c", "pt") as file:
        document = json.loads(file.metadata()["virnucpro_classifier"])
    document["calibration"] |= change
    save_file(read_state(published), tmp_path / "c", {"virnucpro_classifier": json.dumps(document)})
    with pytest.raises(ClassifierError, match="c: cannot be read as a classifier"):
        load_classifier(tmp_path / "c")


def test_a_module_of_another_class_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(20, 2)), tmp_path / "other.pth")
    with pytest.raises(ClassifierError, match=r"other\.pth: refused"):
        load_classifier(tmp_path / "other.pth")


def test_a_tensor_that_repeats_its_numbers_is_refused(published: Path, tmp_path: Path) -> None:
    state = read_state(published)
    state["hidden_layer.weight"] = torch.zeros(16, 1).expand(16, 100_000)
    torch.save(state, tmp_path / "large.pt")
    with pytest.raises(ClassifierError, match=r"hidden_layer\.weight claims the shape \(16, 10000"):
        load_classifier(tmp_path / "large.pt")


def test_other_shapes_are_shown_beside_those_wanted(published: Path, tmp_path: Path) -> None:
    state = read_state(published)
    state["output_layer.weight"] = torch.zeros(3, 16)
    del state["bn1.bias"]
    torch.save(state, tmp_path / "three_classes.pt")
    with pytest.raises(ClassifierError) as caught:
        load_classifier(tmp_path / "three_classes.pt")
    assert "output_layer.weight is (3, 16), wanted (2, 16)" in str(caught.value)
    assert "bn1.bias is missing, wanted (16,)" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_layer.weight", torch.nan), ("bn1.running_var", torch.inf), ("bn1.running_var", -1)],
)
def test_impossible_numbers_are_refused(
    published: Path, tmp_path: Path, name: str, value: float
) -> None:
    state = read_state(published)
    state[name].view(-1)[3] = value
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(ClassifierError, match=rf"broken\.pt: {name} holds NaN"):
        load_classifier(tmp_path / "broken.pt")


def test_metadata_must_agree_with_the_tensors(published: Path, tmp_path: Path) -> None:
    metadata = ClassifierMetadata("dnabert-s", "esm2", 8, 13, 500)
    with pytest.raises(ClassifierError, match=r"wants 20 numbers, but the metadata say 8 \+ 13"):
        save_classifier(tmp_path / "c", read_state(published), metadata)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ('{"format_version": 5}', "version 5, and this program reads versions 1 to 4"),
        ('{"format_version": 1, "class_names": ["virus", "others"]}', "the classes are"),
        ('{"format_version": 1, "class_names": ["others", "virus"]}', "cannot be read"),
        ('{"format_version": 2, "origin": 1e999}', "cannot be read as a classifier .*JSON"),
        ("[", "cannot be read as a classifier"),
    ],
)
def test_metadata_of_another_kind_are_refused(
    published: Path, tmp_path: Path, metadata: str, message: str
) -> None:
    path = tmp_path / "c.safetensors"
    save_file(read_state(published), path, {"virnucpro_classifier": metadata})
    with pytest.raises(ClassifierError, match=message):
        load_classifier(path)


def test_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match=r"gone\.pth: no such classifier; give the path"):
        load_classifier(tmp_path / "gone.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["500_model.pth", "ours.safetensors"])
def test_a_damaged_file_is_refused_or_read_never_a_traceback(
    published: Path, tmp_path: Path, name: str
) -> None:
    save_classifier(published / "ours.safetensors", read_state(published), METADATA)
    whole = (published / name).read_bytes()
    path = tmp_path / name
    dice = random.Random(0)
    refusals = []
    for _ in range(150):
        damaged = bytearray(whole[: dice.choice([len(whole), dice.randrange(len(whole))])])
        for _ in range(dice.randrange(1, 4)):
            if damaged:
                damaged[dice.randrange(min(len(damaged), 1500))] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            load_classifier(path)
        except ClassifierError as error:
            refusals.append(str(error))
    assert len(refusals) > 50
    assert all(str(path) in refusal for refusal in refusals)


def test_made_weights_are_reproducible(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_classifier(tmp_path / name, 4, 6, 300, seed=3)
    make_classifier(tmp_path / "c", 4, 6, 300, seed=4)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    other = load_file(tmp_path / "c")["hidden_layer.weight"]
    assert not torch.equal(load_file(tmp_path / "a")["hidden_layer.weight"], other)


def test_another_genetic_code_needs_version_3(published: Path, tmp_path: Path) -> None:
    for name, rule in (("a", "open"), ("b", "open:code=11")):
        save_classifier(
            tmp_path / name, read_state(published), replace(CALIBRATED, frame_rule=rule)
        )
        assert str(load_classifier(tmp_path / name).rule) == rule
    versions = []
    for name in ("a", "b"):
        with safe_open(tmp_path / name, "pt") as file:
            document = json.loads(file.metadata()["virnucpro_classifier"])
        versions.append((document["format_version"], document.get("head")))
    assert versions == [(2, None), (3, {"kind": "frame"})]


def test_numbers_for_regions_are_kept_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    sizes = ChunkHeadSizes(dna_dim=8, protein_dim=12)
    head, path = ChunkHead(sizes), tmp_path / "chunks.safetensors"
    about = replace(METADATA, frame_rule="stretches:2:20", chunk_head=sizes)
    save_classifier(path, head.state_dict(), about)
    assert load_classifier(path).region_model == REGION_MODEL
    regions = RegionModel(least=0.75)
    save_classifier(path, head.state_dict(), replace(about, regions=regions))
    assert load_classifier(path).region_model == regions
    path.write_bytes(path.read_bytes().replace(b"background", b"foreground"))
    with pytest.raises(ClassifierError, match="foreground"):
        load_classifier(path)


def make_changes(seed: int = 0) -> dict[Alphabet, Changes]:
    """Return changes of both kinds, for layers of 6 inputs and 5 outputs."""
    numbers = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=numbers)

    return {
        "dna": {"layers.0.out.weight": LowRank(draw(2, 6), draw(5, 2))},
        "protein": {"layers.1.fc1.weight": draw(5, 6), "layers.1.fc1.bias": draw(5)},
    }


def test_what_changes_the_encoders_is_kept(published: Path, tmp_path: Path) -> None:
    changes, path = make_changes(), tmp_path / "c"
    finetuned = {"dna": {"rank": 2}}
    about = replace(CALIBRATED, finetuned=finetuned)
    # Parts of one tensor, as those of a fused layer are, and in half precision.
    whole = changes["protein"]["layers.1.fc1.weight"]
    views = changes | {"protein": {"a": whole[:, :3], "b": whole[:, 3:].bfloat16()}}
    for each in (changes, views):
        save_classifier(path, read_state(published), about, each)
        found = load_classifier(path)
        assert found.metadata == about
        for alphabet, of_encoder in each.items():
            assert digest_changes(found.changes[alphabet]) == digest_changes(
                {
                    name: LowRank(*change) if isinstance(change, LowRank) else change.float()
                    for name, change in of_encoder.items()
                }
            )
    content = read_classifier(path)
    save_classifier(tmp_path / "again", *content)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["virnucpro_classifier"])["format_version"] == 4
        names = {name for name in file.keys() if name.startswith("adapter.")}  # noqa: SIM118
    pair = {f"adapter.dna.layers.0.out.weight.{part}" for part in ("down", "up")}
    assert names == pair | {"adapter.protein.a", "adapter.protein.b"}
    # Without changes, the bytes are those of earlier versions.
    save_classifier(path, read_state(published), CALIBRATED)
    with safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["virnucpro_classifier"])
    assert document["format_version"] == 2
    assert "finetuned" not in document


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"adapter.rna.out.weight": torch.ones(2)}, "change no parameter of an encoder"),
        ({"adapter.dna": torch.ones(2)}, "change no parameter of an encoder"),
        ({"adapter.dna.w.up": torch.ones(2, 2)}, "wanted a whole one, or a pair"),
        (
            {"adapter.dna.w.up": torch.ones(4, 3), "adapter.dna.w.down": torch.ones(2, 5)},
            r"w\.down': \(2, 5\), .*w\.up': \(4, 3\)",
        ),
        (
            {"adapter.dna.w.up": torch.ones(4, 0), "adapter.dna.w.down": torch.ones(0, 5)},
            "wanted a whole one, or a pair",
        ),
        (
            {
                "adapter.dna.w": torch.ones(4, 5),
                "adapter.dna.w.up": torch.ones(4, 2),
                "adapter.dna.w.down": torch.ones(2, 5),
            },
            "wanted a whole one, or a pair",
        ),
        ({"adapter.dna.w": torch.tensor([1, torch.nan])}, "'adapter.dna.w' holds NaN"),
        ({"adapter.dna.w": torch.ones(2, dtype=torch.int64)}, "no floating-point numbers"),
        ({"adaptor.dna.w": torch.ones(2)}, "not a VirNucPro classifier"),
    ],
)
def test_changes_that_mean_nothing_are_refused(
    published: Path, tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    path = tmp_path / "c"
    save_classifier(path, read_state(published), CALIBRATED, make_changes())
    with safe_open(path, "pt") as file:
        written = file.metadata()
    save_file(read_state(published) | tensors, path, written)
    with pytest.raises(ClassifierError, match=message):
        load_classifier(path)


def test_changes_need_to_say_of_which_weights_they_are(published: Path, tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match="changes the dna encoder, but does not say which"):
        save_classifier(tmp_path / "c", read_state(published), METADATA, make_changes())
    assert not list(tmp_path.iterdir())
