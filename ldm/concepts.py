"""What is taught: a subject, its class, and the prompts that name them."""

from dataclasses import dataclass
from pathlib import Path

from ldm.errors import UserError

PLACEHOLDER = "[V]"
"""Stands in prompts for a subject's identifier, as in the paper."""

CLASS_WORD = "{class_word}"
"""Stands in the configured prompts for the class word."""


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

    def __post_init__(self) -> None:
        """Fill `{class_word}` into the prompts. Raises UserError for an empty word or prompt."""
        if not self.class_word.strip():
            raise UserError(
                "data.params.class_word is empty: name the subject's class, as in --class_word dog"
            )
        for key in ("prompt", "prior_prompt"):
            prompt = getattr(self, key)
            if not prompt.strip():
                raise UserError(
                    f"data.params.{key} is empty: write a prompt such as 'a photo of [V] {CLASS_WORD}'"
                )
            object.__setattr__(self, key, prompt.replace(CLASS_WORD, self.class_word))
        if self.placeholder in self.prior_prompt:
            raise UserError(
                f"data.params.prior_prompt '{self.prior_prompt}' is the class's: leave {self.placeholder} out of it"
            )


def fill_in_identifier(prompt: str, identifier: str | None) -> str:
    """`prompt` with `identifier` for every [V]. Raises UserError where the model has learnt none."""
    if PLACEHOLDER not in prompt:
        return prompt
    if not identifier:
        raise UserError(
            f"prompt '{prompt}': {PLACEHOLDER} stands for a learned subject, and this model has none"
        )
    return prompt.replace(PLACEHOLDER, identifier)
