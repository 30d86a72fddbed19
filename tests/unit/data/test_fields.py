from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.data.fields import Row, check_fields, map_fields
from fedloom.errors import DataError

FIELDS = {"instruction": "question", "output": "answer", "input": "context"}
REQUIRED, OPTIONAL = ("instruction", "output"), ("input",)


@pytest.mark.parametrize("context", [None, "", float("nan"), "absent"])
def test_nothing_never_becomes_a_word(context: object) -> None:
    values = {"question": "Q", "answer": "A", "context": context}
    if context == "absent":
        del values["context"]
    mapped = map_fields(Row(values, "a.jsonl, line 1"), FIELDS, REQUIRED, OPTIONAL)
    assert mapped == {"instruction": "Q", "output": "A", "input": ""}


def test_the_users_own_word_none_stays() -> None:
    mapped = map_fields(Row({"question": "None", "answer": " A\n", "context": 0}, ""), FIELDS, REQUIRED, OPTIONAL)
    assert mapped == {"instruction": "None", "output": " A\n", "input": "0"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"question": "Q", "answer": None}, "a.jsonl, line 7: the column 'answer' is empty"),
        ({"question": "Q", "answer": " \n"}, "a.jsonl, line 7: the column 'answer' is empty"),
        ({"question": "Q", "answers": "A"}, "a.jsonl, line 7: there is no column 'answer'. .* Did you mean 'answers'"),
        ({"question": ["Q"], "answer": "A"}, "a.jsonl, line 7: the column 'question' holds a list, not text"),
        ({"question": b"Q", "answer": "A"}, "holds a bytes, not text"),
    ],
)
def test_a_row_without_a_required_value_is_named(values: Mapping[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        map_fields(Row(values, "a.jsonl, line 7"), FIELDS, REQUIRED, OPTIONAL)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"instructon": "question"}, "the task has no field 'instructon'. Did you mean 'instruction'"),
        ({"instruction": "qestion"}, "no column 'qestion' for the field 'instruction'. Did you mean 'question'"),
        ({"instruction": "question"}, "no column 'output'.*data.fields: {output: YOUR_COLUMN}"),
    ],
)
def test_a_wrong_mapping_is_refused_before_any_row(fields: dict[str, str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        check_fields(["question", "answer"], fields, REQUIRED, OPTIONAL, where="a.csv")
    check_fields(["question", "answer"], {"instruction": "question", "output": "answer"}, REQUIRED, OPTIONAL, where="")


@given(st.text().filter(str.strip), st.text().filter(str.strip), st.none() | st.text())
def test_text_is_never_changed(question: str, answer: str, context: str | None) -> None:
    row = Row({"question": question, "answer": answer, "context": context}, "")
    mapped = map_fields(row, FIELDS, REQUIRED, OPTIONAL)
    assert mapped == {"instruction": question, "output": answer, "input": context or ""}
