"""Core models inside ComfyUI: built with its operations, run with its attention, sized for its memory."""

import inspect
import logging
import sys
from types import ModuleType
from typing import Any, cast

import comfy.ldm.modules.attention as host_attention
import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import torch
from comfy.cli_args import args
from comfy.model_patcher import ModelPatcher
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from torch import Tensor, nn

from ...stagevar_core import devices
from ...stagevar_core.checkpoints.detect import spec_of
from ...stagevar_core.checkpoints.load import Checkpoint
from ...stagevar_core.devices import SMALL, default_dtype, fast_bfloat16
from ...stagevar_core.network.attention import AttentionFn, attend
from ...stagevar_core.network.eight_bit import rows_of
from .attached import HostTransformer, Patcher
from .eight_bit import narrow

_LOG = logging.getLogger(__name__)
DEFAULT = "default"
# Without float16, which overflows in these models.
WEIGHT_DTYPES = {
    DEFAULT: None,
    **{name: devices.WEIGHT_DTYPES[name] for name in ("float32", "bfloat16", "fp8_e4m3fn")},
}
MODEL_DTYPES = {**WEIGHT_DTYPES, "int8": devices.WEIGHT_DTYPES["int8"]}
"""Of transformers; text encoders have no layers in 8 bits."""


def load_transformer(checkpoint: Checkpoint, weight_dtype: str) -> Patcher:
    """The transformer of a checkpoint, which gives its tensors up; weights on the offload device.

    ``weight_dtype``: one of ``MODEL_DTYPES``.
    """
    device = mm.get_torch_device()
    parameters = checkpoint.parameters
    chosen = MODEL_DTYPES[weight_dtype]
    storage = storage_dtype(None if chosen == torch.int8 else chosen, parameters, device)
    compute = compute_dtype(storage, device)
    operations, module = host_operations(storage, compute, device), module_of(checkpoint)
    network = module(
        checkpoint.config, operations=operations, dtype=storage, device="meta", compute_dtype=compute
    )
    cast(HostTransformer, network).checkpoint = checkpoint
    patcher = cast(Patcher, wrap(network, device, mm.unet_offload_device()))
    plain = module(checkpoint.config, dtype=storage, device="meta")
    if chosen == torch.int8:
        narrow(network, plain, device)
    fill(network, plain, checkpoint.tensors, compute)
    _LOG.info(
        "StageVAR: %s: %s with %.0fM parameters, %s weights, %s compute",
        checkpoint.source,
        module.__name__,
        parameters / 1e6,
        str(storage if chosen is None else chosen).removeprefix("torch."),
        str(compute).removeprefix("torch."),
    )
    return patcher


def module_of(checkpoint: Checkpoint) -> type[nn.Module]:
    """The class of a transformer or tokenizer; raises ``ValueError`` for what has none here."""
    spec = spec_of(checkpoint.kind, checkpoint.family)
    if spec is None or spec.module is None:
        raise ValueError(
            f"{checkpoint.source} is a {checkpoint.kind} of the family {checkpoint.family}; expected a "
            "transformer or a tokenizer. Choose another file"
        )
    return spec.module


def storage_dtype(chosen: torch.dtype | None, parameters: int, device: torch.device) -> torch.dtype:
    """The dtype of the weights: the user's choice, else bfloat16 where the device has it; never float16."""
    if chosen is not None:
        return chosen
    if parameters < SMALL:
        return torch.float32
    if mm.is_device_cpu(device) and not args.fp32_unet:
        return default_dtype(device, parameters)  # ComfyUI has float32 for every CPU
    return mm.unet_dtype(
        device=device, model_params=parameters, supported_dtypes=[torch.bfloat16, torch.float32]
    )


def compute_dtype(storage: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of the matrix products."""
    if storage == torch.float32 or (storage == torch.bfloat16 and mm.is_device_cpu(device)):
        return storage  # chosen on the CPU it halves the cache; PyTorch computes it everywhere
    if mm.is_device_cpu(device) and fast_bfloat16():
        return torch.bfloat16
    cast = mm.unet_manual_cast(storage, device, [torch.bfloat16, torch.float32])
    return cast or storage


def host_operations(
    storage: torch.dtype, compute: torch.dtype | None, device: torch.device
) -> type[comfy.ops.disable_weight_init]:
    """ComfyUI's layers, which cast and move their weights as they are used."""
    known = inspect.signature(comfy.ops.pick_operations).parameters
    options: dict[str, Any] = {"load_device": device} if "load_device" in known else {}
    return comfy.ops.pick_operations(storage, compute, **options)


def wrap(network: nn.Module, load_device: torch.device, offload_device: torch.device) -> ModelPatcher:
    """The patcher that ComfyUI moves, patches and clones."""
    kind: type[ModelPatcher] = newer(comfy.model_patcher, "CoreModelPatcher") or ModelPatcher
    return kind(network.eval(), load_device=load_device, offload_device=offload_device)


def fill(network: nn.Module, plain: nn.Module, tensors: dict[str, Tensor], small: torch.dtype) -> None:
    """Load ``tensors``, each in the dtype its parameter declares, and empty the mapping on the way.

    ``plain``: the same network of torch.nn layers on the meta device, since the host's layers may have no
    weights before loading. ``small``: the dtype of what fp8 storage would ruin, the biases.
    """
    declared = {name: parameter.dtype for name, parameter in plain.named_parameters()}
    ready = {}
    for name, dtype in declared.items():
        tensor = tensors.pop(name)
        if dtype == torch.int8:
            tensor = rows_of(tensor)
        ready[name] = tensor.to(small if dtype.itemsize == 1 and tensor.dim() < 2 else dtype)
    network.load_state_dict(ready, strict=True, assign=True)
    network.requires_grad_(False)
    archive = newer(mm, "archive_model_dtypes")
    if archive is not None:
        archive(network)


def attention_for(transformer_options: dict[str, Any]) -> AttentionFn:
    """The attention the user chose for ComfyUI, in the form the core calls; the core's own on a bare CPU."""
    chosen = args.use_quad_cross_attention or "optimized_attention_override" in transformer_options

    def attention(
        q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, mask: Tensor | None = None
    ) -> Tensor:
        fallback = host_attention.optimized_attention is host_attention.attention_sub_quad
        if q.device.type == "cpu" and fallback and not chosen:
            # Nobody chose this one: ComfyUI takes it where there is no GPU, and it is the slowest there.
            return attend(q, k, v, scale=scale, mask=mask)
        # ComfyUI's attention divides by sqrt(head_dim) and has no parameter for it.
        if scale is not None:
            q = q * (scale * q.shape[-1] ** 0.5)
        function = host_attention.optimized_attention
        if mask is not None:
            # Some fast kernels take no mask, and not all take a boolean one.
            function = host_attention.optimized_attention_for_device(q.device, mask=True)
            hidden, lowest = mask, -torch.finfo(q.dtype).max
            if mask.dtype == torch.bool:
                hidden = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, lowest)
            mask = hidden.to(q.dtype).clamp(min=lowest).expand(-1, -1, q.shape[2], -1)
        return function(
            q,
            k,
            v,
            q.shape[1],
            mask=mask,
            skip_reshape=True,
            skip_output_reshape=True,
            transformer_options=transformer_options,
        )

    return attention


def free_memory(device: torch.device) -> int:
    """Bytes that a device can still give."""
    return cast(int, mm.get_free_memory(device))  # two numbers only where both are asked for


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device that the core or ComfyUI knows."""
    also = newer(mm, "is_oom")
    return devices.is_out_of_memory(error) or (also is not None and also(error))


def newer(module: ModuleType, name: str) -> Any:
    """What newer releases of ComfyUI have in a module, None where this one has not."""
    return vars(module).get(name)


def send(event: str, data: dict[str, Any]) -> None:
    """An event of ours to the page that queued the run, with the node that runs; nothing without a server."""
    context = get_executing_context()
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    client = getattr(server, "client_id", None)
    if server is None or client is None or context is None:
        return
    shown = get_progress_state().dynprompt.get_display_node_id(context.node_id)
    place = {"node": context.node_id, "display_node": shown, "prompt_id": context.prompt_id}
    server.send_sync(event, {**place, **data}, client)
