"""Whether what the header of a file of ours says goes with the model that its tensors are."""

from ..conditioning.vocabulary import parse_vocabulary
from ..schedule import AspectTable
from .errors import CheckpointError
from .header import PER_SCALE, Header, ModelConfig


def check_header(header: Header, config: ModelConfig, trained: AspectTable | None, source: str) -> None:
    """:class:`CheckpointError` for lists, names or a vocabulary of another model than this one."""
    for name in PER_SCALE:
        value = header.defaults.get(name)
        if trained is None or not isinstance(value, list):
            continue
        scales, whole = max(trained.budgets.values()), max(map(len, trained.grids.values()))
        if not scales <= len(value) <= max(scales, whole):
            raise CheckpointError(
                f"{source}: its metadata lists {len(value)} values for defaults.{name}; expected one, or "
                f"one for each of {scales} scales. Convert the model again with "
                "scripts/convert_checkpoint.py"
            )
    if header.classes and len(header.classes) != config.to_dict().get("classes"):
        raise CheckpointError(
            f"{source}: its metadata names {len(header.classes)} classes, the model has "
            f"{config.to_dict().get('classes', 'none')}; expected a name for each. Convert the model again "
            "with scripts/convert_checkpoint.py"
        )
    if header.tokenizer_json is not None and header.kind == "text_encoder":
        try:
            parse_vocabulary(header.tokenizer_json, config.to_dict()["vocab_size"])
        except ValueError as error:
            raise CheckpointError(f"{source}: {error}") from error
