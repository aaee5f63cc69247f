"""The costs of a network as a text table: an indented tree of modules."""

from collections.abc import Iterator, Mapping

from .complexity import Complexity

__all__ = ["complexity_table"]

_COLUMNS = ("module", "parameters", "%", "GMACs", "%")
OWN = "(itself)"


def complexity_table(complexity: Mapping[str, Complexity], depth: int = 2) -> str:
    """Lay out the tree of modules down to a depth.

    Where a module's submodules are shown, what it holds and computes outside of them is one more
    row, "(itself)", so the rows of a level add up to the row above them. Modules without parameters
    and MACs are left out.

    Args:
        complexity: see :func:`~eomt_d2.analysis.network_complexity`.
        depth: levels of modules to show, at least 1.

    Returns:
        A header, one line per module and the total; parameters, their share of all parameters,
        10^9 multiply-accumulates and their share.
    """
    total = complexity[""]
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for level, name, costs in _rows(complexity, "", depth):
        rows.append(_row("  " * level + name, costs, total))
    rows.append(_row("total", total, total))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _rows(
    complexity: Mapping[str, Complexity], parent: str, depth: int, level: int = 0
) -> Iterator[tuple[int, str, Complexity]]:
    prefix = f"{parent}." if parent else ""
    children = {
        name: costs
        for name, costs in complexity.items()
        if name and name != parent and name.startswith(prefix) and "." not in name[len(prefix) :]
    }
    if not children or level == depth:
        return
    for name, costs in children.items():
        if any(costs):
            yield level, name[len(prefix) :], costs
            yield from _rows(complexity, name, depth, level + 1)
    own = Complexity(
        *(
            all_of_it - sum(parts)
            for all_of_it, parts in zip(
                complexity[parent], zip(*children.values(), strict=True), strict=True
            )
        )
    )
    if any(own):
        yield level, OWN, own


def _row(name: str, costs: Complexity, total: Complexity) -> tuple[str, ...]:
    shares = [
        f"{100 * part / whole if whole else 0:.1f}"
        for part, whole in zip(costs, total, strict=True)
    ]
    return name, f"{costs.parameters:,}", shares[0], f"{costs.macs / 1e9:,.2f}", shares[1]
