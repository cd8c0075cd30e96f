"""What every data set is turned into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eval_tasks.data.rows import RowImage
from lvlm_radapt.utils.bounds import MOST_LETTERS
from lvlm_radapt.utils.errors import UserError


@dataclass(frozen=True)
class Sample:
    """One image with its question, if any, and what people wrote about it.

    `image` is a file, or lies in a data set's row. `references` are captions, the answers of a question (10 in
    VQAv2), or the one right answer where there is a choice. `position` is the sample's row in the
    annotation file: samples are kept sorted by id, but seeded subsets are drawn over the file's order, as
    FARE's tools do. UserError for a field of another type, and for a text that is no Unicode text: neither a model nor
    a record can hold it.
    """

    id: str
    image: Path | RowImage
    question: str | None
    references: tuple[str, ...]
    position: int = 0

    def __post_init__(self) -> None:
        self._check_types()
        longest = max(map(len, (self.id, self.question or "", *self.references)))
        if longest > MOST_LETTERS:
            raise UserError(
                f"sample {self.id[:60]} has a text of {longest} characters: at most {MOST_LETTERS} can be used"
            )
        for text in (self.id, self.question or "", *self.references):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"image {self.image}: {text[:60]} is not UTF-8: rename the file or its class, or mend the text"
                ) from error

    def _check_types(self) -> None:
        """A loader of somebody else's is not typed."""
        texts = isinstance(self.references, tuple) and all(isinstance(text, str) for text in self.references)
        for field, right, wanted in (
            ("id", isinstance(self.id, str), "a text"),
            ("image", not isinstance(self.image, str), "a Path"),
            ("question", isinstance(self.question, str | None), "a text or None"),
            ("references", texts, "a tuple of texts"),
        ):
            if not right:
                got = type(getattr(self, field)).__name__
                raise UserError(f"sample {self.id}: its {field} must be {wanted}, got {got}")


def natural_key(sample_id: str) -> tuple[int, int, str, str]:
    """A total order of ids: numbers by value, then everything else by text."""
    if sample_id.isascii() and sample_id.isdigit():
        digits = sample_id.lstrip("0")
        return (0, len(digits), digits, sample_id)
    return (1, 0, sample_id, "")
