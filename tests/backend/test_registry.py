from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from tests.plugins import TOY_PLUGIN, install_module, install_project, run_python
from virnucpro.backend.interface import Requirement
from virnucpro.backend.registry import BackendListing, describe_backends, find_culprit, load_backend
from virnucpro.errors import BackendError

INFO = "BackendInfo('toy', 'dna', 4, None, 'mean', interface_version={version})"
TRAINABLE = "BackendInfo('toy', 'dna', 4, None, 'mean', linear_layers={})"
NEEDING = "BackendInfo('toy', 'dna', 4, None, 'mean', needs={})"
METHODS = (
    "    token_cost = open_weights = load_collator = load_encoder = lambda self, *_, **s: None\n"
)
TRAINABLE_METHODS = f"{METHODS}    def load_trainable(self, weights, *, dtype, device): ...\n"
PREAMBLE = "from virnucpro.backend.interface import BackendInfo, Requirement\n"

BROKEN = {
    "import virnucpro_no_such_module": "ModuleNotFoundError: No module named",
    "raise SystemExit(3)": "SystemExit: 3",
    "def": r"SyntaxError: invalid syntax \(toy_broken\.py, line 1\)",
    "other = 1": "AttributeError: module 'toy_broken' has no attribute 'backend'",
    "backend = object()": "`info` is of type NoneType, a BackendInfo was expected",
}
"""The source of a plug-in's module, and what is said of it."""


def backend_source(*, info: str = INFO.format(version=1), methods: str = METHODS) -> str:
    return f"{PREAMBLE}class Toy:\n    info = {info}\n{methods}backend = Toy()\n"


BROKEN |= {
    backend_source(info=INFO.format(version=99)): "written for version 99 .* has version 1$",
    backend_source(methods="    token_cost = len\n"): "lacks open_weights, load_collator",
    backend_source() + "backend = Toy": "it is the class Toy",
    backend_source(info="property(lambda self: 1 / 0)"): "ZeroDivisionError",
    backend_source(info="BackendInfo('tay', 'dna', 4, None, 'mean')"): "itself 'tay', but .* 'toy'",
    backend_source(info="BackendInfo('toy', 'rna', 4, None, 'mean')"): "'rna', not one of dna, pro",
    backend_source(info="BackendInfo('toy', 'dna', 0, None, 'mean')"): "embedding_dim is 0",
    backend_source(info="BackendInfo('toy', 'dna', 4, '9', 'mean')"): "max_tokens is '9'",
    backend_source(info="BackendInfo('toy', 'dna', 4, None, 'mean', 1, False, 0)"): "max_letters",
    backend_source(info="BackendInfo('toy', 'dna', 4, None, '')"): "`pooling`",
    backend_source(info=NEEDING.format("'big'")): "needs are 'big', a tuple of Requirement",
    backend_source(info=NEEDING.format("('big',)")): r"needs are \('big',\), a tuple of Requ",
    backend_source(info=NEEDING.format("(Requirement('', 'x'),)")): "a tuple of Requirement was",
    backend_source(info=TRAINABLE.format("'fc1'")): "linear_layers are 'fc1', a tuple of names",
    backend_source(info=TRAINABLE.format("('a.b',)")): r"linear_layers are \('a.b',\)",
    backend_source(info=TRAINABLE.format("('fc1',)")): "linear_layers, and lacks load_trainable",
    backend_source(
        info=TRAINABLE.format("('fc1',)"),
        methods=f"{METHODS}    load_trainable = len\n"
        "    def load_encoder(self, weights, *, dtype, device, attention): ...\n",
    ): "its load_encoder does not take `changes`",
    backend_source(
        info=TRAINABLE.format("('fc1',)"), methods=TRAINABLE_METHODS
    ): "its load_trainable cannot be called as it should be: .* 'gradient_checkpointing'",
    backend_source(
        methods=METHODS + "    def load_encoder(self, weights, dtype, device): ...\n"
    ): "its load_encoder cannot be called as it should be: got an unexpected .* 'attention'",
    backend_source(methods=METHODS + "    def token_cost(self, sequence, alphabet): ...\n"): (
        "its token_cost cannot be called as it should be: missing .* 'alphabet'"
    ),
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give an empty directory on `sys.path`."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    modules = set(sys.modules)
    yield site
    for name in set(sys.modules) - modules:
        if name.startswith("toy_"):
            del sys.modules[name]


def listed(name: str = "toy") -> list[BackendListing]:
    importlib.invalidate_caches()
    return [listing for listing in describe_backends() if listing.name == name]


def test_built_in_backends_are_found_like_any_other() -> None:
    names = [listing.name for listing in describe_backends()]
    assert names == sorted(names)
    for name in ("dnabert-s", "esm2"):
        (listing,) = listed(name)
        assert (listing.distribution, listing.reason) == ("virnucpro", None)


def test_a_plugin_is_listed_and_loaded(site: Path) -> None:
    install_project(TOY_PLUGIN, site)
    (listing,) = listed()
    assert (listing.distribution, listing.version) == ("toy-plugin", "1.0")
    assert listing.reason is None
    loaded = load_backend("toy")
    assert (loaded.name, loaded.distribution, loaded.version) == ("toy", "toy-plugin", "1.0")
    assert loaded.backend.info == listing.info
    assert loaded.backend.token_cost("ACGT") == 4


def test_missing_packages_of_a_plugin_are_told_until_they_are_there(site: Path) -> None:
    needs = "(Requirement('toy-big', 'toy-one[big]'), Requirement('numpy', 'numpy'))"
    install_module(site, backend_source(info=NEEDING.format(needs)), "toy-one")
    (listing,) = listed()
    assert listing.reason is None
    assert listing.missing == (
        "needs the package toy-big, which is not installed: `pip install 'toy-one[big]'`"
    )
    (site / "toy_big-1.0.dist-info").mkdir()
    (site / "toy_big-1.0.dist-info/METADATA").write_text("Name: toy-big\nVersion: 1.0\n")
    (listing,) = listed()
    assert listing.missing is None


def test_a_package_that_cannot_be_imported_is_not_said_to_be_missing() -> None:
    error = ImportError("huggingface-hub>=9 is required")
    assert Requirement("numpy", "x[big]").explain(error) == (
        "needs the package numpy, which cannot be imported (huggingface-hub>=9 is required): "
        "`pip install 'x[big]'`"
    )
    assert "which is not installed: " in Requirement("no-such-package", "x").explain(error)


def test_an_error_in_a_plugin_is_blamed_on_it(site: Path) -> None:
    methods = METHODS.replace("None", "self.mistake")
    install_module(site, backend_source(methods=methods), "toy-one")
    importlib.invalidate_caches()
    with pytest.raises(AttributeError) as caught:
        load_backend("toy").backend.token_cost("ACGT")
    assert find_culprit(caught.value) == "backend toy (package toy-one 1.0)"
    # A plug-in that is only installed is not to blame, and the built-in ones are ours.
    with pytest.raises(TypeError) as blameless:
        load_backend("esm2").backend.token_cost(1)  # type: ignore[arg-type]
    assert find_culprit(blameless.value) is None


@pytest.mark.slow
def test_an_error_of_a_plugin_in_a_worker_is_blamed_on_it(site: Path) -> None:
    source = "\ndef collate(rows, sequences):\n    return mistake\n"
    install_module(site, backend_source() + source, "toy-one")
    importlib.invalidate_caches()
    load_backend("toy")
    loader = DataLoader(
        [()], collate_fn=Collates(), num_workers=1, multiprocessing_context="spawn", batch_size=None
    )
    with pytest.raises(NameError, match="in DataLoader worker") as caught:
        list(loader)
    assert find_culprit(caught.value) == "backend toy (package toy-one 1.0)"


class Collates:
    """Calls the plug-in in a worker."""

    def __call__(self, item: object) -> object:
        import toy_one

        return toy_one.collate((), ())


def test_loading_imports_the_one_asked_for_alone(site: Path) -> None:
    install_module(site, backend_source(), "toy-one")
    install_module(site, "raise RuntimeError", "toy-two", name="two")
    importlib.invalidate_caches()
    load_backend("toy")
    assert "toy_one" in sys.modules
    assert "toy_two" not in sys.modules


@pytest.mark.parametrize(("source", "reason"), BROKEN.items(), ids=range(len(BROKEN)))
def test_a_broken_plugin_is_named_and_breaks_nothing_else(
    site: Path, source: str, reason: str
) -> None:
    install_module(site, source, "toy-broken")
    install_module(site, backend_source().replace("'toy'", "'sane'"), "toy-sane", name="sane")
    (broken,) = listed()
    assert broken.info is None
    assert broken.reason is not None
    assert re.search(reason, broken.reason)
    assert listed("sane")[0].reason is None
    assert load_backend("sane").name == "sane"
    with pytest.raises(BackendError, match=r"'toy' .* toy-broken 1\.0 is broken") as caught:
        load_backend("toy")
    assert broken.reason in str(caught.value)
    assert "pip uninstall toy-broken" in str(caught.value)


def test_a_malformed_entry_point_is_broken(site: Path) -> None:
    install_project(TOY_PLUGIN, site)
    (site / "toy_plugin-1.0.dist-info" / "entry_points.txt").write_text(
        "[virnucpro.backends]\ntoy = not a module\n"
    )
    assert "importing not a module failed" in listed()[0].reason


def test_two_packages_with_one_name_are_both_refused(site: Path) -> None:
    install_module(site, backend_source(), "toy-one")
    install_module(site, backend_source(), "toy-two")
    listings = listed()
    assert [listing.distribution for listing in listings] == ["toy-one", "toy-two"]
    assert {listing.reason for listing in listings} == {
        "registered twice, by toy-one 1.0 and toy-two 1.0"
    }
    with pytest.raises(BackendError, match=r"registered twice, by toy-one 1\.0 and toy-two 1\.0"):
        load_backend("toy")
    assert not {"toy_one", "toy_two"} & set(sys.modules)


def test_a_package_installed_twice_is_no_duplicate(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for directory in (site, tmp_path / "editable"):
        install_project(TOY_PLUGIN, directory)
    monkeypatch.syspath_prepend(tmp_path / "editable")
    (listing,) = listed()
    assert listing.reason is None


def test_an_unknown_name_gets_the_installed_and_the_nearest() -> None:
    with pytest.raises(BackendError, match=r"installed are: .*esm2.*mean 'esm2'\?"):
        load_backend("ESM-2")
    with pytest.raises(BackendError, match="installed are") as caught:
        load_backend("xyzzy")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.slow
def test_another_process_finds_plugins_without_torch(tmp_path: Path) -> None:
    install_project(TOY_PLUGIN, tmp_path / "good")
    install_module(tmp_path / "bad", "import virnucpro_no_such_module", "toy-bad", name="bad")
    code = (
        "import json, sys; from virnucpro.backend.registry import describe_backends\n"
        "found = {listing.name: listing.reason for listing in describe_backends()}\n"
        "print(json.dumps([found, 'torch' in sys.modules]))"
    )
    child = run_python("-c", code, sites=[tmp_path / "good", tmp_path / "bad"], cwd=tmp_path)
    found, has_torch = json.loads(child.stdout)
    assert found["toy"] is None
    assert "virnucpro_no_such_module" in found["bad"]
    assert not has_torch
