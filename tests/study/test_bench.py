"""The bench: paired in turn, ratios of pairs, and refusing to compare what does not agree."""

import pytest

from dmsmil.jobs.files import InputError
from dmsmil.study import bench


def test_a_row_tells_the_median_of_paired_ratios_and_their_spread():
    said = bench.row("x", [4.0, 2.0, 9.0], [1.0, 2.0, 3.0])
    assert "3.00x  [1.00, 4.00]" in said and "4.00" in said


def test_an_unknown_part_is_refused():
    with pytest.raises(InputError, match="bench knows no 'slide'"):
        bench.main(["slide"], True)


def test_the_fast_step_is_compared_only_where_it_agrees(monkeypatch, capsys):
    import torch

    from tests.models import naive_dmsmil

    threads = torch.get_num_threads()
    monkeypatch.setattr(naive_dmsmil, "step_naive", lambda *args: 1e9)
    try:
        with pytest.raises(AssertionError):
            bench.main(["step"], True)
    finally:
        torch.set_num_threads(threads)


def test_the_methods_part_shows_what_cost_measures(monkeypatch):
    import pandas as pd

    asked = []

    def measured(methods, k, dim, slides, rounds, device, batch):
        asked.append((len(methods), k, dim, slides, device, batch))
        return pd.DataFrame(
            {
                "name": ["DMSMIL", "DSMIL"],
                "method": ["dmsmil", "dsmil"],
                "inference_median_ms": [2.0, 1.0],
                "epoch_median_s": [0.004, 0.012],
            }
        )

    monkeypatch.setattr(bench, "method_costs", measured)
    lines = list(bench.methods(True))
    assert asked == [(len(bench.METHODS), 50, 256, 1, "cpu", batch) for batch in (1, 16)]
    assert len(lines) == 6 and "1.00 (0.50)" in lines[2] and "12.00 (3.00)" in lines[2]
