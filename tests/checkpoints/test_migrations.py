from __future__ import annotations

import pytest

from virnucpro.checkpoints.migrations import (
    FORMAT_VERSION,
    FormatVersionError,
    Migrations,
    check_version,
)


@pytest.fixture
def migrations():
    made_up = Migrations(current=3)

    @made_up.register(source=1)
    def rename_key(document):
        return {"embeddings": document["data"]}

    @made_up.register(source=2)
    def add_rows(document):
        return document | {"rows": list(range(len(document["embeddings"])))}

    return made_up


def test_steps_are_applied_in_order_from_the_documents_version(migrations):
    assert migrations.apply({"data": [7, 8]}, 1) == {"embeddings": [7, 8], "rows": [0, 1]}
    assert migrations.apply({"embeddings": [7]}, 2) == {"embeddings": [7], "rows": [0]}


def test_a_current_document_passes_unchanged(migrations):
    assert migrations.apply({"x": 1}, 3) == {"x": 1}


def test_a_missing_step_is_named(migrations):
    with pytest.raises(FormatVersionError, match=r"from format version 0 to 1.* version 3"):
        migrations.apply({}, 0)


def test_a_document_from_the_future_is_refused_with_both_versions(migrations):
    with pytest.raises(FormatVersionError, match=r"version 4, written by a newer.*version 3"):
        migrations.apply({}, 4)


def test_two_steps_from_one_version_are_a_mistake(migrations):
    with pytest.raises(ValueError, match="from version 1"):
        migrations.register(source=1)


def test_only_the_current_version_is_read():
    check_version("x.h5", FORMAT_VERSION)
    with pytest.raises(FormatVersionError, match=r"x\.h5.*2 is older than version 3.*migrating"):
        check_version("x.h5", 2)
    with pytest.raises(FormatVersionError, match=r"x\.h5.*version 4.*update virnucpro"):
        check_version("x.h5", 4)
