"""Base models from the Hugging Face hub. Beside the evaluation's feature networks nothing uses the network."""

from pathlib import Path

from ldm.errors import UserError

FOLDERS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
SMALL_FILES = (
    "config.json",
    "scheduler_config.json",
    "merges.txt",
    "vocab.json",
    "tokenizer*.json",
    "special*.json",
)


def fetch(repository: str, revision: str | None, variant: str | None) -> Path:
    """The local copy of `repository` (`owner/name`) in the hub's own cache, downloaded where need be.

    Raises `UserError` that says what was tried when there is neither a copy nor a connection.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    tried = f"{repository} is no local folder or file, and the hub was tried"
    try:
        folder = Path(
            snapshot_download(repository, revision=revision, allow_patterns=wanted(variant, "safetensors"))
        )
        if not any(folder.glob("unet/*.safetensors")):  # the oldest repositories have pickles only
            snapshot_download(repository, revision=revision, allow_patterns=wanted(variant, "bin"))
    except RepositoryNotFoundError:
        raise UserError(f"{tried}: it has no such model, or wants a login (hf auth login)") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{tried} ({reason}): give a path, or download it where there is a network") from None
    return folder


def wanted(variant: str | None, suffix: str) -> list[str]:
    """The files of a pipeline that are read here, as patterns: no weights in a second format or precision."""
    middle = f".{variant}" if variant else ""
    stems = ("diffusion_pytorch_model", "model", "pytorch_model")
    names = [*SMALL_FILES, *(f"{stem}{middle}.{suffix}" for stem in stems)]
    return [f"{folder}/{name}" for folder in FOLDERS for name in names]
