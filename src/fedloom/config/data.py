"""The rows, how a row becomes an example, and who holds which."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedloom.config.datasets import DatasetName
from fedloom.config.section import Fraction, Positive, Section

__all__ = [
    "ColumnPartition",
    "Data",
    "DirichletPartition",
    "GivenPartition",
    "IidPartition",
    "Partition",
    "QuantityPartition",
]


class IidPartition(Section):
    """Rows dealt to clients at random, in equal numbers."""

    kind: Literal["iid"]
    clients: Positive = Field(description="Number of clients.")


class DirichletPartition(Section):
    """Each label's rows divided over clients by shares drawn from Dirichlet(alpha) (Hsu et al. 2019, section 2)."""

    kind: Literal["dirichlet"]
    clients: Positive = Field(description="Number of clients.")
    alpha: Annotated[float, Field(gt=0)] = Field(description="Concentration: 0.1 is very uneven, 100 nearly even.")
    label: str | None = Field(None, description="Column of the labels; the task's own label when left out.")
    min_rows: Positive = Field(
        10, description="Fewest rows a client may have; shares are drawn again until all have them."
    )


class ColumnPartition(Section):
    """Clients by the values of a column: one client a value, or the values dealt to a number of clients."""

    kind: Literal["column"]
    column: str = Field(min_length=1, description="The column whose values name the owners.")
    clients: Positive | None = Field(
        None,
        description="Deal the values to this many clients; with fewer values than clients, a value's rows are divided. "
        "One client per value when left out.",
    )


class QuantityPartition(Section):
    """Rows dealt at random in unequal numbers: client k gets a share proportional to k ** -exponent."""

    kind: Literal["quantity"]
    clients: Positive = Field(description="Number of clients.")
    exponent: Annotated[float, Field(ge=0)] = Field(1.0, description="Exponent of the power law; 0 is even.")
    min_rows: Positive = Field(2, description="Fewest rows a client may have.")


class GivenPartition(Section):
    """Rows named by a file of yours: JSON {"client id": [row, ...], ...}, rows counted from 0; or a partition file of FedNLP."""

    kind: Literal["given"]
    file: str = Field(min_length=1, description="The .json or .h5 file, relative to the experiment file.")
    method: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Of a FedNLP file (.h5): the partition in it, such as `uniform_client_1000`. Its clients' test rows are their "
        "own evaluation's and, all together, the held-out rows, instead of data.validation and data.held_out.",
    )
    label: str | None = Field(
        None, description="Column by which the held-out rows are stratified; the task's own label when left out."
    )


Partition = Annotated[
    IidPartition | DirichletPartition | ColumnPartition | QuantityPartition | GivenPartition,
    Field(discriminator="kind"),
]


class Data(Section):
    """The rows, how a row becomes an example, and who holds which."""

    source: str = Field(
        min_length=1,
        description="A JSON, JSONL, CSV, Parquet or FedNLP HDF5 file, a folder of `datasets`, a hub name, a packaged sample "
        "(`sample:chatterbot`), or your own callable as `module:attribute`. With `engine: remote`, every client reads its own.",
    )
    dataset: DatasetName | None = Field(
        None,
        description="The known data set that the source is, or is a copy of: the task, fields, labels, prompt and max_length that "
        "suit it are used where none are given (`fedloom list datasets`), and the hub's rows where no source is. Filled in where "
        "the source is its name, here or on the hub; null to have none of it.",
    )
    split: str = Field("train", description="The split of a hub or `datasets` source.")
    limit: Positive | None = Field(None, description="Read only the first rows.")
    where: dict[str, str | int | list[str | int]] = Field(
        {}, description="Keep only rows whose column has this value, or one of these."
    )
    fields: dict[str, str | list[str]] = Field(
        {},
        description="Our field: your column, or a list of columns whose texts are joined by spaces. causal_lm reads "
        "instruction, input, output; classification text, label; span_qa "
        "question, context, answer, answer_start.",
    )
    labels: dict[str, str] = Field(
        {},
        description="Names of the labels, by what stands in the column: {0: World, 1: Sports}. They are numbered in this order; "
        "when left out, the values themselves are the names, sorted.",
    )
    prompt: str | None = Field(None, description="What is asked of every row, put before its instruction.")
    template: Literal["auto", "chat", "alpaca", "vicuna", "plain"] = Field(
        "auto",
        description="How a row becomes a prompt; `auto` is the tokenizer's chat template if it has one, else alpaca.",
    )
    max_length: Annotated[int, Field(ge=8)] = Field(256, description="Longest example in tokens.")
    partition: Partition = Field(description="Who holds which rows.")
    min_rows: Positive = Field(2, description="Fewest rows a client may hold after the partition; fewer is an error.")
    held_out: Fraction = Field(
        0.1, description="Share of all rows, taken before the partition, on which every model is judged; 0 for none."
    )
    validation: Fraction = Field(0.1, description="Share of each client's rows kept for that client's own evaluation.")
    unseen_clients: Fraction = Field(
        0.0,
        description="Share of the clients (above 0: at least one) that never train and are only judged, on their own "
        "validation rows: `eval_unseen_...` is their mean.",
    )

    def columns_of(self, field: str) -> list[str]:
        """The columns of the source that a field of the task is read from."""
        given = self.fields.get(field, field)
        return list(given) if isinstance(given, list) else [given]

    def unseen_of(self, clients: int) -> int:
        """How many of so many clients never train."""
        return max(1, round(self.unseen_clients * clients)) if self.unseen_clients else 0
