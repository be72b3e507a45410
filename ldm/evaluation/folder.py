"""Images made elsewhere, and their prompts."""

from pathlib import Path

from ldm.data.captions import caption_of, read_list
from ldm.data.images import image_files
from ldm.data.png import png_text
from ldm.errors import UserError
from ldm.evaluation.protocol import Item, without_identifier
from ldm.files import find

LIST = "metadata.jsonl"
"""One {"file_name", "prompt"} a line, as in Hugging Face's image folders; "text" stands for "prompt" too."""


def read_folder(folder: Path, identifier: str | None, class_folder: Path | None, bare: str) -> list[Item]:
    """The images in `folder` and below it, sorted by path, with their prompts; then those of `class_folder`.

    A prompt is found in metadata.jsonl, in the PNG itself (as txt2img and this project's evaluation write
    it), in a text file beside the image, or else in the name of its folder, with underscores for spaces.
    identifier: the word or words that stand for the subject in these prompts. bare: the prompt of class images.
    """
    folder = find(folder)
    paths, listed = image_files(folder, below=True), read_list(folder / LIST)
    items = [_item(path, folder, listed, identifier) for path in paths]
    if class_folder is not None:
        items = [item for item in items if item.kind == "subject"]
        items += [Item("class", bare, bare, None, path) for path in image_files(class_folder)]
    if not any(item.kind == "subject" for item in items):
        raise UserError(f"image folder {folder}: no images of a subject in it")
    return items


def _item(path: Path, folder: Path, listed: dict[str, str], identifier: str | None) -> Item:
    own = png_text(path)
    name = str(path.relative_to(folder))
    if name in listed:
        prompt = listed[name]
    elif "prompt" in own:
        prompt = own["prompt"]
    elif (caption := caption_of(path, folder)) is not None:
        prompt = caption
    elif path.parent != folder:
        prompt = path.parent.name.replace("_", " ")
    else:
        raise UserError(
            f"image {path}: no prompt for it; write {LIST} with file_name and prompt, or put the images of each"
            " prompt into a folder of the prompt's name"
        )
    seed = int(own["seed"]) if own.get("seed", "").isdecimal() else None
    text = own.get("text") or without_identifier(prompt, identifier)
    return Item("class" if own.get("kind") == "class" else "subject", prompt, text, seed, path)
