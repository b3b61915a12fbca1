"""The bench: paired in turn, ratios of pairs, and refusing to compare what does not agree."""

import time

import pytest

from dmsmil import bench
from dmsmil.files import InputError


def busy(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_calls_are_interleaved_and_timed_in_cpu_seconds():
    order = []
    plain, fast = bench.interleave(lambda: (order.append("plain"), busy(0.02)),
                                   lambda: (order.append("fast"), time.sleep(0.02)), 3)
    assert order == ["plain", "fast"] * 3 and len(plain) == len(fast) == 3
    assert min(plain) >= 0.02 and max(fast) < 0.02, "sleep is no work"


def test_a_row_tells_the_median_of_paired_ratios_and_their_spread():
    said = bench.row("x", [4.0, 2.0, 9.0], [1.0, 2.0, 3.0])
    assert "3.00x  [1.00, 4.00]" in said and "4.00" in said


def test_an_unknown_part_is_refused():
    with pytest.raises(InputError, match="bench knows no 'slide'"):
        bench.main(["slide"], True)


def test_the_fast_step_is_compared_only_where_it_agrees(monkeypatch, capsys):
    import torch

    from tests import naive_dmsmil

    threads = torch.get_num_threads()
    monkeypatch.setattr(naive_dmsmil, "step_naive", lambda *args: 1e9)
    try:
        with pytest.raises(AssertionError):
            bench.main(["step"], True)
    finally:
        torch.set_num_threads(threads)
