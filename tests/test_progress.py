"""A bar says how far it is, how fast, and how long it will take; it is shown for long work only."""

import re

from latentlens.access.progress import Progress


def test_a_bar_has_a_rate_a_time_left_and_a_second_count(monkeypatch, capsys):
    monkeypatch.setattr("time.time", iter(range(1000, 2000)).__next__)  # a second passes at every look
    with Progress("capture", 4000, "tok", things=("rows", 64)) as bar:
        for _ in range(4):
            bar.update(250)
            bar.count(3)
        shown = str(bar._bar)
    assert re.search(r"capture: +25%", shown)
    assert re.search(r"1\.00k/4\.00k \[\d\d:\d\d<\d\d:\d\d, .*tok/s", shown), shown
    assert "rows 12/64" in shown


def test_short_work_shows_nothing(capsys):
    with Progress("capture", 10, "tok") as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""
