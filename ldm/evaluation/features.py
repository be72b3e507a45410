"""Feature networks for images and texts: CLIP and a self-supervised ViT (DINO).

Each is loaded from a local folder in transformers' layout or from the hub, with its own preprocessing; its `facts`
identify it in results.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from ldm.data.images import to_tensor
from ldm.errors import UserError
from ldm.evaluation.preprocessing import Preprocessing
from ldm.files import find
from ldm.formats.described import read_json

Device = torch.device | str
Item = TypeVar("Item")

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


class FeatureNetwork:
    """The common parts of CLIP and DINO: finding files, and encoding images in batches."""

    def __init__(
        self, where: str, revision: str | None, device: Device, batch_size: int, files: Sequence[str]
    ):
        self.folder, commit, weights = locate(where, revision, files)
        self.preprocessing = Preprocessing.read(self.folder / "preprocessor_config.json")
        self.device, self.batch_size = torch.device(device), batch_size
        self.facts: dict[str, object] = {
            "network": where,
            "revision": commit,
            "weights": hashlib.blake2b(weights.read_bytes(), digest_size=8).hexdigest(),
            "preprocessing": self.preprocessing.facts(),
        }

    @torch.no_grad()
    def images(self, images: Iterable[Image.Image]) -> Tensor:
        """Features [N, D] of RGB images, fp32 on the CPU. Images are read one batch at a time."""
        parts = []
        for batch in _batches(images, self.batch_size):
            pixels = torch.stack([self.preprocessing(image) for image in batch]).to(self.device)
            with torch.autocast(self.device.type, enabled=False):
                parts.append(self._encode(pixels).float().cpu())
        return torch.cat(parts)

    def _encode(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError


class Dino(FeatureNetwork):
    """A self-supervised ViT: DINO (Caron et al., arXiv 2104.14294) or DINOv2 (Oquab et al., arXiv 2304.07193).

    Its config.json says which. The feature is the last layer's [CLS] token, after its norm.
    """

    def __init__(self, where: str, revision: str | None = None, device: Device = "cpu", batch_size: int = 32):
        from transformers import Dinov2Model, ViTModel

        super().__init__(where, revision, device, batch_size, ("config.json", "preprocessor_config.json"))
        if read_json(self.folder / "config.json").get("model_type") == "dinov2":
            self.model = _load(Dinov2Model, self.folder, where).to(self.device)
        else:
            self.model = _load(ViTModel, self.folder, where, add_pooling_layer=False).to(self.device)

    def _encode(self, pixels: Tensor) -> Tensor:
        states: Tensor = self.model(pixels).last_hidden_state
        return states[:, 0]


class Clip(FeatureNetwork):
    """CLIP (Radford et al., arXiv 2103.00020): images and texts in one space."""

    def __init__(self, where: str, revision: str | None = None, device: Device = "cpu", batch_size: int = 32):
        from transformers import CLIPModel, CLIPTokenizer

        files = ("config.json", "preprocessor_config.json", *TOKENIZER)
        super().__init__(where, revision, device, batch_size, files)
        self.model = _load(CLIPModel, self.folder, where).to(self.device)
        self.tokenizer = CLIPTokenizer.from_pretrained(self.folder, local_files_only=True)
        self.window = self.model.config.text_config.max_position_embeddings
        if len(self.tokenizer) != self.model.config.text_config.vocab_size:
            raise UserError(f"feature network {where}: its tokenizer does not match the network")

    def _encode(self, pixels: Tensor) -> Tensor:
        return _rows(self.model.get_image_features(pixel_values=pixels))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features [N, D] of `texts`, fp32 on the CPU; long texts are truncated to the text window."""
        unique = list(dict.fromkeys(texts))
        options = {
            "padding": "max_length",
            "truncation": True,
            "max_length": self.window,
            "return_tensors": "pt",
        }
        parts = []
        for batch in _batches(unique, self.batch_size):
            tokens = self.tokenizer(batch, **options).to(self.device)
            with torch.autocast(self.device.type, enabled=False):
                features = self.model.get_text_features(
                    input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
                )
            parts.append(_rows(features).float().cpu())
        place = {text: index for index, text in enumerate(unique)}
        return torch.cat(parts)[[place[text] for text in texts]]


class Lpips:
    """LPIPS (Zhang et al., arXiv 1801.03924) from the package `lpips`, which contains or downloads the weights."""

    def __init__(self, backbone: str, device: Device = "cpu"):
        try:
            import lpips

            self.model = lpips.LPIPS(net=backbone, verbose=False).to(device).eval()
        except (ImportError, OSError, NotImplementedError) as error:
            raise UserError(
                f"networks.lpips={backbone}: not available ({error}); pip install lpips on a machine with a"
                " network, or set it to null to measure DIV in the features of networks.diversity"
            ) from error
        self.device = device
        self.facts = {"network": f"lpips {backbone}", "preprocessing": "pixels in [-1, 1], as they are"}

    @torch.no_grad()
    def distances(self, images: Sequence[Image.Image]) -> Tensor:
        """LPIPS between all pairs of images, [N, N]."""
        pixels = torch.stack([to_tensor(image) for image in images]).to(self.device)
        rows = [
            self.model(pixels[i : i + 1].expand_as(pixels), pixels).flatten().cpu()
            for i in range(len(pixels))
        ]
        return torch.stack(rows)


OTHERS: Mapping[str, Callable[[str, str | None, Device, int], FeatureNetwork]] = {}
"""Classes of metrics' own networks for images, by name; the config's `networks.others` says where each is."""


def load_others(settings: Mapping[str, Any], device: Device = "cpu") -> dict[str, FeatureNetwork]:
    """The networks of OTHERS, by name. Raises UserError if the config section `networks` lacks one."""
    missing = next((name for name in OTHERS if name not in settings["others"]), None)
    if missing:
        raise UserError(f"config networks.others has no {missing}: give its folder or hub id")
    return {
        name: make(settings["others"][name], None, device, settings["batch_size"])
        for name, make in OTHERS.items()
    }


def load_networks(settings: Mapping[str, Any], device: Device = "cpu") -> tuple[Dino, Clip, Lpips | None]:
    """The networks that the config section `networks` names."""
    batch_size = settings["batch_size"]
    dino = Dino(settings["dino"], settings["dino_revision"], device, batch_size)
    clip = Clip(settings["clip"], settings["clip_revision"], device, batch_size)
    return dino, clip, Lpips(settings["lpips"], device) if settings["lpips"] else None


def locate(where: str, revision: str | None, files: Sequence[str]) -> tuple[Path, str | None, Path]:
    """The folder of a network, its commit on the hub (None for a local one), and its weight file.

    A local folder (see `files.find`) comes before a hub id of the same name.
    """
    folder = find(where)
    if folder.is_dir():
        weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        if weights is None:
            raise UserError(f"feature network {where}: no {' or '.join(WEIGHTS)} in this folder")
        return folder, None, weights
    if where.count("/") != 1 or where.startswith((".", "/", "assets/")):
        raise UserError(
            f"feature network {where}: no such folder; name another, or a hub id such as facebook/dino-vits16"
        )
    return _fetch(where, revision, files)


def _fetch(name: str, revision: str | None, files: Sequence[str]) -> tuple[Path, str | None, Path]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    def fetch(file: str) -> Path:
        return Path(hf_hub_download(name, file, revision=revision, etag_timeout=10))

    def fetch_any(file: str) -> Path | None:
        try:
            return fetch(file)
        except EntryNotFoundError:  # or LocalEntryNotFoundError: no connection, and not in the cache
            return None

    try:
        for file in files:
            (fetch_any if file in TOKENIZER else fetch)(file)
        weights = fetch_any(WEIGHTS[0]) or fetch(WEIGHTS[1])
    except (HfHubHTTPError, EntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"feature network {name}: not a local folder, and the hub does not provide it ({reason});"
            " give a folder, or download it on a machine with a network"
        ) from error
    return weights.parent, weights.parent.name, weights


def _load(kind: Any, folder: Path, where: str, **options: Any) -> Any:
    """The network in eval mode, fp32. Raises UserError if the folder has other weights, or some are missing."""
    from transformers.utils import logging

    progress, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # a report of missing keys would come before our line
    try:
        model, about = kind.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"feature network {where}: {str(error).splitlines()[0]}") from error
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()
    if about["missing_keys"]:
        raise UserError(
            f"feature network {where}: not a {kind.__name__}, {min(about['missing_keys'])} is missing"
        )
    return model.eval().requires_grad_(False)


def _rows(features: Any) -> Tensor:
    """The feature tensor, which transformers 5 wraps and version 4 does not."""
    rows: Tensor = getattr(features, "pooler_output", features)
    return rows


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
