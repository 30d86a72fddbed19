"""Options that choose slices of the trainable vector by their names."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

__all__ = ["HEAD", "NORM", "Patterns"]

HEAD = r"(^|\.)((pre_)?classifier|score|head|lm_head|qa_outputs)\."
NORM = r"(?i)(^|\.)(\w*norm\w*|bn\w*|ln\w*)\."


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    return pattern


Patterns = list[Annotated[str, AfterValidator(_compiles)]]
"""Regular expressions, each found in the name of at least one slice."""
