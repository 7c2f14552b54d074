"""Records what happens inside an Infinity run, with hooks on its modules and nothing changed in the core."""

from types import TracebackType

import torch
from torch import Tensor, nn

from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.models.contract import Drawing, Drawn
from stagevar_core.models.infinity import Infinity
from stagevar_core.network.context import ScaleContext
from stagevar_core.sampling.result import Monitor
from stagevar_core.schedule import Prefix, Scale

from .heads import WatchedHead


class Probe(Monitor):
    """Collects tensors in ``seen`` under the names of the fixtures while it is open.

    ``scales``: whether names carry the scale, as in a cached run, or not, as in a one-pass run.
    """

    def __init__(self, model: Infinity, conditioning: TextConditioning, *, scales: bool = True) -> None:
        self.model, self.conditioning, self.scales = model, conditioning, scales
        self.seen: dict[str, Tensor] = {}
        self._handles: list = []
        self._place = ""
        self._word_input: Tensor | None = None
        self._modulated: list[Tensor] = []

    def __enter__(self) -> "Probe":
        model = self.model
        watch = self._handles.append
        watch(model.text_pool.register_forward_pre_hook(self._text_normed))
        watch(model.text_pool.register_forward_hook(self._text_pooled))
        watch(model.text_mlp.register_forward_hook(self._text_projected))
        watch(model.block_ada.register_forward_hook(self._modulation))
        watch(model.word_embed.register_forward_pre_hook(self._embedding))
        for block in model.blocks:
            watch(block.register_forward_pre_hook(self._block_in))
            watch(block.register_forward_hook(self._block_out))
        # The drawn bits are not always those of the result: leaked bits replace them.
        head = WatchedHead(model.drawing_head(), self._drawn)
        model.drawing_head = lambda refine: head
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        del self.model.drawing_head

    def logits(self, scale: Scale, raw: Tensor, guided: Tensor) -> None:
        self.seen[f"{self._place}logits_raw"] = raw
        self.seen[f"{self._place}logits_post"] = guided

    def _pack(self, padded: Tensor) -> Tensor:
        """Rows without their padding, one after the other: prompts, then their counterparts."""
        texts, negative = self.conditioning.features, self.conditioning.negative
        lengths = [len(text) for text in texts] + [len(text) for text in negative or texts]
        return torch.cat([row[:length] for row, length in zip(padded, lengths, strict=False)])

    def _text_normed(self, module: nn.Module, arguments: tuple) -> None:
        self.seen["text.after_norm"] = self._pack(arguments[0])

    def _text_pooled(self, module: nn.Module, arguments: tuple, output: Tensor) -> None:
        self.seen["text.pooled_cond"] = output
        self._modulated = []

    def _text_projected(self, module: nn.Module, arguments: tuple, output: Tensor) -> None:
        self.seen["text.ca_kv_input"] = self._pack(output)

    def _modulation(self, module: nn.Module, arguments: tuple, output: Tensor) -> None:
        self._modulated.append(output)  # row by row
        self.seen["text.shared_ada"] = torch.cat(self._modulated).unflatten(-1, (1, 6, -1))

    def _embedding(self, module: nn.Module, arguments: tuple) -> None:
        self._word_input = arguments[0]

    def _block_in(self, module: nn.Module, arguments: tuple) -> None:
        x, ctx, layer = arguments
        if layer == 0:
            before = isinstance(ctx.scale, Prefix)
            self._place = "source." if before else f"scale{ctx.scale.index:02d}." if self.scales else ""
            self.seen[f"{self._place}block_in"] = x
            if self._word_input is not None:
                self.seen[f"{self._place}{'tokens' if before else 'next_input'}"] = self._word_input

    def _block_out(self, module: nn.Module, arguments: tuple, output: Tensor) -> None:
        _, ctx, layer = arguments
        name = f"{self._place}block{layer:02d}"
        self.seen[f"{name}_out"] = output
        if self.conditioning.source is not None and ctx.cache is not None:
            self._source_keys(name, ctx, layer)

    def _source_keys(self, name: str, ctx: ScaleContext, layer: int) -> None:
        """What the picture to edit left in the cache, and what the first block sees of it at a scale."""
        before = isinstance(ctx.scale, Prefix)
        if before or layer == 0:
            none = torch.empty(ctx.cache.rows, self.model.config.heads, 0, self.model.config.head_dim)
            seen = ctx.cache.append(layer, torch.stack((none, none)), ctx.scale, keep=False)
            for part, tensor in zip("kv", seen, strict=True):
                kept = tensor[:, :, : ctx.scale.tokens].clone()
                self.seen[f"{name}_{part}" if before else f"{name}_source_{part}"] = kept

    def _drawn(self, drawing: Drawing, drawn: Drawn) -> None:
        self.seen[f"{self._place}hidden"] = drawing.hidden
        self.seen[f"{self._place}bits"] = drawing.quantizer.to_tokens(drawn.kept)
