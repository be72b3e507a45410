"""Base models from the Hugging Face hub: the only place of the project that uses the network."""

from pathlib import Path

from ldm.errors import UserError

FOLDERS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def fetch(repository: str, revision: str | None, variant: str | None) -> Path:
    """The local copy of `repository` (`owner/name`) in the hub's own cache, downloaded where need be.

    Raises `UserError` that says what was tried when there is neither a copy nor a connection.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    names = [
        "config.json",
        "*.txt",
        "tokenizer*.json",
        "vocab.json",
        "special_tokens_map.json",
        "scheduler_config.json",
    ]
    middle = f".{variant}" if variant else ""
    names += [f"diffusion_pytorch_model{middle}.safetensors", f"model{middle}.safetensors"]
    wanted = [f"{folder}/{name}" for folder in FOLDERS for name in names]
    tried = f"{repository} is no local folder or file, and the hub was tried"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted, etag_timeout=10))
    except RepositoryNotFoundError:
        raise UserError(f"{tried}: it has no such model, or wants a login (hf auth login)") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{tried} ({reason}): give a path, or download it where there is a network") from None
