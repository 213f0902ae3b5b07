"""A matplotlib figure that notebooks show without pyplot."""

from __future__ import annotations

import io

from setok_kernels.extras import from_extra

with from_extra("report"):
    from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """Figure that a notebook shows where it is the last value of a cell.

    Without it only figures of pyplot are shown, whose state it keeps until they are closed.
    """

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
