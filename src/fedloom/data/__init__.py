"""The data floor: where rows come from, how they become examples, and who holds which.

Import the submodules: `samples` (the catalogue, standard library only), `fetch`, `sources`, `templates`, `encode`,
`table`, `partition`. Nothing is imported here, so that the command can list the samples without loading numpy or torch.
"""

from __future__ import annotations
