"""The subjects to learn, their classes, and the prompts that name them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from ldm.errors import UserError
from ldm.values import ClassWord, Must, PositiveFloat, Text, Unaffecting

PLACEHOLDER = "[V]"
"""In prompts, the subject's identifier, as in the paper; with several subjects, that of each in turn."""

CLASS_WORD = "{class_word}"
"""In a config's prompts, the class word."""

AUTO = "auto"
"""As an identifier: a rare token chosen by `ldm.models.identifier`."""

_PLACEHOLDER = re.compile(r"\[[A-Za-z][A-Za-z0-9_-]{0,19}\]")

Placeholder = Annotated[
    str,
    Must(
        lambda word: _PLACEHOLDER.fullmatch(word) is not None,
        "a name in brackets such as [V1] or [rex]: a letter, then at most 19 letters, digits, _ and -",
    ),
]


@dataclass(frozen=True)
class ConceptSettings:
    """One item of `data.params.concepts`; missing keys default to those for a single subject."""

    data_root: Annotated[Text, Unaffecting]
    class_word: ClassWord
    identifier: Text | None = None
    placeholder: Placeholder | None = None
    prompt: Text | None = None
    prior_prompt: Text | None = None
    weight: PositiveFloat = 1.0
    reg_data_root: Annotated[Text | None, Unaffecting] = None


Subjects = Annotated[
    Sequence[ConceptSettings],
    Must(lambda subjects: len(subjects) > 0, "a list of subjects, each with data_root and class_word"),
]


@dataclass(frozen=True)
class Concept:
    """One subject: its photographs, its class, and its training prompts."""

    data_root: Path
    """Folder with the photographs."""
    class_word: str
    prompt: str
    """For the photographs, such as "a photo of [V] dog"."""
    prior_prompt: str
    """For the class, such as "a photo of a dog"."""
    placeholder: str = PLACEHOLDER
    identifier: str | None = None
    """Replaces the placeholder; None uses `model.params.identifier`."""
    weight: float = 1.0
    """Share of the samples, relative to the other subjects'."""
    reg_data_root: Path | None = None
    """Folder with class images, used instead of prior samples."""
    where: str = field(default="data.params", compare=False)
    """The config section of this subject, for messages."""

    def __post_init__(self) -> None:
        """Fill `{class_word}` and the placeholder into the prompts. Raises UserError for an empty word or prompt."""
        if not self.class_word.strip():
            raise UserError(
                f"{self.where}.class_word is empty: name the subject's class, as in --class_word dog"
            )
        for key in ("prompt", "prior_prompt"):
            prompt = getattr(self, key)
            if not prompt.strip():
                raise UserError(
                    f"{self.where}.{key} is empty: write a prompt such as 'a photo of [V] {CLASS_WORD}'"
                )
            object.__setattr__(self, key, self.filled(prompt))
        if self.placeholder in self.prior_prompt:
            raise UserError(
                f"{self.where}.prior_prompt '{self.prior_prompt}' is for the class: remove {self.placeholder} from it"
            )

    def own(self, prompt: str) -> str:
        """`prompt` with [V] replaced by this subject's placeholder."""
        return prompt.replace(PLACEHOLDER, self.placeholder)

    def filled(self, prompt: str) -> str:
        """`prompt` with `{class_word}` and [V] replaced by this subject's word and placeholder."""
        return self.own(prompt.replace(CLASS_WORD, self.class_word))

    @property
    def name(self) -> str:
        """See `name_of`."""
        return name_of(self.placeholder)


def concepts_of(settings: Sequence[ConceptSettings], prompt: str, prior_prompt: str) -> tuple[Concept, ...]:
    """The subjects that a config lists; `prompt` and `prior_prompt` are the defaults for those without their own.

    For several subjects, placeholders default to [V1], [V2], ... and identifiers to "auto".
    Raises UserError for a placeholder used twice.
    """
    where = "data.params.concepts"
    several = len(settings) > 1
    concepts = tuple(
        Concept(
            Path(one.data_root),
            one.class_word,
            prompt if one.prompt is None else one.prompt,
            prior_prompt if one.prior_prompt is None else one.prior_prompt,
            one.placeholder or default_placeholder(number, len(settings)),
            one.identifier or (AUTO if several else None),
            one.weight,
            Path(one.reg_data_root) if one.reg_data_root else None,
            f"{where}.{number}",
        )
        for number, one in enumerate(settings)
    )
    names = [concept.name for concept in concepts]
    for number, name in enumerate(names):
        if name in names[:number] or (several and name == "v"):
            raise UserError(
                f"{where}.{number}.placeholder is {concepts[number].placeholder}: each of several subjects needs"
                " its own, such as [V1]; [V] means each of them in turn"
            )
    return concepts


def default_placeholder(number: int, count: int) -> str:
    """The placeholder of subject `number`, from 0, of `count`, if its config names none."""
    return f"[V{number + 1}]" if count > 1 else PLACEHOLDER


@dataclass(frozen=True)
class Learned:
    """A learned subject, or one to be learned, as needed for prompts."""

    identifier: str
    class_word: str | None = None
    placeholder: str = PLACEHOLDER

    @property
    def name(self) -> str:
        """See `name_of`."""
        return name_of(self.placeholder)

    @property
    def phrase(self) -> str:
        """Identifier and class word as in prompts: "sks dog"."""
        return f"{self.identifier} {self.class_word or ''}".strip()


def name_of(placeholder: str) -> str:
    """The placeholder's name for columns and files: v1 for [V1]."""
    return re.sub(r"\W", "_", placeholder[1:-1]).lower()


def article(noun: str) -> str:
    """The indefinite article before `noun`: "a" or "an"."""
    return "an" if noun[:1].lower() in tuple("aeiou") else "a"


def with_article(noun: str) -> str:
    """ "a cat", "an owl"."""
    return f"{article(noun)} {noun}"


def placeholders_in(prompt: str) -> list[str]:
    """The words of `prompt` that could be placeholders, such as [V] or [rex]."""
    return _PLACEHOLDER.findall(prompt)


def fill_in_identifiers(prompt: str, subjects: Sequence[Learned]) -> str:
    """`prompt` with placeholders replaced by identifiers; [V] also means a single subject with another placeholder.

    Raises UserError for a [V] that is ambiguous, and for a [V] or [V3] without a subject.
    """
    for subject in subjects:
        prompt = prompt.replace(subject.placeholder, subject.identifier)
    if len(subjects) == 1:
        prompt = prompt.replace(PLACEHOLDER, subjects[0].identifier)
    unknown = re.search(r"\[V\d*\]", prompt)
    if unknown is None:
        return prompt
    known = ", ".join(f"{subject.placeholder} ({subject.class_word})" for subject in subjects)
    reason = f"this model's subjects are {known}" if subjects else "this model has none"
    raise UserError(f"prompt '{prompt}': {unknown.group()} must be a learned subject, but {reason}")


def for_each_concept(prompts: Sequence[str], concepts: Sequence[Concept]) -> list[str]:
    """`prompts` with [V] and `{class_word}` filled in for each subject; with several, without duplicates."""
    found = [concept.filled(prompt) for prompt in prompts for concept in concepts]
    return list(dict.fromkeys(found)) if len(concepts) > 1 else found
