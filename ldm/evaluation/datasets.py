"""Datasets of subjects, in the layouts in which they are published."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.data.images import image_files
from ldm.errors import UserError
from ldm.formats.described import Content, described

LIST = "prompts_and_classes.txt"
CONCEPTS = "dataset.json"


@dataclass(frozen=True)
class BenchmarkSubject:
    """One subject of a dataset."""

    name: str
    class_word: str
    folder: Path
    """With its photographs; or the only photograph itself."""
    prompts: tuple[str, ...] = ()
    """The dataset's own, with [V] and {class}; none where its prompts are a set of configs/evaluation.yaml."""


def read_dataset(folder: Path) -> list[BenchmarkSubject]:
    """The subjects of a folder in one of three layouts, told apart by their files.

    prompts_and_classes.txt: the DreamBooth dataset (Ruiz et al., arXiv 2208.12242). dataset.json: CustomConcept101
    (Kumari et al., arXiv 2212.04488). images/ and captions/: DreamBench++ (Peng et al., arXiv 2406.16855). Subjects
    without pictures are left out, so that a part of a dataset is a dataset too.
    """
    if (folder / LIST).is_file():
        return dreambooth_subjects(folder)
    if (folder / CONCEPTS).is_file():
        return custom_concepts(folder)
    if (folder / "images").is_dir() and (folder / "captions").is_dir():
        return dreambench_plus(folder)
    raise UserError(
        f"dataset {folder}: no {LIST} in it, with a line subject_name,class for each subject, nor {CONCEPTS}, nor"
        " images/ and captions/"
    )


def dreambooth_subjects(folder: Path) -> list[BenchmarkSubject]:
    """The subjects of a folder in the layout of the DreamBooth dataset, in the list's order.

    prompts_and_classes.txt lists `subject_name,class`; each subject's images are in a folder of its name. Subjects
    without a folder are left out, so that a part of the dataset is a dataset too.
    """
    path = folder / LIST
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    if "subject_name,class" not in lines:
        raise UserError(f"{path}: the list of subjects needs the heading 'subject_name,class'")
    subjects = []
    for line in lines[lines.index("subject_name,class") + 1 :]:
        name, comma, class_word = (part.strip() for part in line.partition(","))
        if not comma:
            break  # an empty line or the next heading ends the list
        if (folder / name).is_dir():
            image_files(folder / name)
            subjects.append(BenchmarkSubject(name, class_word, folder / name))
    if not subjects:
        raise UserError(f"dataset {folder}: no subject of {LIST} has a folder in it")
    return subjects


class CustomConcept(Content):
    """One entry of CustomConcept101's list."""

    class_prompt: str
    instance_data_dir: str
    prompt_filename: str


def custom_concepts(folder: Path) -> list[BenchmarkSubject]:
    """The subjects of CustomConcept101: folders of photographs, and prompts in which {} stands for the subject."""
    path = folder / CONCEPTS
    subjects = []
    for number, entry in enumerate(_json_list(path)):
        concept = described(CustomConcept, entry, f"{path}, entry {number}")
        photographs, prompts = folder / concept.instance_data_dir, folder / concept.prompt_filename
        if photographs.is_dir():
            image_files(photographs)
            templates = [line.strip() for line in _text(prompts).splitlines() if line.strip()]
            own = tuple(template.replace("{}", "[V] {class}") for template in templates)
            subjects.append(BenchmarkSubject(photographs.name, concept.class_prompt, photographs, own))
    if not subjects:
        raise UserError(f"dataset {folder}: no instance_data_dir of {CONCEPTS} is a folder in it")
    return subjects


def dreambench_plus(folder: Path) -> list[BenchmarkSubject]:
    """The subjects of DreamBench++: one photograph each; its captions file names the class, then the prompts.

    A prompt in which the class is not named is left as it is: the subject is not in it.
    """
    subjects = []
    for path in sorted((folder / "captions").rglob("*.txt")):
        place = path.relative_to(folder / "captions").with_suffix("")
        photograph = next((folder / "images" / place.parent).glob(f"{place.name}.*"), None)
        lines = [line.strip() for line in _text(path).splitlines() if line.strip()]
        if photograph is None:
            continue
        if len(lines) < 2:
            raise UserError(f"{path}: the class, and then a prompt a line")
        word = lines[0]
        named = re.compile(rf"\b{re.escape(word)}(?=s?\b)", re.IGNORECASE)  # not the "cat" of "location"
        own = tuple(named.sub("[V] {class}", line) for line in lines[1:])
        subjects.append(BenchmarkSubject("_".join(place.parts), word, photograph, own))
    if not subjects:
        raise UserError(f"dataset {folder}: no captions file has a picture of its name below images/")
    return subjects


def _json_list(path: Path) -> list[object]:
    try:
        content = json.loads(_text(path))
    except ValueError as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, list):
        raise UserError(f"{path} is no list of concepts")
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None


def wrong_noun(subject: BenchmarkSubject, subjects: Sequence[BenchmarkSubject]) -> str:
    """Another subject's class noun, for the ablation of Table 4: the next different one in the list."""
    place = subjects.index(subject)
    others = [other.class_word for other in (*subjects[place + 1 :], *subjects[:place])]
    different = next((word for word in others if word != subject.class_word), None)
    if different is None:
        raise UserError("class-noun ablation: all subjects have the same class, so there is no wrong noun")
    return different
