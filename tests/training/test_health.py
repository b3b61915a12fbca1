"""Attention under watch: over how many tiles, who pulls, what marks a run, and that watching changes nothing."""

import numpy as np
import pandas as pd
import pytest
import torch

from dmsmil.features.bags import toy_bags
from dmsmil.jobs.files import InputError, read_json
from dmsmil.training import fit as fit_room
from dmsmil.training import health
from dmsmil.training.fit import fit
from dmsmil.training.record import read_record, write_record
from dmsmil.training.runs import get_runs
from tests.training.test_fit import folds_of, make_bags, quick


def test_effective_share_counts_tiles():
    mask = torch.arange(12) < torch.tensor([[10], [4]])
    even = mask / mask.sum(-1, keepdim=True)
    torch.testing.assert_close(health.effective_share(even, mask), torch.ones(2))
    one = torch.nn.functional.one_hot(torch.tensor([3, 0]), 12).float()
    torch.testing.assert_close(health.effective_share(one, mask), torch.tensor([1 / 10, 1 / 4]))
    half = (torch.arange(12) < 5).expand(2, 12) / 5
    torch.testing.assert_close(health.effective_share(half, mask)[0], torch.tensor(0.5))
    torch.testing.assert_close(health.effective_share(7 * even, mask), torch.ones(2))  # scores need not sum to 1
    assert health.effective_share(0 * even, mask).isnan().all()


def test_when_it_is_looked_at():
    assert [e for e in range(1, 121) if health.watched(e, 120)] == [1, 2, 5, 10, 20, 50, 100, 120]
    assert [e for e in range(1, 6) if health.watched(e, 5)] == [1, 2, 5]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    bags = make_bags(16)
    folds = folds_of(bags)
    configs = [
        quick(bags, folds, epochs=5),
        quick(bags, folds, method="maxpool", epochs=5),
        quick(bags, folds, options={"ot": "none"}, epochs=5),
    ]
    return bags, get_runs(tmp_path_factory.mktemp("health"), bags, folds, configs, workers=1, report=lambda line: None)


@pytest.mark.slow
def test_history_and_record_tell_where_attention_went(runs):
    bags, (dmsmil, maxpool, none) = runs
    seen = {f"{what}_{s}x" for what in ("effective", "beyond_reach", "at_border") for s in bags.scales}
    pulls = {"gradient_ot", "gradient_ce"}
    assert seen | pulls <= set(dmsmil.history) and seen <= set(dmsmil.records.attention[0])
    assert seen | pulls | {"L_ot", "L_ce", "spread"} <= set(dmsmil.records.start[0])
    first = dmsmil.history[dmsmil.history.fold == 0].set_index("epoch")
    looked = first[sorted(seen | pulls)].notna()
    assert looked.loc[[1, 2, 5]].all(axis=None) and not looked.loc[[3, 4]].any(axis=None)
    assert first[sorted(seen)].stack().dropna().between(0, 1).all()
    assert (none.history.gradient_ot.dropna() == 0).all() and (first.gradient_ot.dropna() > 0).all()
    assert "effective_10x" in maxpool.history and "beyond_reach_10x" not in maxpool.history


@pytest.mark.slow
def test_the_marks_follow_from_the_numbers(runs):
    _, (dmsmil, maxpool, _) = runs
    for r in (dmsmil, maxpool):
        late = r.history[r.history.epoch >= 4]  # of five epochs the last two
        end = late.groupby(["fold", "seed"]).L_ce.median()
        expected = end.to_numpy() > health.STUCK * r.records.prior_entropy.to_numpy()
        assert r.records.learned_nothing.tolist() == expected.tolist()
        assert r.learned_nothing == expected.sum()
    assert maxpool.gathered == 0, "max pooling picks by its form"


def test_gathered_attention_is_marked():
    class Any(torch.nn.Module):
        picks = False

    assert health.gathered(Any(), {"effective_10x": 0.5, "effective_20x": 0.09})
    assert not health.gathered(Any(), {"effective_10x": 0.5, "beyond_reach_10x": 0.0})
    assert not health.gathered(Any(), {"effective_10x": float("nan")})
    chosen = Any()
    chosen.picks = True
    assert not health.gathered(chosen, {"effective_10x": 0.01})


@pytest.mark.slow
def test_transport_that_outweighs_is_said_though_nothing_collapsed(tmp_path):
    """The printed loss where few tiles carry the class: L_ot decides and nothing is learned, with a spread above what
    counts as a collapse. Free of scale it stands in nobody's way."""
    bags = toy_bags(slides=40, k=48, channels=48, share=0.05, signal=2.5)
    folds, lines = folds_of(bags), []
    mean = {"deformable": False}
    configs = [quick(bags, folds, options={**mean, "ot_on": what}, epochs=12) for what in ("projection", "relative")]
    printed, free = get_runs(tmp_path, bags, folds, configs, workers=1, report=lines.append)
    start = pd.DataFrame(printed.records.start.tolist())
    assert (start.gradient_ot > 5 * start.gradient_ce).all()
    assert (printed.learned_nothing, printed.collapsed) == (2, 0)
    assert sum("LEARNED NOTHING" in line for line in lines) == 2
    start = pd.DataFrame(free.records.start.tolist())
    assert (start.gradient_ot < start.gradient_ce).all() and free.learned_nothing == 0
    assert (free.history.groupby("fold").L_ce.last() < 0.3).all()


@pytest.mark.slow
def test_watching_changes_no_result(tmp_path, monkeypatch, runs):
    bags, (dmsmil, *_) = runs
    monkeypatch.setattr(health, "watched", lambda epoch, epochs: False)
    again = get_runs(tmp_path, bags, folds_of(bags), dmsmil.config, workers=1, report=lambda line: None)[0]
    pd.testing.assert_frame_equal(again.predictions, dmsmil.predictions)
    assert np.array_equal(again.history.loss, dmsmil.history.loss)


@pytest.mark.parametrize("values, used", [([1.0, 2.0, 3.0], 1), ([float("nan"), 2.0, 3.0], 2)])
def test_the_marks_are_of_the_epoch_whose_weights_are_tested(tmp_path, monkeypatch, values, used):
    """Of `select: val_loss` the best epoch may be an early one, of which the last epoch's L_ce says nothing. A first
    value that is not finite was never bettered."""
    bags = toy_bags(slides=24, k=8, channels=16, signal=0.0)
    folds, losses = folds_of(bags), iter([*values, *range(10, 60)])
    monkeypatch.setattr(fit_room, "_validate", lambda *_: {"val_loss": float(next(losses)), "val_auc": 0.5})
    config = quick(bags, folds, "abmil", scale=10, epochs=25, lr=3e-3, select="val_loss")
    record = read_json(fit(bags, folds, config, 0, 0, tmp_path) / "config.json")
    history = pd.read_csv(tmp_path / "history.csv").set_index("epoch").L_ce
    limit = health.STUCK * record["prior_entropy"]
    assert record["epoch_used"] == used and history[1] > limit > history[2] > history[25]
    assert record["learned_nothing"] == (used == 1)


def test_one_epoch_alone_neither_makes_a_mark_nor_takes_it_away():
    """A run whose L_ce leaps up in its last epoch has learned; one whose L_ce falls in that epoch alone has not."""
    low, high = [0.01] * 119, [0.69] * 119
    record = {"prior_entropy": np.log(2), "spread_start": 10.0, "epoch_used": 120}
    spike = pd.DataFrame({"L_ce": [*low, 0.82], "spread": 1.0})

    def seen(history):
        return tuple(health.judged(record, history)[mark] for mark in ("collapsed", "learned_nothing"))

    assert seen(spike) == (False, False)
    stuck = pd.DataFrame({"L_ce": [*high, 0.3], "spread": 1.0})
    assert seen(stuck) == (False, True)
    assert seen(stuck.assign(spread=0.05)) == (True, True) and seen(spike.assign(spread=0.05)) == (False, False)
    early = pd.DataFrame({"L_ce": [0.7, 0.69, 0.65, 0.3, 0.1]})
    assert not any(health.judged(record | {"epoch_used": used}, early)["learned_nothing"] for used in (4, 5))
    assert health.judged(record | {"epoch_used": 1}, early)["learned_nothing"], "the beginning of a run is no end"
    forgot = pd.DataFrame({"L_ce": [*low[:100], *high[:20]], "spread": 1.0})
    assert health.judged(record, forgot)["learned_nothing"], "what is tested is what it ended as"
    assert not health.judged(record | {"epoch_used": 100}, forgot)["learned_nothing"]
    assert not health.judged(record, pd.DataFrame({"loss": low}))["learned_nothing"], "a method without L_ce"
    assert health.judged({"epoch_used": 120}, stuck) == {}
    assert (
        health.at_the_end(spike, 120).L_ce == 0.01 and health.at_the_end(spike.assign(L_ce=range(120)), 40).L_ce == 37
    )


def test_a_record_of_before_is_judged_anew_when_it_is_read(tmp_path, monkeypatch):
    for name in ("predictions.csv", "model.safetensors"):
        (tmp_path / name).write_text("")
    pd.DataFrame({"L_ce": [0.01] * 119 + [0.82]}).to_csv(tmp_path / "history.csv", index=False)
    record = {"prior_entropy": np.log(2), "spread_start": None, "epoch_used": 120, "learned_nothing": True}
    with monkeypatch.context() as before:
        before.setattr("dmsmil.training.record.judged", lambda *args: {})
        write_record(record, tmp_path)
    assert read_json(tmp_path / "config.json")["learned_nothing"] and not read_record(tmp_path)["learned_nothing"]
    whole = (tmp_path / "history.csv").read_text()
    (tmp_path / "history.csv").write_text("")
    with pytest.raises(InputError, match="history.csv is not what was written"):
        read_record(tmp_path)
    (tmp_path / "history.csv").write_text(whole)
    write_record(record, tmp_path)
    assert not read_json(tmp_path / "config.json")["learned_nothing"]
    monkeypatch.setattr("dmsmil.training.record.judged", None)  # and is not judged again
    assert not read_record(tmp_path)["learned_nothing"]
