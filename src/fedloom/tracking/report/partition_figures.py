"""The partition as a picture: who holds how many rows of which label, legible from 1 client to 100,000."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedloom.tracking.reading import Record
from fedloom.tracking.report.drawing import COLOURS, INK, MUTED, PAPER, sheet, to_svg
from fedloom.tracking.report.wording import count, plural, shorten

__all__ = ["Picture", "partition_figure"]

MOST_CLIENTS, MOST_LABELS, COLUMNS = 30, 20, 240
WIDE = 900.0


class Picture(NamedTuple):
    """An SVG, the sentence below it, which also says what is aggregated or left out, and the figure it came from."""

    svg: str
    caption: str
    figure: Any


def partition_figure(partition: Record, name: str = "partition") -> Picture | None:
    """Bubbles (clients by labels), bars when there are no labels to tell apart, a heat map for many clients."""
    clients = [shorten(c, 26) for c in partition.get("clients") or []]
    rows = np.asarray(partition.get("rows") or [], dtype=np.float64)
    labels = [shorten(v, 22) for v in partition.get("labels") or []]
    if not clients or rows.size != len(clients):
        return None
    counts = np.asarray(partition.get("counts") or [], dtype=np.float64)
    if counts.ndim != 2 or counts.shape != (len(clients), len(labels)) or len(labels) < 2 or counts.sum() == 0:
        return _rows_figure(clients, rows, name, "")
    if ((counts > 0).sum(1) <= 1).all() and ((counts > 0).sum(0) <= 1).all():
        return _rows_figure(clients, rows, name, "Every client holds rows of one label only, and no two share one. ")
    counts, labels, folded = _fold_labels(counts, labels)
    if len(clients) > MOST_CLIENTS:
        return _heat_figure(rows, counts, labels, folded, name)
    return _bubble_figure(clients, rows, counts, labels, folded, name)


def _fold_labels(counts: NDArray[np.float64], labels: list[str]) -> tuple[NDArray[np.float64], list[str], str]:
    """The most frequent labels first; those beyond the cap summed into one row, and a sentence that says so."""
    order = np.argsort(-counts.sum(0), kind="stable")
    counts, labels = counts[:, order], [labels[j] for j in order]
    if len(labels) <= MOST_LABELS:
        return counts, labels, ""
    rest = len(labels) - MOST_LABELS + 1
    kept = counts[:, : MOST_LABELS - 1]
    folded = np.column_stack([kept, counts[:, MOST_LABELS - 1 :].sum(1)])
    sentence = f" The {rest:,} rarest of {len(labels):,} labels are summed as “others”."
    return folded, [*labels[: MOST_LABELS - 1], f"{rest:,} others"], sentence


def _bubble_figure(
    clients: list[str],
    rows: NDArray[np.float64],
    counts: NDArray[np.float64],
    labels: list[str],
    folded: str,
    name: str,
) -> Picture:
    step = 34.0
    names = max(len(c) for c in clients)
    longest = max(len(label) for label in labels)
    column = min(78.0, (WIDE - 60 - 7 * names - 160) / len(labels))
    tilted = longest * 7 > column - 6
    left, top = 24 + 7.0 * names, 30 + (4.9 * longest if tilted else 0)
    grid, bars = column * len(labels), 150.0
    tail = max(0.0, 4.9 * longest - column / 2 - bars) if tilted else 0.0
    width, height = left + grid + 24 + bars + tail, top + step * len(clients) + 10
    with sheet(width, height) as figure:
        axes = figure.add_axes((left / width, 10 / height, grid / width, step * len(clients) / height))
        y, x = np.nonzero(counts)
        largest = counts.max()
        diameter = np.maximum(2.0, min(step, column) * 0.92 * np.sqrt(counts[y, x] / largest))
        axes.scatter(x, y, s=diameter**2, color=COLOURS["run"], alpha=0.82, linewidth=0)
        for i, j, d in zip(y, x, diameter, strict=True):
            text = f"{counts[i, j]:.0f}"
            if d > 7.5 * len(text) + 3:
                axes.text(j, i, text, ha="center", va="center", fontsize=10.5, color=PAPER)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set_ylim(len(clients) - 0.5, -0.5)
        axes.set_yticks(range(len(clients)), clients, color=INK)
        axes.set_xticks(range(len(labels)), labels, color=INK)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        if tilted:
            for text in axes.get_xticklabels():
                text.set(rotation=45, ha="left", va="bottom", rotation_mode="anchor")
        axes.spines["bottom"].set_visible(False)
        side = figure.add_axes(((left + grid + 24) / width, 10 / height, bars / width, step * len(clients) / height))
        _row_bars(side, rows, label_room=0.42)
        if not tilted:
            side.annotate(
                "all rows", (0, 1.0), xycoords="axes fraction", xytext=(0, 7), textcoords="offset points", color=MUTED
            )
        caption = (
            f"Training rows of each client by label: the area of a circle is the number of rows "
            f"(largest {count(largest)}); bars at the right are all of a client's rows.{folded}"
        )
        title = f"{plural(len(clients), 'client')} by {plural(len(labels), 'label')}: rows held"
        return Picture(to_svg(figure, title, name), caption, figure)


def _row_bars(axes: Any, rows: NDArray[np.float64], label_room: float) -> None:
    """Horizontal bars with the number at their end."""
    most = max(float(rows.max()), 1.0)
    axes.barh(range(rows.size), rows, height=0.52, color=COLOURS["run"], alpha=0.35)
    for i, value in enumerate(rows):
        axes.annotate(count(value), (value, i), xytext=(5, 0), textcoords="offset points", va="center", color=INK)
    axes.set_xlim(0, most * (1 + label_room))
    axes.set_ylim(rows.size - 0.5, -0.5)
    axes.set_axis_off()


def _rows_figure(clients: list[str], rows: NDArray[np.float64], name: str, why: str) -> Picture:
    """Rows per client: named bars for few clients, a histogram for many."""
    if len(clients) > MOST_CLIENTS:
        with sheet(WIDE, 230) as figure:
            axes = figure.add_axes((60 / WIDE, 48 / 230, (WIDE - 90) / WIDE, 165 / 230))
            axes.hist(rows, bins=min(50, max(1, int(np.ptp(rows)) + 1)), color=COLOURS["run"], alpha=0.85)
            axes.set_xlabel("Training rows of a client")
            axes.set_ylabel("Clients")
            axes.yaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
            axes.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
            svg = to_svg(figure, f"Histogram of rows held by {plural(len(clients), 'client')}", name)
        caption = f"{why}How many of the {len(clients):,} clients hold how many training rows: {_extent(rows)}."
        return Picture(svg, caption, figure)
    left, step = 24 + 7.0 * max(len(c) for c in clients), 28.0
    width, height = min(WIDE, left + 560), step * len(clients) + 12
    with sheet(width, height) as figure:
        axes = figure.add_axes((left / width, 6 / height, (width - left - 10) / width, step * len(clients) / height))
        _row_bars(axes, rows, label_room=0.12)
        for i, client in enumerate(clients):
            axes.annotate(
                client, (0, i), xytext=(-10, 0), textcoords="offset points", ha="right", va="center", color=INK
            )
        svg = to_svg(figure, f"Rows held by {plural(len(clients), 'client')}", name)
    return Picture(svg, f"{why}Training rows of each client.", figure)


def _heat_figure(
    rows: NDArray[np.float64], counts: NDArray[np.float64], labels: list[str], folded: str, name: str
) -> Picture:
    """Clients sorted by the label they hold most, in at most 240 columns; darker is a larger share of their rows."""
    from matplotlib.colors import LinearSegmentedColormap

    share = counts / np.maximum(counts.sum(1, keepdims=True), 1.0)
    order = np.lexsort((-share.max(1), share.argmax(1)))
    columns = np.array_split(order, min(COLUMNS, len(order)))
    image = np.stack([share[c].mean(0) for c in columns], axis=1)
    profile = np.array([rows[c].mean() for c in columns])
    left, cell = 30 + 7.0 * max(len(label) for label in labels), 24.0
    body = cell * len(labels)
    width, height = WIDE, 46 + body + 14 + 74 + 26
    with sheet(width, height) as figure:
        span = (width - left - 36) / width
        axes = figure.add_axes((left / width, 46 / height, span, body / height))
        shades = LinearSegmentedColormap.from_list("share", [COLOURS["run"] + "08", COLOURS["run"]])
        edges = (0.5, len(order) + 0.5)
        axes.imshow(
            image,
            aspect="auto",
            cmap=shades,
            vmin=0,
            vmax=float(image.max()),
            interpolation="nearest",
            extent=(*edges, len(labels) - 0.5, -0.5),
        )
        axes.set_yticks(range(len(labels)), labels, color=INK)
        axes.grid(visible=False)
        axes.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
        axes.set_xlabel("Clients, sorted by the label they hold most")
        above = figure.add_axes((left / width, (46 + body + 14) / height, span, 74 / height))
        above.fill_between(np.linspace(*edges, profile.size), profile, color=COLOURS["run"], alpha=0.35, linewidth=0)
        above.set_xlim(*edges)
        above.set_ylim(0, profile.max() * 1.05)
        above.set_yticks([0, _round_down(profile.max())])
        above.yaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
        above.tick_params(axis="x", length=0, labelbottom=False)
        above.spines["bottom"].set_visible(False)
        above.text(0, 1.04, "rows", transform=above.transAxes, color=MUTED, ha="right", va="bottom")
        svg = to_svg(figure, f"Shares of {plural(len(labels), 'label')} over {plural(len(order), 'client')}", name)
    gathered = (
        f" Each column gathers about {len(order) / len(columns):.0f} clients." if len(columns) < len(order) else ""
    )
    column = "a group of clients" if gathered else "a client"
    caption = (
        f"Each column of the map is {column}; the stronger the colour, the larger the label's share of the rows there "
        f"(at most {100 * image.max():.0f}%).{gathered} Above: their training rows ({_extent(rows)}).{folded}"
    )
    return Picture(svg, caption, figure)


def _extent(rows: NDArray[np.float64]) -> str:
    return f"{count(rows.min())} to {count(rows.max())}, median {count(float(np.median(rows)))}"


def _round_down(value: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is at most the value."""
    if value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(max(m * power for m in (1, 2, 5) if m * power <= value))
