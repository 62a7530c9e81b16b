"""Files that run code when they are unpickled: every loader refuses them, and nothing has run."""

from __future__ import annotations

import codecs
import io
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from virnucpro_esm2 import backend as esm2

from virnucpro.backend.weights import read_pickle, read_tensors
from virnucpro.errors import CheckpointError, VirnucproError, WeightsError
from virnucpro.legacy.documents import read_documents
from virnucpro.legacy.steps import EmbeddingDims
from virnucpro.scoring.classifier_files import load_classifier


class Call:
    """Pickled as a call of `function`, which unpickling then makes."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class StorageHolder(pickle.Pickler):
    """Pickles bytes as torch does a storage, whose type is a call."""

    def __init__(self, file: io.BytesIO, call: Call) -> None:
        super().__init__(file, protocol=2)
        self.call = call

    def persistent_id(self, obj: Any) -> Any:
        return ("storage", self.call, "0", "cpu", 1) if isinstance(obj, bytearray) else None


def os_system(trace: Path) -> Call:
    return Call(os.system, f"touch '{trace}'")


def builtins_eval(trace: Path) -> Call:
    return Call(eval, f"open({str(trace)!r}, 'w')")


def reduce_chain(trace: Path) -> Call:
    imported = Call(__import__, "os")
    found = Call(getattr, imported, "system")
    # What is called was itself found by calls.
    return Call(map_once, found, f"touch '{trace}'")


def map_once(function: Callable[..., Any], argument: str) -> Any:
    return function(argument)


CALLS = [os_system, builtins_eval, reduce_chain]


def write_archive(path: Path, content: bytes, name: str = "archive/data.pkl", **options) -> None:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr(name, content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(4))


def in_state_dict(path: Path, call: Call) -> None:
    torch.save({"hidden_layer.weight": call}, path)


def in_list(path: Path, call: Call) -> None:
    torch.save({"nucleotide": ["a"], "data": [[torch.ones(2), [call]]]}, path)


def in_attribute(path: Path, call: Call) -> None:
    tensor = torch.nn.Parameter(torch.ones(2))
    tensor.note = call
    torch.save({"weight": tensor}, path)


def in_dict_key(path: Path, call: Call) -> None:
    write_archive(path, pickle.dumps({"x": 1}, 2).replace(b"X\x01\x00\x00\x00x", dump(call)))


def dump(call: Call) -> bytes:
    """Return the opcodes of a call alone."""
    return pickle.dumps(call, 2).removeprefix(b"\x80\x02").removesuffix(b".")


def in_storage(path: Path, call: Call) -> None:
    buffer = io.BytesIO()
    StorageHolder(buffer, call).dump({"ids": ["a"], "data": bytearray(4)})
    write_archive(path, buffer.getvalue())


def with_odd_names(path: Path, call: Call) -> None:
    write_archive(path, pickle.dumps(call, 2), name="../../archive/data.pkl")


def with_two_pickles(path: Path, call: Call) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
        archive.writestr("b/data.pkl", pickle.dumps(call, 2))


def with_protocol_4(path: Path, call: Call) -> None:
    write_archive(path, pickle.dumps({"ids": call}, 4))


def truncated(path: Path, call: Call) -> None:
    torch.save({"weight": call, "other": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-100])


def without_zip(path: Path, call: Call) -> None:
    torch.save({"weight": call}, path, _use_new_zipfile_serialization=False)


def bare(path: Path, call: Call) -> None:
    path.write_bytes(pickle.dumps(call))


def bare_text(path: Path, call: Call) -> None:
    path.write_bytes(pickle.dumps(call, 0))


PLACES = [
    in_state_dict,
    in_list,
    in_attribute,
    in_dict_key,
    in_storage,
    with_odd_names,
    with_two_pickles,
    with_protocol_4,
    truncated,
    without_zip,
    bare,
    bare_text,
]


def read_features(path: Path) -> None:
    list(read_documents(path, EmbeddingDims()))


LOADERS = [
    read_pickle,
    read_tensors,
    load_classifier,
    read_features,
    lambda path: esm2.open_weights(str(path)),
]


@pytest.fixture(autouse=True)
def unprotected_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own way of switching the protection off, which must not reach us."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("make_call", CALLS)
def test_no_loader_runs_anything(
    tmp_path: Path, make_call: Callable[[Path], Call], place: Callable[[Path, Call], None]
) -> None:
    path, trace = tmp_path / "weights.pt", tmp_path / "trace"
    place(path, make_call(trace))
    for load in LOADERS:
        with pytest.raises(VirnucproError) as caught:
            load(path)
        assert load is read_features or "weights.pt" in str(caught.value)
    assert not trace.exists()


@pytest.mark.slow
@pytest.mark.parametrize("place", [in_state_dict, in_list, in_attribute, without_zip])
@pytest.mark.parametrize("make_call", CALLS)
def test_the_attacks_would_work_elsewhere(
    tmp_path: Path, make_call: Callable[[Path], Call], place: Callable[[Path, Call], None]
) -> None:
    path, trace = tmp_path / "weights.pt", tmp_path / "trace"
    place(path, make_call(trace))
    torch.load(path, weights_only=False)
    assert trace.exists()


def test_what_a_pickle_names_is_said(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    in_state_dict(path, os_system(tmp_path / "trace"))
    with pytest.raises(WeightsError, match=r"weights\.pt: refused.* names posix\.system"):
        read_tensors(path)
    with pytest.raises(CheckpointError, match=r"refused.* names posix\.system"):
        read_features(path)


@pytest.mark.slow
@pytest.mark.parametrize("load", [read_tensors, load_classifier, read_features])
@pytest.mark.parametrize("is_compressed", [True, False])
def test_a_zip_bomb_takes_no_memory(
    tmp_path: Path, load: Callable[[Path], Any], is_compressed: bool
) -> None:
    path = tmp_path / "weights.pt"
    content = bytes(1 << 28)
    method = zipfile.ZIP_DEFLATED if is_compressed else zipfile.ZIP_STORED
    write_archive(path, content if is_compressed else b"", compression=method)
    if not is_compressed:
        # The directory, in which the sizes are believed, claims two gigabytes.
        with path.open("r+b") as file:
            directory = path.read_bytes().index(b"PK\x01\x02")
            file.seek(directory + 20)
            file.write(2 * (1 << 31).to_bytes(4, "little"))
    del content
    tracemalloc.start()
    with pytest.raises(VirnucproError, match=r"compressed|claims"):
        load(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_a_text_that_is_encoded_again_and_again_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "features.pt"
    text = "x" * (1 << 20)
    # The text is pickled once, and every call refers to it.
    calls = [Call(codecs.encode, text, "latin1") for _ in range(1000)]
    write_archive(path, pickle.dumps({"ids": calls}, 2))
    assert path.stat().st_size < 1 << 21
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="holds bytes in a form that"):
        read_features(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 23
    tracemalloc.stop()
