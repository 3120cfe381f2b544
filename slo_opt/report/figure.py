"""What all plots share: matplotlib loaded only here and late, one palette, one look."""

from pathlib import Path
from typing import TYPE_CHECKING

from slo_opt.domain.errors import InvalidInputError, SolverNotAvailableError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by people with any kind of colour vision, and in print.
ATTAINED = "#1b7f79"
DECLINED = "#c44536"
LATE = "#e8a33d"
PREFILL = "#243b53"
DECODE = "#7fb3d5"
INK = "#222831"
MUTED = "#8a929c"
PALE = "#e9ecef"
FORMATS = (".png", ".svg", ".pdf")

_STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": PALE,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "slo-opt",
    "text.parse_math": False,  # a $ in a name or id is a $
}


def require_matplotlib(path: Path) -> None:
    """Make sure that a plot can be drawn and stored before work is spent on it.

    Raises
    ------
    SolverNotAvailableError
        matplotlib is not installed.
    InvalidInputError
        The ending names no picture format.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SolverNotAvailableError("plots need matplotlib; pip install 'slo-opt[plot]'") from None
    if path.suffix.lower() not in FORMATS:
        raise InvalidInputError(f"{path}: plots end in {', '.join(FORMATS)}; choose one of them")


def new_figure(width_in: float, height_in: float) -> "Figure":
    """An empty figure in the common style, without a window or global state."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update(_STYLE)
    return Figure(figsize=(width_in, height_in), layout="constrained")


def save(figure: "Figure", path: Path) -> None:
    """Store the figure; equal figures give equal files."""
    metadata = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    figure.savefig(path, dpi=160, metadata=metadata[path.suffix.lower()])


def heading(figure: "Figure", title: str, subtitle: str) -> None:
    """Title and subtitle, left-aligned over the whole figure."""
    figure.suptitle(f"{title}\n", x=0.012, ha="left", fontsize=13, fontweight="bold", linespacing=1.7)
    height_in = float(figure.get_size_inches()[1])
    figure.text(0.012, 1 - 0.33 / height_in, subtitle, ha="left", va="top", fontsize=9.5, color=MUTED)


def legend_above(axes: "Axes", columns: int, handles: "list[Artist] | None" = None) -> None:
    """Legend on the right end of the title line; of the labelled artists if no handles are given."""
    axes.legend(
        handles=axes.get_legend_handles_labels()[0] if handles is None else handles,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=columns,
        borderaxespad=0.1,
        handlelength=1.2,
        columnspacing=1.2,
    )
