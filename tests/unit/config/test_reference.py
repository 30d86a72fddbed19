"""The user's own code, named as `module:attribute`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedloom.config.reference import find_module, is_reference, load_attribute
from fedloom.errors import UsageError


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("my_model:build", True),
        ("package.module:Class.method", True),
        ("_private:x", True),
        ("sample:chatterbot", False),
        ("sample:smollm2-135m-instruct", False),
        ("https://example.org/x", False),
        ("s3:bucket", True),
        ("C:data", False),
        ("C:\\data\\rows.csv", False),
        ("mine.py:build", False),
        ("my-model:build", False),
        ("mine:", False),
        (":build", False),
        ("mine", False),
        ("mine:a:b", False),
        ("1st:build", False),
        ("org/model", False),
    ],
)
def test_what_a_reference_looks_like(text: str, yes: bool) -> None:
    assert is_reference(text) is yes


def test_an_attribute_of_a_file_beside_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "ref_mine.py").write_text("class A:\n    b = 3\n")
    before = list(sys.path)
    assert load_attribute("ref_mine:A.b", tmp_path) == 3
    assert sys.path == before


def test_the_folder_comes_before_what_is_installed_and_two_folders_do_not_mix(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ref_twin.py").write_text("import ref_helper\nvalue = ref_helper.value\n")
        (tmp_path / name / "ref_helper.py").write_text(f"value = {name!r}\n")
    assert load_attribute("ref_twin:value", tmp_path / "one") == "one"
    assert load_attribute("ref_twin:value", tmp_path / "two") == "two"
    assert load_attribute("ref_twin:value", tmp_path / "one") == "one"


def test_the_same_folder_imports_once(tmp_path: Path) -> None:
    (tmp_path / "ref_once.py").write_text("thing = object()\n")
    assert load_attribute("ref_once:thing", tmp_path) is load_attribute("ref_once:thing", tmp_path)


def test_what_is_installed_can_be_named(tmp_path: Path) -> None:
    assert load_attribute("collections.abc:Mapping", tmp_path).__name__ == "Mapping"  # type: ignore[attr-defined]


def test_a_file_may_not_take_the_name_of_a_library(tmp_path: Path) -> None:
    (tmp_path / "pydantic.py").write_text("value = 1\n")
    with pytest.raises(UsageError, match=r"Rename pydantic\.py"):
        load_attribute("pydantic:value", tmp_path)


def test_a_module_that_python_already_has_from_this_folder_is_used() -> None:
    this = load_attribute("test_reference:test_what_is_installed_can_be_named", Path(__file__).parent)
    assert this is test_what_is_installed_can_be_named


def test_a_folder_of_the_name_of_a_library_does_not_hide_it(tmp_path: Path) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "fedloom").mkdir()
    assert load_attribute("json:loads", tmp_path)
    assert load_attribute("fedloom.errors:FedloomError", tmp_path) is UsageError.__mro__[1]


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("ref_goood:value", "Did you mean 'ref_good:value'"),
        ("zzz:value", "Modules in"),
        ("ref_good:valeu", "Did you mean 'value'"),
        ("ref_good:value.there", "no attribute 'there'"),
        ("ref_raises:value", r"RuntimeError: too bad \(ref_raises\.py, line 3\)"),
        ("ref_syntax:value", "SyntaxError.*line 1"),
        ("ref_needs:value", "needs 'not_a_library', which is not installed"),
        ("ref_good.py:value", "is not module:attribute"),
    ],
)
def test_every_failure_says_what_to_do(reference: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "ref_good.py").write_text("value = 1\n")
    (tmp_path / "ref_raises.py").write_text("x = 1\n\nraise RuntimeError('too bad')\n")
    (tmp_path / "ref_syntax.py").write_text("x = = 1\n")
    (tmp_path / "ref_needs.py").write_text("import not_a_library\n")
    with pytest.raises(UsageError, match=words):
        load_attribute(reference, tmp_path)


def test_a_module_is_looked_for_without_importing_it(tmp_path: Path) -> None:
    (tmp_path / "ref_never.py").write_text("raise SystemExit\n")
    assert find_module("ref_never:x", tmp_path) is None
    assert find_module("json:loads", tmp_path) is None
    assert "Did you mean 'ref_never:x'" in str(find_module("ref_nevr:x", tmp_path))
    assert "ref_never" not in sys.modules
