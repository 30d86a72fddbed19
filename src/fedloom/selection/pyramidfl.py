"""PyramidFL (Li et al. 2022): Oort's selection, and more local work for those that would be done early.

    s_i = 1 + min(most, floor(beta (T - t_i) / c_i))

Client i takes s_i times its usual local steps: as many more as fit into the time that is left until T, Oort's preferred duration.
t_i is how long it takes for the usual ones, c_i the computation of that. Slow clients take their usual steps. The paper also lets
clients of little utility send a part of their update, which is not here.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedloom.devices.availability import Clients
from fedloom.selection.oort import Oort
from fedloom.selection.pool import Pool, State

__all__ = ["PyramidFL"]


class PyramidFL(Oort):
    """Useful and fast clients, of which the fastest do more."""

    title: ClassVar[str] = "PyramidFL"
    paper: ClassVar[str] = (
        "Li, Zeng, Zhang, Cao 2022, PyramidFL: A Fine-grained Client Selection Framework for Efficient Federated Learning, MobiCom"
    )
    equation: ClassVar[str] = "section 4"

    beta: float = Field(1.0, ge=0, description="How much of the time that is left is used; 0 is Oort")
    most: int = Field(9, ge=0, description="How many times the usual steps a client takes beside these, at most")

    def stretch(self, pool: Pool, chosen: Clients, state: State) -> NDArray[np.int64]:
        """See `Selector.stretch`."""
        known = np.flatnonzero(state["last"] > 0)
        longest = np.percentile(pool.seconds[known if len(known) else chosen], state["preferred"][0])
        spare = np.floor(self.beta * (longest - pool.seconds[chosen]) / pool.times.compute[chosen])
        times: NDArray[np.int64] = 1 + np.clip(spare, 0, self.most).astype(np.int64)
        return times
