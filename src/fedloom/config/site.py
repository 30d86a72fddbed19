"""A client's own file: which rows are its own, and what it agrees to do with them. It never leaves the client."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from fedloom.config.load import read_document
from fedloom.config.section import Positive, Section
from fedloom.config.translate import translate
from fedloom.errors import ConfigError

__all__ = ["Accept", "Site", "SiteData", "read_site"]


class SiteData(Section):
    """Where this client's rows are, and which of its columns are the experiment's fields."""

    source: str = Field(
        min_length=1,
        description="A JSON, JSONL, CSV or Parquet file, a folder of `datasets`, or a packaged sample; relative to this file.",
    )
    split: str = Field("train", description="The split of a `datasets` source.")
    limit: Positive | None = Field(None, description="Read only the first rows.")
    where: dict[str, str | int | list[str | int]] = Field(
        {}, description="Keep only rows whose column has this value, or one of these."
    )
    fields: dict[str, str | list[str]] = Field(
        {}, description="The task's field: your column. Takes the place of what the experiment says."
    )
    labels: dict[str, str] = Field(
        {},
        description="The experiment's names of the labels, by what stands in your column: {1: positive, 0: negative}.",
    )


class Accept(Section):
    """What this client agrees to; everything else is refused, and the coordinator is told why."""

    tasks: list[str] | None = Field(None, description="Tasks; any when left out.")
    base_models: list[str] | None = Field(
        None, description="Fingerprints of base models, as manifests and refusals tell them; any when left out."
    )
    code: list[str] = Field(
        [],
        description="Code in this file's folder that an experiment may name: [my_model:build]. Nothing else of that kind is run.",
    )
    max_rounds: Positive | None = Field(None, description="Rounds of one experiment.")
    max_steps: Positive | None = Field(None, description="Local steps of one round.")
    min_cohort: Positive = Field(1, description="Fewest clients a round: an aggregate of few tells much of each.")


class Site(Section):
    """One client's site."""

    data: SiteData = Field(description="Your rows.")
    accept: Annotated[Accept, Field(description="What you agree to.")] = Accept()


def read_site(path: Path) -> Site:
    """The site of a YAML file.

    Raises ConfigError with every mistake at once.
    """
    document = read_document(path)
    try:
        site = Site.model_validate(document.data)
    except ValidationError as error:
        translate(error, Site, document)
        raise ConfigError(str(path), document.mistakes) from None
    if document.mistakes:
        raise ConfigError(str(path), document.mistakes)
    return site
