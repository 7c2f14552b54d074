"""From a checkpoint file to a module: read, recognise, convert, check, cast, assign."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checks import one_of
from ..devices import COMPUTED
from ..models.companions import TextEncoder
from ..network.eight_bit import eight_bit, rows_of, warn_of_plain
from ..schedule import AspectTable
from . import header as headers
from .convert import convert, routes
from .detect import KINDS, SPECS, configure, named, recognise, spec_of, unknown
from .errors import CheckpointError, article, short
from .files import read
from .header_check import check_header
from .quantized import plain
from .spec import FamilySpec
from .strict import check_shapes, check_stored
from .wrappers import Group, beside, extras, groups

_MAX_NOTES = 16
_LOG = logging.getLogger(__name__)


@dataclass
class Checkpoint:
    """A recognised checkpoint: complete tensors under our names, and what is known about the model.

    ``config``: the family's own dataclass. ``trained``: the image sizes (None for text encoders). ``notes``:
    what of the file is not loaded. ``told``: metadata of ours says what it is.
    """

    kind: str
    family: str
    config: Any
    tensors: dict[str, Tensor]
    source: str
    trained: AspectTable | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    tokenizer_json: str | None = None
    title: str | None = None
    notes: tuple[str, ...] = ()
    told: bool = False
    classes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of weights still held."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def header(self) -> headers.Header:
        """What a file of ours with these tensors says about them."""
        implied = spec_of(self.kind, self.family).trained(self.config)
        return headers.Header(
            kind=self.kind,
            family=self.family,
            config=self.config.to_dict(),
            trained=None if self.trained == implied else self.trained,
            defaults=self.defaults,
            tokenizer_json=self.tokenizer_json,
            title=self.title,
            classes=self.classes,
        )


class Loaded(NamedTuple):
    """A module ready to run and the checkpoint it came from, whose tensors it took over."""

    module: nn.Module
    checkpoint: Checkpoint


def prepare(
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None,
    source: str | Path,
    *,
    kind: str | None = None,
) -> Checkpoint:
    """Recognise, convert and check what a file holds, without building a module or copying weights.

    ``tensors`` may be wrapped as training checkpoints are. ``kind``: what the caller needs ("transformer",
    "tokenizer", "text_encoder"); it picks from files that hold several and is an error where it differs.
    """
    source = str(source)
    found = list(groups(tensors))
    group, spec = _choose(found, source, kind)
    header = headers.parse(metadata, source) or headers.parse(headers.recorded(group.record, source), source)
    whole, group = group, group._replace(tensors=plain(group.tensors, metadata, source))
    spec = named(header, list(group.tensors), spec)
    if spec.merged:
        check_stored({group.prefix + key: tensor for key, tensor in group.tensors.items()}, source)
        group = group._replace(tensors=spec.merged(group.tensors, source))
    planned = routes(group.tensors, spec.key_map, source)
    check_stored({group.prefix + key: group.tensors[key] for key in planned if planned[key].target}, source)
    config = _config(spec, configure(spec, group, planned, source), header, source)
    conversion = convert(group.tensors, spec.key_map, source, planned)
    check_shapes(conversion.tensors, spec, config, source)
    notes = _notes(conversion.dropped | beside(whole, found) | extras(tensors))
    trained = (header and header.trained) or spec.trained(config)
    if header is not None:
        check_header(header, config, trained, source)
    checkpoint = Checkpoint(
        kind=spec.kind,
        family=spec.name,
        config=config,
        tensors=conversion.tensors,
        source=source,
        trained=trained,
        defaults={**spec.defaults, **(header.defaults if header else {})},
        tokenizer_json=header.tokenizer_json if header else None,
        title=header.title if header else None,
        notes=notes,
        told=header is not None,
        classes=header.classes if header else (),
    )
    _check_finite(checkpoint)
    _LOG.info("%s: %s, %s", source, spec.title, config)
    if notes:
        _LOG.info("%s: not loaded: %s", source, ", ".join(notes))
    return checkpoint


def _check_finite(checkpoint: Checkpoint) -> None:
    """``CheckpointError`` for NaN or infinity in a vector: biases, gains, lengths of queries.

    A run limits some of them and would hide it. What matrices hold shows in its logits, and takes too long to
    read here.
    """
    for name, tensor in checkpoint.tensors.items():
        if tensor.dim() > 1 or tensor.is_meta or not tensor.is_floating_point():
            continue
        if not tensor.float().isfinite().all():
            raise CheckpointError(
                f"{checkpoint.source}: {name} holds NaN or infinity; expected finite weights. The file is "
                "damaged, download it again"
            )


def state_dict(
    checkpoint: Checkpoint, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """The tensors of a transformer or tokenizer as its module wants them, taken out of ``checkpoint``.

    The module decides which weights have ``dtype`` (None: float32) and which stay float32. Tensors move one
    by one, so that the weights are never held twice. ``ValueError`` for a text encoder, which is no module.
    """
    return _take(checkpoint, _skeleton(checkpoint, nn, dtype), device)


def build(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    operations: Any = nn,
    weights: str | None = None,
) -> nn.Module:
    """The module of a checkpoint; it takes the tensors over, in the dtypes of :func:`state_dict`.

    ``operations``: what its layers are made of, with the names of ``torch.nn``. ``weights``: 'int8' for the
    linear layers of a transformer's blocks in 8 bits; ``ValueError`` for other models.
    """
    if weights is not None:
        one_of("weights", weights, COMPUTED)
        warn_of_plain(torch.device(device or "cpu"))
        module = eight_bit(_skeleton(checkpoint, nn, dtype))
        module.load_state_dict(_take(checkpoint, module, device), strict=True, assign=True)
        return module.eval().requires_grad_(False)
    module = _skeleton(checkpoint, operations, dtype)
    template = module if operations is nn else _skeleton(checkpoint, nn, dtype)
    module.load_state_dict(_take(checkpoint, template, device), strict=True, assign=True)
    return module.eval().requires_grad_(False)


def load_transformer(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    operations: Any = nn,
) -> Loaded:
    """Load a transformer; its blocks get ``dtype`` (None: float32), everything around them float32.

    Raises :class:`CheckpointError` for what is no complete transformer.
    """
    checkpoint = prepare(*read(path), kind="transformer")
    return Loaded(build(checkpoint, dtype=dtype, device=device, operations=operations), checkpoint)


def load_tokenizer(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    operations: Any = nn,
) -> Loaded:
    """Load an image tokenizer in ``dtype`` (None: float32); :class:`CheckpointError` for what is none."""
    checkpoint = prepare(*read(path), kind="tokenizer")
    return Loaded(build(checkpoint, dtype=dtype, device=device, operations=operations), checkpoint)


def load_text_encoder(
    path: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> TextEncoder:
    """Load a text encoder; its vocabulary comes from the file's metadata or lies beside it.

    ``dtype`` None: the encoder's own for the device. Raises :class:`CheckpointError` for what is no complete
    text encoder, ``ValueError`` where the vocabulary is missing.
    """
    checkpoint = prepare(*read(path), kind="text_encoder")
    vocabulary = checkpoint.tokenizer_json or read_vocabulary(checkpoint.family, Path(path))
    encoder = spec_of(checkpoint.kind, checkpoint.family).encoder
    assert encoder is not None, "every text encoder has one"
    try:
        return encoder(checkpoint.config, checkpoint.tensors, vocabulary, dtype=dtype, device=device)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.source}: {error}") from error


def read_vocabulary(family: str, path: Path) -> str:
    """The ``tokenizers`` JSON that belongs to an encoder file of a family; ``ValueError`` without one."""
    reader = spec_of("text_encoder", family).vocabulary
    assert reader is not None, "every text encoder has one"
    return reader(path)


def check_pairing(transformer: Checkpoint, tokenizer: Checkpoint) -> None:
    """Raise for a tokenizer of whose codes this transformer predicts none; d32 and d32reg look the same."""
    wanted, found = transformer.config, tokenizer.config
    both = f"{tokenizer.source} does not belong to {transformer.source}"
    spec = spec_of(transformer.kind, transformer.family)
    family = spec.tokenizer or transformer.family
    if tokenizer.family != family:
        raise CheckpointError(
            f"{both}: it is of the family {tokenizer.family}, expected {family}. "
            "Choose the tokenizer that the model table of the README names"
        )
    for name, what in spec.pairs:
        asked, has = getattr(wanted, name), getattr(found, name)
        if asked != has:
            raise CheckpointError(
                f"{both}: it has {has} {what}, the transformer predicts {asked}. "
                f"Choose the tokenizer with {asked}"
            )
    pixels = found.stride * wanted.patch
    if transformer.trained is not None and pixels != transformer.trained.pixels_per_token:
        raise CheckpointError(
            f"{both}: with it a token covers {pixels} pixels per side, the transformer was trained with "
            f"{transformer.trained.pixels_per_token}. Choose the tokenizer it was trained with"
        )


def _choose(found: list[Group], source: str, kind: str | None) -> tuple[Group, FamilySpec[Any]]:
    """The set of tensors to load: the first that is recognised, of the wanted kind if there is one."""
    known = [(group, spec) for group in found if (spec := recognise(list(group.tensors), group.prefix))]
    if not known:
        entries: dict[tuple[str, ...], list[str]] = {}
        for group in found:
            entries.setdefault(group.path, []).extend(group.keys)
        raise unknown(max(entries.values(), key=len, default=[]), source)
    wanted = [(group, spec) for group, spec in known if kind in (None, spec.kind)]
    if kind is not None and not wanted:
        raise CheckpointError(
            f"{source}: this is {article(known[0][1].title)}, expected {KINDS[kind]}. "
            "Load it with the loader of its kind, and choose another file here"
        )
    return wanted[0]


def _notes(dropped: Mapping[str, int]) -> tuple[str, ...]:
    """What is not loaded, a note each and at most some."""
    notes = [f"{short(what)} ({count} tensors)" for what, count in dropped.items()]
    return tuple(notes if len(notes) <= _MAX_NOTES else [*notes[:_MAX_NOTES], "and others"])


def _config(
    spec: FamilySpec[Any], detected: headers.ModelConfig, header: headers.Header | None, source: str
) -> headers.ModelConfig:
    """The configuration: from the header where there is one, after comparing it with the shapes."""
    if header is None:
        return detected
    if (header.kind, header.family) != (spec.kind, spec.name):
        named = [(entry.kind, entry.name) for entry in SPECS]
        advice = "" if (header.kind, header.family) in named else " This version does not know that family."
        raise CheckpointError(
            f"{source}: its metadata says {short(header.family)} {short(header.kind)}, its tensors are those "
            f"of {article(spec.title)} ({spec.name} {spec.kind}); expected the two to agree.{advice} "
            "Convert the model again with scripts/convert_checkpoint.py"
        )
    config = headers.read_config(spec.config_type, header.config, source)
    said, seen = config.to_dict(), detected.to_dict()
    for name in said.keys() - set(spec.unseen):
        if said[name] != seen.get(name):
            raise CheckpointError(
                f"{source}: its metadata says {name} = {said[name]}, its tensors have {seen.get(name)}; "
                "expected the two to agree. Convert the model again with scripts/convert_checkpoint.py"
            )
    try:
        if spec.check:
            spec.check(config)
    except ValueError as error:
        raise CheckpointError(
            f"{source}: its metadata cannot be: {error}. Convert the model again with "
            "scripts/convert_checkpoint.py"
        ) from error
    patch = said.get("patch", 1)
    if said.get("bits", patch**2) % patch**2:
        raise CheckpointError(
            f"{source}: its metadata says patch = {patch}, which does not divide {said['bits']} bits per "
            "token; expected 1, or 2 for the patchified layout"
        )
    return config


def _skeleton(checkpoint: Checkpoint, operations: Any, dtype: torch.dtype | None) -> nn.Module:
    """The checkpoint's module without storage."""
    module = spec_of(checkpoint.kind, checkpoint.family).module
    if module is None:
        raise ValueError(
            f"{checkpoint.source}: a {checkpoint.kind} has no module here; use load_text_encoder"
        )
    return module(checkpoint.config, operations=operations, dtype=dtype or torch.float32, device="meta")


def _take(
    checkpoint: Checkpoint, template: nn.Module, device: torch.device | str | None
) -> dict[str, Tensor]:
    """The tensors that ``template`` has, each in its dtype and moved out of the checkpoint."""
    state, tensors = {}, checkpoint.tensors
    for name, like in template.state_dict().items():
        tensor = tensors.pop(name)
        if like.dtype == torch.int8:
            tensor = rows_of(tensor)
        state[name] = tensor.to(device=device, dtype=like.dtype)
    return state
