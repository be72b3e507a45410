"""Base models from the Hugging Face hub. Only this and the evaluation's feature networks access the internet."""

from pathlib import Path

from ldm.errors import UserError
from ldm.formats.families import NETWORKS, TOKENIZERS
from ldm.formats.network_configs import refuse_other_models

SETTINGS = (
    "model_index.json",
    "config.json",  # of a VAE in its own repository
    "scheduler/scheduler_config.json",
    *(f"{name}/config.json" for name in NETWORKS),
    *(
        f"{name}/{file}"
        for name in TOKENIZERS
        for file in ("merges.txt", "vocab.json", "tokenizer*.json", "special*.json")
    ),
)
"""The small files of a model, as patterns."""
WEIGHTS = (*(f"{name}/" for name in NETWORKS), "")
"""Folders with weights: those of a pipeline, or the top folder for a single VAE."""


def fetch(repository: str, revision: str | None, variant: str | None) -> Path:
    """The local copy of `repository` (`owner/name`) in the hub's own cache, downloaded if necessary.

    Raises UserError if there is neither a copy nor a connection, and, before its weights are downloaded, for a model
    of another family.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    tried = f"{repository} is not a local folder or file, and the hub was tried"
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=[*SETTINGS]))
        refuse_other_models(folder)  # before gigabytes of weights are downloaded
        for suffix in ("safetensors", "bin"):  # the oldest repositories have only pickles
            snapshot_download(repository, revision=revision, allow_patterns=weights(variant, suffix))
            if any(folder.glob("unet/*.safetensors")) or any(folder.glob("*.safetensors")):
                break
    except RepositoryNotFoundError:
        raise UserError(f"{tried}: it has no such model, or requires a login (hf auth login)") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{tried} ({reason}): give a path, or download it on a machine with a network"
        ) from None
    return folder


def weights(variant: str | None, suffix: str) -> list[str]:
    """Patterns of the weight files to read, in a single format and precision."""
    middle = f".{variant}" if variant else ""
    stems = ("diffusion_pytorch_model", "model", "pytorch_model")
    return [f"{place}{stem}{middle}.{suffix}" for place in WEIGHTS for stem in stems]
