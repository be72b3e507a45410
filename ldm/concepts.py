"""What is taught: subjects, their classes, and the prompts that name them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from ldm.errors import UserError
from ldm.values import ClassWord, Must, PositiveFloat, Text, Unaffecting

PLACEHOLDER = "[V]"
"""Stands in prompts for a subject's identifier, as in the paper; where there are several, for any of them."""

CLASS_WORD = "{class_word}"
"""Stands in the configured prompts for the class word."""

AUTO = "auto"
"""In place of an identifier: a rare token, found by `ldm.models.identifier`."""

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
    """One item of `data.params.concepts`; what is left out is as for one subject."""

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
    """One subject: its photographs, its class, and the prompts it is taught with."""

    data_root: Path
    """Folder with the photographs."""
    class_word: str
    prompt: str
    """Of the photographs, such as "a photo of [V] dog"."""
    prior_prompt: str
    """Of the class, such as "a photo of a dog"."""
    placeholder: str = PLACEHOLDER
    identifier: str | None = None
    """What the placeholder means; None takes `model.params.identifier`."""
    weight: float = 1.0
    """Share of the samples, relative to the other subjects'."""
    reg_data_root: Path | None = None
    """Folder with pictures of the class, in place of prior samples."""
    where: str = field(default="data.params", compare=False)
    """The section of the config that this comes from, for messages."""

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
            object.__setattr__(self, key, self.own(prompt.replace(CLASS_WORD, self.class_word)))
        if self.placeholder in self.prior_prompt:
            raise UserError(
                f"{self.where}.prior_prompt '{self.prior_prompt}' is the class's: leave {self.placeholder} out of it"
            )

    def own(self, prompt: str) -> str:
        """`prompt`, which speaks of this subject alone, with its placeholder for [V]."""
        return prompt.replace(PLACEHOLDER, self.placeholder)

    @property
    def name(self) -> str:
        """See `name_of`."""
        return name_of(self.placeholder)


def concepts_of(settings: Sequence[ConceptSettings], prompt: str, prior_prompt: str) -> tuple[Concept, ...]:
    """The subjects that a config lists; `prompt` and `prior_prompt` are of those that have none of their own.

    In a list of several, placeholders are [V1], [V2], ... and identifiers "auto", unless they are given.
    Raises UserError for two of one placeholder.
    """
    where = "data.params.concepts"
    several = len(settings) > 1
    concepts = tuple(
        Concept(
            Path(one.data_root),
            one.class_word,
            prompt if one.prompt is None else one.prompt,
            prior_prompt if one.prior_prompt is None else one.prior_prompt,
            one.placeholder or (f"[V{number + 1}]" if several else PLACEHOLDER),
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
                f"{where}.{number}.placeholder is {concepts[number].placeholder}: each subject of several needs one"
                " of its own, such as [V1]; [V] alone stands for each of them in turn"
            )
    return concepts


@dataclass(frozen=True)
class Learned:
    """A subject as prompts know it, learned or about to be."""

    identifier: str
    class_word: str | None = None
    placeholder: str = PLACEHOLDER

    @property
    def name(self) -> str:
        """See `name_of`."""
        return name_of(self.placeholder)

    @property
    def phrase(self) -> str:
        """Identifier and class word, as they stand in a prompt: "sks dog"."""
        return f"{self.identifier} {self.class_word or ''}".strip()


def name_of(placeholder: str) -> str:
    """The placeholder's word, as columns and files are called: v1 for [V1]."""
    return re.sub(r"\W", "_", placeholder[1:-1]).lower()


def fill_in_identifiers(prompt: str, subjects: Sequence[Learned]) -> str:
    """`prompt` with the identifier of each subject for its placeholder; [V] is that of an only subject too.

    Raises UserError for a [V] that could be any of several subjects, and for a [V] or [V3] that is none.
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
    raise UserError(f"prompt '{prompt}': {unknown.group()} stands for a learned subject, and {reason}")


def for_each_concept(prompts: Sequence[str], concepts: Sequence[Concept]) -> list[str]:
    """`prompts` with [V] and `{class_word}` filled in for one subject after the other; equal ones come once."""
    found = [
        concept.own(prompt.replace(CLASS_WORD, concept.class_word))
        for prompt in prompts
        for concept in concepts
    ]
    return list(dict.fromkeys(found)) if len(concepts) > 1 else found
