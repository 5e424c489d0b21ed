"""What a reader has learned of a model file: enough to describe it and to reckon its memory."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, NamedTuple, Optional, Tuple


class Tensor(NamedTuple):
    """One tensor: ``offset`` counts from the start of the tensor data, sizes are in bytes, shape in elements."""

    name: str
    type: str
    shape: Tuple[int, ...]
    offset: int
    size: int

    @property
    def elements(self) -> int:
        """The number of elements."""
        product = 1
        for length in self.shape:
            product *= length
        return product


@dataclass(frozen=True)
class TensorTotal:
    """All tensors of one type: how many, how many elements, how many bytes."""

    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template is a program: its hash, its length in bytes, and marks of escapes from Jinja's sandbox."""

    sha256: str
    length: int
    suspicious: Tuple[str, ...]


@dataclass
class ModelFile:
    """A described file. What its format does not say, or the file leaves out, is None.

    ``metadata`` holds scalars, short strings and short arrays of numbers; ``array_lengths`` the length of every array.
    Where a value differs by layer (``heads_kv`` and others), the metadata's array has it and the field is the largest.
    """

    format: str
    size: int
    version: Optional[int] = None
    architecture: Optional[str] = None
    name: Optional[str] = None
    quantization: Optional[str] = None
    context_length: Optional[int] = None
    layers: Optional[int] = None
    embedding_length: Optional[int] = None
    heads: Optional[int] = None
    heads_kv: Optional[int] = None
    key_length: Optional[int] = None
    value_length: Optional[int] = None
    sliding_window: Optional[int] = None
    vocabulary_size: Optional[int] = None
    tokenizer: Optional[str] = None
    chat_templates: Dict[str, ChatTemplate] = field(default_factory=dict)
    alignment: Optional[int] = None
    data_offset: Optional[int] = None
    tensors: List[Tensor] = field(default_factory=list)
    metadata: Dict[str, Any] = field(default_factory=dict)
    array_lengths: Dict[str, int] = field(default_factory=dict)
    files: List[str] = field(default_factory=list)
    warnings: List[str] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """The number of elements of all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """The bytes of all tensors, without padding."""
        return sum(tensor.size for tensor in self.tensors)

    def by_type(self) -> Dict[str, TensorTotal]:
        """Return the tensors' totals by type, the largest first."""
        totals: Dict[str, List[int]] = {}
        for tensor in self.tensors:
            total = totals.setdefault(tensor.type, [0, 0, 0])
            total[0] += 1
            total[1] += tensor.elements
            total[2] += tensor.size
        ordered = sorted(totals.items(), key=lambda item: (-item[1][2], item[0]))
        return {kind: TensorTotal(*total) for kind, total in ordered}
