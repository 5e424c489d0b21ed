"""What each variant of a model needs, by device: ``core.memory`` behind one question, each answer kept.

A fleet asks the same again and again: hosts are alike, and so are their wishes.
"""

from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

from ..catalog import Entry, Variant
from ..memory.catalog_tier import BITS_PER_WEIGHT, estimate_parameters
from ..memory.estimate import DeviceMemory, DeviceShare, Estimate, EstimateOptions, estimate
from ..memory.plain import estimate_weights
from ..memory.shape import ModelShape, shape_from_dict
from ..memory.synthesis import QUANTIZATIONS, shape_from_catalog
from .settings import PlanSettings


class Share(NamedTuple):
    """What a device holds: its name in the plan, llama.cpp's backend, repeating layers, and whether the output."""

    device: str
    backend: str
    layers: int
    output: bool


class Need(NamedTuple):
    """Bytes by accelerator, in the order of the shares, and of main memory; the estimate that says so, and its tier."""

    accelerators: Tuple[int, ...]
    main: int
    memory: Dict[str, Any]
    tier: str


class Subject:
    """One variant with one context: how many layers can be dealt out (0: it is placed whole), and what it needs.

    ``weight_bytes`` is about what its files have, None where that is not known.
    """

    def __init__(self, layers: int, weight_bytes: Optional[int] = None) -> None:
        self.layers = layers
        self.weight_bytes = weight_bytes
        self._known: Dict[Tuple[Share, ...], Need] = {}

    def need(self, shares: Tuple[Share, ...]) -> Need:
        """Return what it needs with each of ``shares``; the last is the processor's, which has what is left."""
        known = self._known.get(shares)
        if known is None:
            answer = self._estimate(shares)
            totals = [device.total for device in answer.devices]
            known = Need(tuple(totals[:-1]), totals[-1], answer.to_dict(), answer.tier)
            self._known[shares] = known
        return known

    def _estimate(self, shares: Tuple[Share, ...]) -> Estimate:
        raise NotImplementedError


class _Shaped(Subject):
    """A GGUF model whose shape is known."""

    def __init__(self, shape: ModelShape, options: EstimateOptions) -> None:
        super().__init__(shape.layers, shape.weight_bytes)
        self._shape = shape
        self._options = options

    def _estimate(self, shares: Tuple[Share, ...]) -> Estimate:
        return estimate(self._shape, self._options, [DeviceShare(*share) for share in shares])


class _Whole(Subject):
    """A model that is on one device or another, never on two: no GGUF, or one of which only its size is known."""

    def __init__(self, weight_bytes: Optional[int], on: Callable[[str, str], Estimate]) -> None:
        super().__init__(0, weight_bytes)
        self._on = on

    def _estimate(self, shares: Tuple[Share, ...]) -> Estimate:
        answer = self._on(shares[0].device, shares[0].backend)
        others = tuple(DeviceMemory(share.device, 0, 0, 0, 0, 0, 0) for share in shares[1:])
        return answer._replace(devices=answer.devices + others)


class Needs:
    """The subjects of one catalog, each made once."""

    def __init__(self) -> None:
        self._subjects: Dict[Tuple[str, str, Optional[int], Tuple[Any, ...]], Optional[Subject]] = {}
        self._shapes: Dict[Tuple[str, str], Optional[ModelShape]] = {}

    def subject(
        self, entry: Entry, variant: Variant, context: Optional[int], settings: PlanSettings
    ) -> Optional[Subject]:
        """Return what tells the memory of a variant, None where nothing does. Raises ConfigurationError of a shape."""
        loaded = (settings.kv_type, settings.flash_attention, settings.parallel_sequences)
        key = (variant.model, variant.quantization, context, loaded)
        if key not in self._subjects:
            self._subjects[key] = self._make(entry, variant, context, settings)
        return self._subjects[key]

    def _make(
        self, entry: Entry, variant: Variant, context: Optional[int], settings: PlanSettings
    ) -> Optional[Subject]:
        shape = self._shape(entry, variant)
        sequences = settings.parallel_sequences
        if shape is None:
            tokens = (context or settings.context) * sequences
            return (
                self._weights(entry, variant) if variant.format != "gguf" else self._parameters(entry, variant, tokens)
            )
        return _Shaped(
            shape,
            EstimateOptions(
                context=(context or settings.context) * sequences,
                kv_type_k=settings.kv_type,
                kv_type_v=settings.kv_type,
                flash_attention=settings.flash_attention,
                parallel=sequences,
            ),
        )

    @staticmethod
    def _weights(entry: Entry, variant: Variant) -> Optional[Subject]:
        sizes = [file.size for file in variant.files]
        if None in sizes:
            return None
        total = sum(size for size in sizes if size is not None)
        return _Whole(total, lambda device, backend: estimate_weights(total, entry.kind, device, backend))

    @staticmethod
    def _parameters(entry: Entry, variant: Variant, tokens: int) -> Optional[Subject]:
        count, quantization = entry.parameters, variant.quantization
        if count is None or quantization not in BITS_PER_WEIGHT:
            return None
        weights = int(count * BITS_PER_WEIGHT[quantization] / 8)
        return _Whole(
            weights, lambda device, backend: estimate_parameters(count, quantization, tokens, device, backend)
        )

    def _shape(self, entry: Entry, variant: Variant) -> Optional[ModelShape]:
        """The lock's shape is of the very file; the catalog's is what the file will be."""
        key = (variant.model, variant.quantization)
        if key not in self._shapes:
            if variant.shape is not None:
                self._shapes[key] = shape_from_dict(variant.shape)
            elif variant.format == "gguf" and entry.shape is not None and variant.quantization in QUANTIZATIONS:
                self._shapes[key] = shape_from_catalog(entry.shape, variant.quantization)
            else:
                self._shapes[key] = None
        return self._shapes[key]
