"""The table of a network of three modules."""

from eomt_d2.analysis import Complexity, complexity_table

COSTS = {
    "": Complexity(1000, 4_000_000_000),
    "vit": Complexity(750, 3_000_000_000),
    "vit.blocks": Complexity(500, 2_500_000_000),
    "vit.blocks.0": Complexity(500, 2_500_000_000),
    "vit.norm": Complexity(50, 0),
    "vit_head": Complexity(250, 0),
    "criterion": Complexity(0, 0),
}


def test_rows_of_a_level_add_up_to_the_row_above():
    assert complexity_table(COSTS).splitlines() == [
        "module      parameters      %  GMACs      %",
        "-------------------------------------------",
        "vit                750   75.0   3.00   75.0",
        "  blocks           500   50.0   2.50   62.5",
        "  norm              50    5.0   0.00    0.0",
        "  (itself)         200   20.0   0.50   12.5",
        "vit_head           250   25.0   0.00    0.0",
        "(itself)             0    0.0   1.00   25.0",
        "-------------------------------------------",
        "total            1,000  100.0   4.00  100.0",
    ]


def test_depth_ends_the_tree():
    names = [line.split()[0] for line in complexity_table(COSTS, depth=1).splitlines()]
    assert names[2:-2] == ["vit", "vit_head", "(itself)"]
    assert "    0" in complexity_table(COSTS, depth=3)


def test_a_network_without_products_has_no_shares():
    free = Complexity(0, 0)
    last = complexity_table({"": free, "relu": free}).splitlines()[-1]
    assert last.split() == ["total", "0", "0.0", "0.00", "0.0"]
