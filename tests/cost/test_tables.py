"""Costs of methods: the step that is timed is training's, counts by hand, what is measured, and what is said of it."""

import numpy as np
import pandas as pd
import pytest
import torch

from dmsmil import figures
from dmsmil.cost import meter
from dmsmil.cost import tables as cost
from dmsmil.cost.tables import (
    Trainee,
    cost_configs,
    cost_sentences,
    method_costs,
    pretty_costs,
    random_bags,
    study_costs,
)
from dmsmil.jobs.files import InputError
from dmsmil.models import METHODS, count_parameters, create
from dmsmil.training.fit import _epoch, _geometry
from dmsmil.training.results import save_table
from tests.conftest import assert_one_line
from tests.figures.test_figures import drawn

CPU = torch.device("cpu")
COLUMNS = [
    "name",
    "method",
    "scales",
    "parameters",
    "flops",
    "epoch_median_s",
    "epoch_min_s",
    "epoch_max_s",
    "inference_median_ms",
    "inference_min_ms",
    "inference_max_ms",
    "memory_mb",
    "device",
]
PRINTED = {
    "dmsmil": {"parameters": "not legible but for 6···96", "training": "4.05 s", "inference": "0.0072 s"},
    "multiattn": {"parameters": "854,789", "training": "9.68 s", "inference": "0.0096 s"},
    "dsmil": {"parameters": "1,894,072", "training": "13.72 s", "inference": "0.0141 s"},
}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(meter, "TURN_SECONDS", 0.001)
    monkeypatch.setattr(cost, "printed_cost", lambda: PRINTED)


@pytest.mark.parametrize("method", ["dmsmil", "lamil", "clam_mb"])
def test_the_step_that_is_timed_is_a_step_of_training(method):
    bags = random_bags(12, 32)
    config = cost_configs(bags, [method])[0]
    mine, theirs = Trainee(config, bags, CPU), Trainee(config, bags, CPU)
    torch.manual_seed(1)
    mine.step()
    torch.manual_seed(1)
    data = bags.view(config.scales)
    _epoch(theirs.model, theirs.optimiser, data, _geometry(theirs.model, data), np.array([0]), 1, None)
    for ours, usual in zip(mine.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(ours, usual, rtol=0, atol=0)


def test_inference_gives_what_the_model_gives_and_trains_nothing():
    bags = random_bags(12, 32)
    trainee = Trainee(cost_configs(bags, ["dmsmil"])[0], bags, CPU)
    before = [p.clone() for p in trainee.model.parameters()]
    trainee.infer()
    assert not trainee.model.training and all(map(torch.equal, before, trainee.model.parameters()))


def test_each_method_is_measured_at_one_scale_and_at_all_together():
    configs = cost_configs(
        random_bags(4, 16),
        ["abmil", "dmsmil", "meanpool", {"clam_sb": {"scale": 20, "epochs": 8}}, {"dmsmil": {"epochs": 8, "lr": 0.1}}],
    )
    assert [(c.method, c.scales) for c in configs] == [
        ("abmil", (10,)),
        ("dmsmil", (10, 20)),
        ("meanpool", (10,)),
        ("meanpool", (10, 20)),
        ("clam_sb", (20,)),
    ]


@pytest.mark.slow
def test_every_method_can_be_measured():
    few = {"hagmil": {"hidden_dims": [16, 24, 8, 16], "size": [8, 4]}}
    methods = [{name: few["hagmil"]} if name.startswith("hagmil") else name for name in METHODS]
    table = method_costs(methods, 9, 32, 10, 1, device="cpu")
    assert set(table.method) == set(METHODS) and (table[table.columns[3:12]].to_numpy(float) >= 0).all()
    for row in table[~table.method.str.startswith("hagmil")].itertuples():
        scales = tuple(int(s[:-1]) for s in row.scales.split("+"))
        assert row.parameters == count_parameters(create(row.method, 32, 2, scales))


def test_counts_are_those_by_hand():
    k, dim = 7, 24
    table = method_costs([{"abmil": {"M": 10, "L": 6}}, "meanpool"], k, dim, 100, 3, device="cpu").set_index("name")
    assert list(table.reset_index())[:13] == COLUMNS
    abmil = table.loc["ABMIL 10x, L=6, M=10"]
    assert abmil.flops == 2 * (k * (dim * 10 + 2 * 10 * 6 + 6) + k * 10 + 10 * 2)
    assert abmil.parameters == (dim + 1) * 10 + 2 * 11 * 6 + 7 + 11 * 2
    for row in table.itertuples():
        assert 0 < row.epoch_min_s <= row.epoch_median_s <= row.epoch_max_s
        assert 0 < row.inference_min_ms <= row.inference_median_ms <= row.inference_max_ms
        assert row.memory_mb * 1e6 > 4 * (4 * row.parameters + k * dim), "weights, gradients, Adam's two, features"


def test_memory_is_counted_for_each_method_alone_and_flops_by_the_slide():
    alone = method_costs(["dsmil"], 9, 32, 1, 1, device="cpu").iloc[0]
    after = method_costs(["multiattn", "dsmil"], 9, 32, 1, 1, device="cpu", batch=1).iloc[1]
    many = method_costs(["dsmil"], 9, 32, 1, 1, device="cpu", batch=4).iloc[0]
    assert after.memory_mb - after.arrays_mb == pytest.approx(alone.memory_mb - alone.arrays_mb)
    assert many.flops == alone.flops and many.memory_mb > alone.memory_mb


def test_an_epoch_is_as_many_steps_as_slides(monkeypatch):
    monkeypatch.setattr(cost, "turn_seconds", lambda call, device: 0.25)
    row = method_costs(["meanpool"], 3, 8, 437, 2, device="cpu", batch=5).iloc[0]
    assert row.epoch_median_s == pytest.approx(0.25 / 5 * 437) and row.inference_max_ms == pytest.approx(50)


def test_a_study_measures_once(tmp_path, monkeypatch):
    ask = dict(methods=["dmsmil", {"abmil": {"M": 8}}], k=5, dim=16, slides=10, rounds=1, device="cpu")
    first = study_costs(tmp_path, **ask)
    save_table(first, tmp_path, "08_cost")
    written = (tmp_path / "tables/08_cost.csv").read_bytes()
    measured = []
    monkeypatch.setattr(cost, "method_costs", lambda *a, **k: measured.append(a) or first)
    save_table(study_costs(tmp_path, **ask), tmp_path, "08_cost")
    assert not measured and (tmp_path / "tables/08_cost.csv").read_bytes() == written
    for change in (
        dict(methods=["dmsmil"]),
        dict(methods=["dmsmil", {"abmil": {"M": 9}}]),
        dict(k=6),
        dict(dim=17),
        dict(slides=11),
        dict(rounds=2),
        dict(seed=1),
        dict(scales=(5, 20)),
    ):
        study_costs(tmp_path, **{**ask, **change})
    monkeypatch.setattr("dmsmil.training.config.code_version", lambda module: "other code")
    study_costs(tmp_path, **ask)
    assert len(measured) == 9


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(k=0), "cost_k is 0"),
        (dict(dim=-1), "cost_dim is -1"),
        (dict(slides=0), "cost_slides is 0"),
        (dict(rounds=0), "cost_rounds is 0"),
        (dict(methods=["dsml"]), "did you mean 'dsmil'"),
        (dict(device="tpu9"), "unknown device"),
        (dict(methods=[{"dsmil": {"dd": 1}}]), "unknown option 'dd'"),
    ],
)
def test_bad_input_is_one_line(tmp_path, change, message):
    ask = dict(methods=["dsmil"], k=5, dim=16, slides=10, rounds=1, device="cpu")
    with pytest.raises(InputError, match=message) as caught:
        study_costs(tmp_path, **{**ask, **change})
    assert_one_line(caught, message.split()[0])
    assert not list(tmp_path.rglob("*.json"))


# ------------------------------------------------------------------------------------------------ what is said


def costs(**by_method):
    """A cost table: method -> (parameters, epoch s, inference ms)."""
    rows = [
        {
            "name": METHODS[m].title,
            "method": m,
            "scales": "10x" if METHODS[m].takes == "one" else "10x+20x",
            "parameters": n,
            "flops": 1000 * n,
            "epoch_median_s": s,
            "epoch_min_s": 0.9 * s,
            "epoch_max_s": 1.1 * s,
            "inference_median_ms": ms,
            "inference_min_ms": 0.9 * ms,
            "inference_max_ms": 1.1 * ms,
            "memory_mb": n / 1e5,
            "device": "a processor",
            "k": 200,
            "dim": 2048,
            "slides": 437,
            "arrays_mb": 0.1,
        }
        for m, (n, s, ms) in by_method.items()
    ]
    return pd.DataFrame(rows)


def test_smallest_and_fastest_is_said_only_when_it_is():
    said = cost_sentences(
        costs(
            dmsmil=(636_386, 4, 7),
            dsmil=(700_000, 9, 14),
            multiattn=(854_789, 8, 9),
            meanpool=(1, 0.1, 0.1),
            abmil=(2, 0.1, 0.1),
            dmsmil_select=(3, 0.1, 0.1),
        )
    )
    lines = said.splitlines()
    assert [line.split("**")[1] for line in lines[:3]] == [
        "has the fewest parameters",
        "has the shortest epoch",
        "has the shortest inference",
    ]
    assert "of the 3 multi-scale methods: 636,386 against 700,000 of DSMIL" in lines[0]
    assert "not always in this order" not in said
    slow = cost_sentences(costs(dmsmil=(636_386, 10, 7), dsmil=(400_000, 3, 7.5), multiattn=(854_789, 8, 9)))
    lines = slow.splitlines()
    assert [line.split("**")[1] for line in lines[:3]] == [
        "does not have the fewest parameters",
        "does not have the shortest epoch",
        "has the shortest inference",
    ]
    assert "3 s of DSMIL; 2 of 2 others are below it. In" in lines[1]
    assert lines[2].count("not always in this order") == 1 and "not always" not in lines[0] + lines[1]


def test_counts_are_compared_with_what_is_legible_and_only_at_the_papers_width():
    table = costs(dmsmil=(636_386, 4, 7), dsmil=(700_000, 9, 14), multiattn=(854_789, 8, 9), hifuse=(9, 9, 9))
    said = cost_sentences(table)
    assert "MultiAttnMIL has 854,789 parameters here; the paper's count is 854,789: the same." in said
    assert "DSMIL has 700,000 parameters here; the paper's count is 1,894,072: not the same." in said
    assert "DMSMIL has 636,386 parameters here; the paper's count is not legible but for 6···96: not the same." in said
    assert "may be the same" in cost_sentences(costs(dmsmil=(611_196, 4, 7), dsmil=(7, 9, 14)))
    assert "hifuse" not in said.lower().split("the paper's count")[-1]
    other = cost_sentences(table.assign(dim=256))
    assert "at 256 they cannot be compared" in other and "854,789:" not in other


@pytest.mark.parametrize("methods", [["dmsmil", "abmil", "meanpool"], ["dsmil", "multiattn"]])
def test_without_a_comparison_none_is_claimed(methods):
    assert cost_sentences(costs(**{m: (1, 1, 1) for m in methods})).count("needed to compare") == 1


def test_table_3_has_the_papers_values_beside_and_no_digit_that_is_lost():
    twice = pd.concat([costs(dmsmil=(636_386, 4, 7), multiattn=(854_789, 8, 9), abmil=(5, 1, 1))] * 2)
    shown = pretty_costs(twice)
    assert list(shown["parameters in the paper"]) == ["not legible but for 6···96", "854,789", "—", "—", "—", "—"]
    assert list(shown["training in the paper"])[:3] == ["4.05 s", "9.68 s", "—"]
    assert shown["s / epoch"].iloc[0] == "4 [3.6, 4.4]" and shown["parameters"].iloc[0] == "636,386"


@pytest.mark.slow
def test_the_cost_figure_holds_the_numbers_sorted(tmp_path):
    table = costs(dmsmil=(636_386, 4, 7), dsmil=(700_000, 9, 14), meanpool=(1, 0.1, 0.1))
    figure = figures.cost_panels(table, tmp_path / "c")
    data = drawn(figure, tmp_path / "c")
    assert list(data.method) == ["meanpool", "dmsmil", "dsmil"] and data.parameters.sum() == table.parameters.sum()
    texts = [t.get_text() for ax in figure.axes for t in ax.texts] + [figure.get_supxlabel()]
    assert "636,386" in texts and "a processor" in texts[-1] and "K = 200" in texts[-1]
