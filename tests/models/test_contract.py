"""What `dmsmil methods --check` asks is asked of every method, a new one too."""

from dataclasses import fields

import pytest

from dmsmil.jobs.files import InputError
from dmsmil.models import METHODS, create, method
from dmsmil.models.contract import check_contract, model_of
from dmsmil.training.config import RunConfig
from tests.models.test_hagmil import SMALL

SMALLER = {"hagmil": SMALL, "hagmil_hier": SMALL}  # at their own sizes they take a minute


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_the_contract(name):
    table = check_contract(name, **SMALLER.get(name, {}))
    assert len(table) == 4 and table.kept.all(), table["why not"].to_dict()


@pytest.mark.parametrize("name", METHODS)
def test_no_option_has_the_name_of_a_setting_of_training(name):
    """`methods: [{dmsmil_select: {select: false}}]` was read as the setting `select`, and refused."""
    settings = {"scale", *(field.name for field in fields(RunConfig))}
    assert not settings & set(method(name).options())


@pytest.mark.parametrize("options", [dict(distill="MaxS"), dict(distill="MaxMinS")])
def test_a_method_that_scores_few_tiles_by_its_form_says_so(options):
    assert model_of("dtfd", **options).picks and not model_of("dtfd").picks


@pytest.mark.parametrize(
    "name, options, told",
    [
        ("topk", {"k": 0}, "k is 0, an option of Top-k pooling: give a whole number, 1 or more"),
        ("topk", {"k": 2.5}, "k is 2.5, .* a whole number"),
        ("dmsmil", {"deformable": "false"}, "deformable is 'false', .* true or false, without quotes"),
        ("dmsmil", {"projection_dim": 0}, "projection_dim is 0, .* 1 or more"),
        ("dmsmil", {"ot": False}, "ot is False, .* a word"),
        ("dmsmil_select", {"mu": "1e-1"}, "mu is '1e-1', .* a number, such as 0.1 .YAML reads"),
        ("dmsmil_select", {"components": 2.5}, "components is 2.5, .* a whole number"),
        ("clam_sb", {"k_sample": -1}, "k_sample is -1, .* 1 or more"),
        ("hagmil", {"bag_weight": -0.5}, "bag_weight is -0.5, .* not below 0"),
        ("hagmil", {"hidden_dims": []}, "hidden_dims is .*, a list, such as|hidden_dims is .* give a list"),
        ("hagmil", {"size": [512]}, "cannot be made with|size"),
        ("hifuse", {"num_heads": [0, 4]}, "num_heads is .* 1 or more"),
        ("lamil", {"num_heads": 0}, "num_heads is 0"),
        ("multiattn", {"dropout": float("nan")}, "dropout is nan, .* finite"),
    ],
)
def test_an_option_of_another_kind_is_one_line(name, options, told):
    """Some were trained with in silence, some failed run after run."""
    scales = (10,) if method(name).takes == "one" else (10, 20)
    with pytest.raises(InputError, match=told):
        create(name, 64, 2, scales, **options)
