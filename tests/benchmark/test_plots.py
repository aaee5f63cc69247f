import pytest
from PIL import Image

from eomt_d2.benchmark.plots import Axis, plot_bars, plot_curves, varied
from tests.benchmark.reports import FIRST, POINT, SECOND, failed, report

POINTS = [POINT._replace(size=size, original_size=original)
          for size in (128, 64) for original in ((60, 80), (100, 200))]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, which are saved nevertheless."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *a, **k: figures.append(figure) or save(figure, *a, **k)
    )
    return figures


def test_axes_with_more_than_one_value():
    assert [axis.key for axis in varied(report(POINTS, [FIRST]))] == ["size", "original_size"]
    assert varied(report([POINT], [FIRST])) == []


def test_a_bar_has_the_phases_and_a_failure_its_word(tmp_path, drawn):
    output = tmp_path / "bars.png"
    plot_bars(report([POINT], [FIRST, SECOND, failed("big")]), str(output))
    (axes,) = drawn[0].axes
    widths = [round(bar.get_width()) for bar in axes.patches]
    assert widths == [10, 100, 90, 10, 150, 90]
    words = [text.get_text() for text in axes.texts]
    assert words == [
        "64 pixels, batch 1, original 60 x 80", "200", "300 (1.50 x)", "out of memory",
    ]  # fmt: skip
    assert Image.open(output).width > 500


def test_a_curve_follows_one_axis_and_keeps_the_others(tmp_path, drawn):
    output = tmp_path / "curve.png"
    of_sizes = report(POINTS, [FIRST, failed("big")])
    # Twice the work at the larger size, in the same time.
    for result in of_sizes["results"][:2]:
        result["models"] = [{**FIRST, "macs": 2 * FIRST["macs"]}, failed("big")]
    plot_curves(of_sizes, Axis("size", "side"), str(output))
    times, arithmetic, memory = drawn[0].axes
    lines = {line.get_label(): line for line in times.lines}
    assert lines["one, network"].get_xdata().tolist() == [64, 128]
    assert lines["one, network"].get_ydata() == pytest.approx([100, 100])
    assert lines["one, if it grew as its GMACs"].get_ydata() == pytest.approx([100, 200])
    assert arithmetic.lines[0].get_ydata() == pytest.approx([2, 4])
    assert arithmetic.lines[1].get_ydata() == pytest.approx([0.5, 0.5])
    assert [text.get_text() for text in arithmetic.texts] == ["25 %", "12 %"]
    assert memory.lines[0].get_ydata() == pytest.approx([3, 3])
    assert output.is_file()


def test_originals_are_in_megapixels(tmp_path, drawn):
    plot_curves(report(POINTS, [FIRST]), Axis("original_size", "Mpx"), str(tmp_path / "c.png"))
    assert drawn[0].axes[0].lines[0].get_xdata() == pytest.approx([0.0048, 0.02])
