from eomt_d2.evaluation.tables import class_table


def test_absent_class_is_a_dash_and_numbers_have_two_digits():
    table = class_table([("cat", 12.345, 50.0), ("dog", float("nan"), 0.0)], ["PQ", "SQ"])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n")]
    assert rows[0] == ["class", "PQ", "SQ"]
    assert rows[2] == ["cat", "12.35", "50.00"]
    assert rows[3] == ["dog", "-", "0.00"]


def test_class_names_that_look_like_numbers_stay_as_they_are():
    assert "| 007 " in class_table([("007", 1.0)], ["IoU"])
