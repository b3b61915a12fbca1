"""Growth with the number of tiles: the parts are the model's, slopes are powers, and the sentence follows from them."""

import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dmsmil import figures
from dmsmil.cost import growth, meter
from dmsmil.cost.growth import PARTS, growth_sentences, larger_half, part_calls, slope, study_growth
from dmsmil.jobs.files import InputError
from dmsmil.models import METHODS
from dmsmil.models.deformable import DeformableAttention
from tests.conftest import assert_one_line
from tests.figures.test_figures import drawn

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(meter, "TURN_SECONDS", 0.001)


def made(deformable=1.0, full=2.0, ot=2.5, memory=(1.0, 1.0, 2.0, 1.0), k=(50, 100, 200, 400), first=(10.0, 1.0, 0.1)):
    """A growth table whose times and memory follow exact powers of K, `first` at the smallest K."""
    rows = [
        {
            "part": part,
            "k": n,
            "median_ms": start * (n / k[0]) ** p,
            "memory_mb": (n / k[0]) ** q,
            "slope_time": p,
            "slope_memory": q,
            "device": "a processor",
            "arrays_mb": 0.0,
            "excess": 0.0 if part != "blocks" else n / 10_000,
        }
        for part, p, q, start in zip(PARTS, (deformable, full, ot, 1.0), memory, (*first, 2.0))
        for n in k
    ]
    return pd.DataFrame(rows).assign(min_ms=lambda t: 0.9 * t.median_ms, max_ms=lambda t: 1.1 * t.median_ms)


@pytest.mark.parametrize(
    "tiles, half",
    [([50, 200], [50, 200]), ([1, 2, 3], [2, 3]), ([4, 1, 2, 3, 3], [3, 4]), ([1, 2, 3, 4, 5], [3, 4, 5])],
)
def test_the_larger_half_has_two_at_least(tiles, half):
    assert list(larger_half(tiles)) == half


def test_a_slope_is_the_power_and_looks_at_the_larger_half_only():
    k = np.array([50, 100, 200, 400, 800, 1600])
    for power in (0.5, 1, 2.3):
        values = 7 * k**power
        assert slope(k, values) == pytest.approx(power)
        values[:3] = 1000
        assert slope(k, values) == pytest.approx(power)


def test_the_parts_are_measured_at_every_k():
    table = growth.growth([9, 4, 4, 16], 2, "cpu")
    assert list(table)[:8] == ["part", "k", "median_ms", "min_ms", "max_ms", "memory_mb", "slope_time", "slope_memory"]
    assert list(zip(table.part, table.k)) == [(part, k) for part in PARTS for k in (4, 9, 16)]
    assert (table.min_ms <= table.median_ms).all() and (table.median_ms <= table.max_ms).all()
    for _, rows in table.groupby("part"):
        assert rows.slope_time.iloc[0] == pytest.approx(slope(rows.k, rows.median_ms))
        assert rows.slope_memory.nunique() == 1 and rows.memory_mb.is_monotonic_increasing


@pytest.mark.slow
def test_the_exact_part_ends_where_it_would_take_too_long_and_blocks_go_on(monkeypatch, tmp_path):
    monkeypatch.setattr(growth, "MOST", {"ot": 9})
    monkeypatch.setattr(growth.transport, "BLOCK", 4)
    table = growth.growth([4, 9, 16], 1, "cpu")
    assert list(table.k[table.part == "ot"]) == [4, 9] and list(table.k[table.part == "blocks"]) == [4, 9, 16]
    excess = table[table.part == "blocks"].set_index("k").excess
    assert excess[4] == 0 and 0 < excess[9] < 0.5 and np.isnan(excess[16])
    said = growth_sentences(table)
    assert f"by {100 * excess[9]:.1f} % at K = 9" in said and "at K = 16. Its value" in said
    assert len(drawn(figures.growth_curves(table, tmp_path / "g"), tmp_path / "g")) == len(table)


@pytest.mark.slow
def test_products_grow_as_the_paper_says():
    """Of matrix products the claim holds exactly, whatever a machine makes of it."""
    flops = {part: [] for part in PARTS}
    for k in (512, 1024, 2048):
        for part, (call, _) in part_calls(k, CPU).items():
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                call()
            flops[part].append(counter.get_total_flops())
    assert np.diff(np.log2(flops["deformable"])) == pytest.approx([1, 1], abs=0.01)
    assert np.diff(np.log2(flops["full"]))[1] > 1.7


def test_the_deformable_part_has_the_defaults_of_dmsmil(monkeypatch):
    asked = {}

    def made(*args, **chosen):
        asked.update(chosen)
        return DeformableAttention(*args, **chosen)

    monkeypatch.setattr(growth, "DeformableAttention", made)
    growth.part_calls(9, torch.device("cpu"))
    usual = METHODS["dmsmil"].options()
    taken = set(inspect.signature(DeformableAttention.__init__).parameters) & set(usual) - {"heads"}
    assert asked == {name: usual[name] for name in taken} and "offset_lr" in asked


def test_the_deformable_part_is_the_models_own():
    """DAMIL's pooled vector, when its projection is the identity, is what the part computes before its sum."""
    from dmsmil.models import create

    model = create("damil", 128, scales=(10,))
    with torch.no_grad():
        model.branches.project.weight.copy_(torch.eye(128)[None])
        model.branches.project.bias.zero_()
    tiles, mask = torch.randn(1, 1, 30, 128), torch.ones(1, 1, 30, dtype=torch.bool)
    attend, geometry = model.branches.attend, model.geometry(mask)
    maps = growth.lay_out(mask)
    weights = attend.weights(tiles, maps, torch.full((1, 1, 30), 1 / 30))
    pooled = attend.mix(weights @ tiles, weights.sum(-1))
    torch.testing.assert_close(pooled[0], model.branches(tiles, mask, geometry)["pooled"][0])


def test_a_study_measures_growth_once(tmp_path, monkeypatch):
    first, measured = study_growth(tmp_path, [4, 8], 1, "cpu"), []
    monkeypatch.setattr(growth, "growth", lambda *args: measured.append(args) or first)
    pd.testing.assert_frame_equal(study_growth(tmp_path, [8, 4], 1, "cpu"), first)
    assert not measured
    for tiles, rounds, seed in (([4, 9], 1, 0), ([4, 8], 2, 0), ([4, 8], 1, 1)):
        study_growth(tmp_path, tiles, rounds, "cpu", seed)
    monkeypatch.setattr(growth, "code_version", lambda module: "other code")
    study_growth(tmp_path, [4, 8], 1, "cpu")
    assert len(measured) == 4


@pytest.mark.parametrize(
    "tiles, rounds, message",
    [
        ([50], 1, "cost_tiles"),
        ([50, 50], 1, "cost_tiles"),
        ([0, 50], 1, "cost_tiles"),
        ([], 1, "cost_tiles"),
        ([4, 8], 0, "cost_rounds"),
        ([2000, 20000], 1, "up to 5000"),  # one point of the exact transport, and no power of K in it
        ([6000, 12000], 1, "cost_tiles"),
    ],
)
def test_bad_input_is_one_line(tmp_path, tiles, rounds, message):
    with pytest.raises(InputError, match=message) as caught:
        study_growth(tmp_path, tiles, rounds, "cpu")
    assert_one_line(caught, "cost_")


@pytest.mark.parametrize(
    "slopes, word",
    [
        ((1.0, 2.0), "**holds**"),
        ((0.6, 1.8), "**holds**"),
        ((1.0, 1.6), "**holds in direction only**"),
        ((1.5, 2.0), "**holds in direction only**"),
        ((1.0, 1.1), "**does not hold**"),
        ((2.0, 1.0), "**does not hold**"),
    ],
)
def test_the_claim_is_judged_by_the_slopes(slopes, word):
    line = next(s for s in growth_sentences(made(*slopes)).splitlines() if "claim" in s and "in time" in s)
    assert word in line and line.count("**") == 2


def test_the_sentences_say_where_curves_cross():
    said = growth_sentences(made())  # 10 * K/50 against (K/50)^2: equal at 500, which is not measured
    assert (
        "faster than full self-attention at no measured K: 40 ms against 16 ms at K = 200, 80 ms against 64 ms at "
        "K = 400."
    ) in said
    assert "transport takes longer than the deformable attention of both scales at no measured K" in said
    assert "does not dominate" in said and "without ever keeping its K x K map" in said
    said = growth_sentences(made(first=(3.0, 1.0, 1.0)))  # 3x against x^2 from 4 on; 6x against x^2.5 from 4 on
    assert "faster than full self-attention from K = 200 on" in said
    assert "both scales from K = 200 on" in said and "transport is what training costs" in said
    said = growth_sentences(made(first=(0.1, 1.0, 1.0)))
    assert "faster than full self-attention at every measured K" in said
    assert "fixed costs still show" in growth_sentences(made(deformable=0.3, full=0.6)) and "fixed" not in said
    zigzag = made()
    zigzag.loc[(zigzag.part == "full") & zigzag.k.isin([50, 200]), "median_ms"] = 1e4
    assert "faster than full self-attention at K = 50, 200:" in growth_sentences(zigzag)


@pytest.mark.slow
def test_the_growth_figure_holds_the_numbers_and_names_slopes_and_device(tmp_path):
    table = made(1.02, 1.97)
    figure = figures.growth_curves(table, tmp_path / "g")
    data = drawn(figure, tmp_path / "g")
    np.testing.assert_allclose(data.median_ms, table.median_ms, rtol=1e-5)
    legend = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert "deformable attention: K^1.02" in legend and "full self-attention: K^1.97" in legend
    assert "a processor" in figure.get_supxlabel()
