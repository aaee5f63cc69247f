from eomt_d2.benchmark.plan import Point
from eomt_d2.benchmark.tables import markdown, milliseconds, phase_title, point_title
from tests.benchmark.reports import FIRST, POINT, SECOND, failed, model, report


def rows_of(text, name):
    """The cells of the table rows that begin with a name."""
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()
            if line.startswith("|")]  # fmt: skip
    return [row[1:] for row in rows if row[0] == name]


def test_costs_and_times_of_each_model():
    text = markdown(report([POINT], [FIRST, SECOND]))
    costs, *times = rows_of(text, "two")
    # 4 GFLOP in 0.15 s are 26.7 GFLOP/s of 100; one image in 0.3 s.
    assert costs == ["1 x 3 x 64 x 64", "1.5", "2", "25.0 %", "3.333", "26.7", "27 %", "3"]
    assert times == [
        ["preparation", "10", "10", "10", "-", "-", "-"],
        ["network", "150", "150", "150", "1.50", "1.50", "1.50"],
        ["post-processing", "90", "90", "90", "-", "-", "-"],
        ["end to end", "300", "300", "300", "1.50", "1.50", "1.50"],
    ]
    assert [row[-3:] for row in rows_of(text, "one")[1:]] == [["-"] * 3] * 4


def test_what_did_not_fit_says_so():
    text = markdown(report([POINT], [failed("big"), FIRST]))
    assert rows_of(text, "big") == [["out of memory", *["-"] * 7]]
    assert len(rows_of(text, "one")) == 5


def test_unknown_memory_is_not_measured():
    text = markdown(report([POINT], [model("one", peak_bytes=None)]))
    assert rows_of(text, "one")[0][-1] == "not measured"


def test_machine_and_settings_are_told():
    text = markdown(report([POINT], [FIRST], repeats=7, active_queries=20))
    assert "- command: `tools/benchmark.py`" in text
    assert "gpu" not in text, "what is not there is left out"
    assert "7 turns" in text and "20 queries are sure of a class" in text
    training = markdown(report([POINT], [FIRST], mode="train", segments=9))
    assert "9 segments per image" in training


def test_agreement_with_transformers_is_told():
    agreement = {"mask_logits": 2e-6, "class_logits": 1e-6, "pixels": 0.9999}
    text = markdown(report([POINT], [FIRST, model("two", agreement=agreement)]))
    assert "at most 2.0e-06 of the largest" in text and "99.99 % of the pixels" in text


def test_a_point_in_words():
    assert point_title(POINT._asdict()) == "64 pixels, batch 1, original 60 x 80"
    assert point_title(Point(batch=2, queries=50)._asdict()) == "batch 2, 50 queries"
    assert point_title(POINT._asdict(), without="size") == "batch 1, original 60 x 80"


def test_all_phases_together():
    assert phase_title("total", "infer") == "end to end"
    assert phase_title("total", "train") == "step"
    assert phase_title("loss", "train") == "loss"


def test_times_have_no_exponent():
    assert [milliseconds(s) for s in (12.3456, 0.123456, 0.0001)] == ["12346", "123.5", "0.1"]
