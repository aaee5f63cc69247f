from eomt_d2.data.checking import faults_table
from eomt_d2.data.datasets.faults import Fault

FAULTS = [
    Fault("error", "/data/a.png", "Image file /data/a.png is empty (0 bytes); remove it."),
    Fault("warning", "labels.json", "'labels.json' has no usable image."),
]


def test_columns():
    # Of 60 characters 7 are the severity and 6 the gaps; the file and the advice have what they
    # need, 11 and 10, and the rest is for the reason.
    assert faults_table(FAULTS, width=60).splitlines() == [
        "         file         what is wrong               what to do",
        "-------  -----------  --------------------------  ----------",
        "error    /data/a.png  Image file a.png is empty   remove it",
        "                      (0 bytes)",
        "warning  labels.json  'labels.json' has no",
        "                      usable image.",
    ]


def test_long_cells_are_wrapped_and_nothing_is_lost():
    file = "/data/" + "x" * 80 + ".png"
    message = f"Image file {file} " + "and " * 40 + "so on; do " + "that " * 20 + "."
    table = faults_table([Fault("error", file, message)], width=100)
    assert all(len(line) <= 100 for line in table.splitlines())
    for word, count in (("and", 40), ("that", 20)):
        assert sum(line.split().count(word) for line in table.splitlines()) == count
    shown = "".join(line[9:38].strip() for line in table.splitlines()[2:])
    assert shown == file
