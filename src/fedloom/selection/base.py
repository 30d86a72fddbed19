"""What a selector is asked and told.

A selector is a file in this folder: its paper and formula on top. Its options are its annotated fields, set by
`federation.selection: {name: ..., option: value}`. What it learns it keeps in the state it is given, arrays over all N clients, so
that it survives in a checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedloom.devices.availability import Clients
    from fedloom.selection.pool import Feedback, Pool, State

__all__ = ["Selector"]


class Selector(BaseModel):
    """Chooses the clients of a round."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    title: ClassVar[str]
    paper: ClassVar[str]
    equation: ClassVar[str] = ""
    needs_devices: ClassVar[bool] = False
    """Whether it asks how fast clients are, or when they are online."""
    needs_losses: ClassVar[bool] = False
    """Whether clients must tell the mean square of their samples' losses."""

    def begin(self, sizes: NDArray[np.int64]) -> State:
        """What it knows before the first round of clients with so many rows, `[N]`."""
        return {}

    def select(self, pool: Pool, count: int, state: State) -> Clients:
        """So many clients of those online, or all of these where they are fewer; may write into the state."""
        raise NotImplementedError

    def stretch(self, pool: Pool, chosen: Clients, state: State) -> NDArray[np.int64] | None:
        """`[m]`: how many times their usual local steps these clients take; None for once."""
        return None

    def learn(self, state: State, told: Feedback, round: int) -> None:
        """Take down, in the state, what came of a round."""
