"""HiFuse on a grid of tiles: count, contract, windows, empty cells, groups honoured."""

import pytest
import torch

from dmsmil.jobs.files import InputError
from dmsmil.models import count_parameters, create
from dmsmil.models.contract import bags_of, check_batch_and_padding, check_gradients, check_learns, close, model_of
from dmsmil.models.hifuse import GlobalBlock

SMALL = dict(embed_dim=16, window_size=3)


@pytest.mark.parametrize("c,count", [(96, 3_692_182), (64, 1_736_598), (16, 163_062)])
def test_parameters(c, count):
    """METHODS.md's counts, less what the repository creates and never uses, layer by layer."""

    def conv(into, out):  # 1 x 1 with bias, and its batch norm
        return into * out + out + 2 * out

    unused = (
        conv(c // 2, c)
        + 2 * 3 * c
        + conv(3 * c, c)  # fusion 1: Updim, norm1, W3
        + 2 * 2 * 2 * c
        + conv(2 * 2 * c, 2 * c)  # fusion 2: norm2, W
        + 2 * 2 * c
        + 2 * 2 * 2 * c
    )  # norm2 of the four window blocks
    assert count_parameters(create("hifuse", 2048, 2, (10, 20), embed_dim=c)) == count - unused


@pytest.mark.slow
def test_contract():
    model = model_of("hifuse", 2, **SMALL)
    check_batch_and_padding(model, scales=2)
    check_gradients(model, scales=2)
    check_learns(model, scales=2)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_cell_sees_its_window(shift):
    """Of a 6 x 9 map with windows of 3 x 3: without the shift cell (4, 4) sees rows 3-5 and columns 3-5; shifted by
    one, rows 4-5 (the row below is the first one, which the shift brought there) and columns 4-6."""
    torch.manual_seed(0)
    block, x = GlobalBlock(8, 2, 3, shift).double(), torch.randn(1, 6, 9, 8, dtype=torch.float64, requires_grad=True)
    grad = torch.autograd.grad(block(x, None)[0, 4, 4].square().sum(), x)[0][0].norm(dim=-1)
    seen = torch.zeros(6, 9, dtype=torch.bool)
    seen[4 if shift else 3 : 6, slice(4, 7) if shift else slice(3, 6)] = True
    assert torch.equal(grad > 1e-20, seen)


def test_window_attention_is_plain_attention_with_a_term_for_each_offset():
    torch.manual_seed(0)
    block, x = GlobalBlock(8, 2, 3, 0), torch.randn(1, 3, 3, 8)
    block.position.data.normal_()
    q, k, v = block.qkv(block.norm(x)).view(9, 3, 2, 4).permute(1, 2, 0, 3)
    logits = q @ k.mT / 2
    for i in range(9):
        for j in range(9):
            dy, dx = i // 3 - j // 3, i % 3 - j % 3
            logits[:, i, j] += block.position[(dy + 2) * 5 + dx + 2]
    update = block.out((logits.softmax(-1) @ v).transpose(0, 1).flatten(1))
    close(block(x, None).view(9, 8), x.view(9, 8) + torch.nn.functional.gelu(block.point(update)))


def test_depthwise_convolution_is_depthwise():
    assert model_of("hifuse", 2, **SMALL).fusion[0].mix.weight.shape == (48, 1, 3, 3)


def test_an_empty_cell_acts_as_the_zeros_outside_the_map():
    """Seven tiles on a 2 x 4 grid: the local branch gives what it gives on any larger map of zeros around them."""
    model, (bags, _, _) = model_of("hifuse", 2, **SMALL), bags_of((7,), 2)
    seen = []
    model.local[0][1].register_forward_hook(lambda _, inputs, output: seen.append(output))
    model(bags)
    model(bags, geometry={"grid": torch.tensor([[6, 4]])})  # four more rows, all empty
    small, large = seen
    close(large[:, :2], small)
    assert not large[:, 2:].any() and not small[0, 1, 3].any()


def test_scores_sum_to_one_in_each_scale():
    bags, mask, _ = bags_of((1, 7, 20), 2)
    close(model_of("hifuse", 2, **SMALL)(bags, mask).scores.sum(2), torch.ones(3, 2))


def test_bad_options():
    with pytest.raises(InputError, match="two linked scales"):
        create("hifuse", 8, 2, (10,))
    with pytest.raises(InputError, match="two stages"):
        create("hifuse", 8, 2, num_heads=(5, 4))
