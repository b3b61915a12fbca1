"""The walkthrough on one's own method and slides: its file keeps the contract, its figures draw what they say, its
answers are right."""

import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from dmsmil import models
from dmsmil.cohorts.folds import bag_folds
from dmsmil.features.bags import toy_bags
from dmsmil.jobs.files import ROOT
from dmsmil.models import METHODS, Method, create
from dmsmil.models.base import masked_mean
from dmsmil.models.contract import bags_of, check_contract
from dmsmil.training.config import configure_all
from dmsmil.training.runs import get_runs
from drawings import own

LESSONS = ROOT / "notebooks/walkthroughs"


@pytest.fixture
def joint_gate(monkeypatch):
    """The file beside the notebook as a method of the package, for one test."""
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(LESSONS)])
    monkeypatch.setitem(
        METHODS, "joint_gate", Method("joint_gate", "DMSMIL, joint gate", "joint_gate:JointGate", "many", "you")
    )
    yield METHODS["joint_gate"].load()
    sys.modules.pop("dmsmil.models.joint_gate")


def test_the_file_keeps_the_contract(joint_gate):
    assert check_contract("joint_gate").kept.all()


def test_a_gate_that_knows_nothing_is_the_mean(joint_gate):
    """With V = 0 and b = 0 all scales weigh the same: DMSMIL with fusion="mean" and the same weights elsewhere."""
    torch.manual_seed(0)
    mine, mean = create("joint_gate", 12), create("dmsmil", 12, fusion="mean")
    mean.load_state_dict({k: v for k, v in mine.state_dict().items() if not k.startswith("gate_all")})
    nn.init.zeros_(mine.gate_all.weight)
    nn.init.zeros_(mine.gate_all.bias)
    bags, mask, coords = bags_of((3, 9, 20), 2)
    torch.testing.assert_close(mine(bags, mask, coords).logits, mean(bags, mask, coords).logits)
    mine.gate_all.bias.data += torch.tensor([3.0, 0.0])
    torch.testing.assert_close(
        mine(bags, mask, coords).extras["fusion"], torch.tensor([3.0, 0.0]).softmax(0).expand(3, 2)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "pooled, kept",
    [
        (lambda found, mask: found["projection"].mean(2), [False, True, True, True]),
        (lambda found, mask: masked_mean(found["projection"], mask), [True, True, True, True]),
    ],
)
def test_the_answer_of_exercise_1(joint_gate, monkeypatch, pooled, kept):
    """The mistake breaks the first promise and no other; the line of the answer repairs it."""
    monkeypatch.setattr(
        joint_gate, "_fusion", lambda self, found, mask: self.gate_all(pooled(found, mask).flatten(1)).softmax(-1)
    )
    assert check_contract("joint_gate").kept.tolist() == kept


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Toy bags, folds, and the runs of DMSMIL and mean pooling with two seeds, hardly trained."""
    bags = toy_bags(20, 8, signal=2.0)
    folds = bag_folds(bags, 2)
    configs = configure_all(bags, folds, ["dmsmil", {"meanpool": {"scale": 0}}], epochs=2, lr=3e-3, batch_size=5)
    return bags, folds, get_runs(tmp_path_factory.mktemp("runs"), bags, folds, configs, [0, 1], 1, report=str)


@pytest.mark.slow
def test_the_numbers_under_the_dots_are_mean_aucs(trained):
    _, _, runs = trained
    figure = own.seeds_apart(runs)
    assert [ax.get_title("left").split(":")[0] for ax in figure.axes] == ["seed 0", "seed 1"]
    for seed, ax in enumerate(figure.axes):
        for run, text in zip(runs, ax.texts):
            table = run.predictions[run.predictions.seed == seed]
            means = [roc_auc_score(fold.label == "b", fold.prob_b) for _, fold in table.groupby("fold")]
            assert text.get_text() == f"{np.mean(means):.2f}"


@pytest.mark.slow
def test_fusion_weights_are_those_of_the_slides_tested(trained):
    bags, folds, runs = trained
    signal = np.where(bags.labels == 1, "here", "nowhere")
    weights = own.fusion_weights(runs[:1], bags, folds, signal)
    assert sorted(weights.slide_id) == sorted(2 * bags.slide_ids)  # each tested once a seed
    assert (weights.signal == weights.slide_id.map(dict(zip(bags.slide_ids, signal)))).all()
    row = weights.iloc[7]
    model = own.load_model(runs[0].folders[row.fold, row.seed], 16, 2)
    i = bags.slide_ids.index(row.slide_id)
    x = model.branches(bags.x[i : i + 1], bags.mask[i : i + 1], model.geometry(bags.mask[i : i + 1]))["pooled"]
    by_hand = np.exp((x.tanh() @ model.omega).detach().numpy()[0])  # eq. (11)
    assert row.weight == pytest.approx((by_hand / by_hand.sum())[0], abs=1e-5)
    figure = own.where_it_looks(weights)
    shown = {text.get_text() for text in figure.axes[0].texts}
    assert shown == {f"{value:.2f}" for value in weights.groupby("signal").weight.median()}


def test_the_method_takes_twenty_cells_at_most():
    cells = nbformat.read(LESSONS / "8_your_own.ipynb", 4).cells
    slides = next(i for i, cell in enumerate(cells) if cell.source.startswith("## Your own slides"))
    assert slides <= 20 and len(cells) < 30


def test_the_answer_of_exercise_2():
    """Slides as patients: the two slides of a patient end up on both sides of a fold."""
    bags = toy_bags(40, 4)
    owner = [f"p{i // 2 // 2 * 2 + i % 2}" for i in range(40)]  # two slides of one class each
    honest, fooled = (bag_folds(type(bags)(**{**vars(bags), "patient_ids": ids}), 5) for ids in (owner, bags.slide_ids))
    truth = dict(zip(bags.slide_ids, owner))

    def torn(folds: pd.DataFrame) -> int:
        return sum(
            len(set(part[part == "test"].index.map(truth)) & set(part[part != "test"].index.map(truth)))
            for part in (folds.set_index("slide_id")[f"fold_{k}"] for k in range(5))
        )

    assert torn(honest) == 0 < torn(fooled)
