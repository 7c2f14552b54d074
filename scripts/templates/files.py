"""The official files that workflows load, with their links and folders."""

from __future__ import annotations

from typing import NamedTuple


class File(NamedTuple):
    """A file to download: the value of its loader, its link, its folder, and the shards it is one of."""

    value: str
    url: str
    folder: str
    shards: int = 1

    def hints(self) -> list[dict[str, str]]:
        """What the page lists as missing."""
        first = f"00001-of-{self.shards:05d}"
        parts = [f"{i:05d}-of-{self.shards:05d}" for i in range(1, self.shards + 1)]
        return [
            {
                "name": self.value.replace(first, part),
                "url": self.url.replace(first, part),
                "directory": self.folder,
            }
            for part in parts
        ]


_INFINITY = "https://huggingface.co/FoundationVision/Infinity/resolve/main/"
_VAR = "https://huggingface.co/FoundationVision/var/resolve/main/"
_STAR = "https://huggingface.co/taocrayon/STAR/resolve/main/"
_HART = "https://huggingface.co/mit-han-lab/hart-0.7b-1024px/resolve/main/"
_QWEN = "https://huggingface.co/mit-han-lab/Qwen2-VL-1.5B-Instruct/resolve/main/"
_EDIT = "https://huggingface.co/HiDream-ai/VAREdit/resolve/main/"
_RESTORE = "https://huggingface.co/EvanEternal/VARestorer/resolve/main/weights/"
_T5 = "https://huggingface.co/google/flan-t5-xl/resolve/main/"


def _file(place: str, name: str, folder: str) -> File:
    return File(name, place + name, folder)


FLAN = File(
    "flan-t5-xl/model-00001-of-00002.safetensors",
    f"{_T5}model-00001-of-00002.safetensors",
    "text_encoders",
    2,
)
BIG = "infinity_8b_weights/model-00001-of-00004.safetensors"
VAR = (
    _file(_VAR, "var_d30.pth", "diffusion_models"),
    _file(_VAR, "vae_ch160v4096z32.pth", "vae"),
)
STAR = (
    _file(_STAR, "star_rope_d30_1024_drop_3-ar-ckpt-ep1-iter21000.pth", "diffusion_models"),
    VAR[1],
    File("star_clip/model.safetensors", f"{_STAR}CLIP/text_encoder/model.safetensors", "text_encoders"),
)
HART = (
    File("hart_0.7b/ema_model.bin", f"{_HART}llm/ema_model.bin", "diffusion_models"),
    File("hart_0.7b/model.safetensors", f"{_HART}tokenizer/model.safetensors", "vae"),
    File("hart_qwen2/model.safetensors", f"{_QWEN}model.safetensors", "text_encoders"),
)
_SDXL = "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/"
_SWITTI = "https://huggingface.co/yresearch/"


def _hub(name: str, folder: str) -> File:
    return File(f"{name}/model.safetensors", f"{_SWITTI}{name}/resolve/main/model.safetensors", folder)


SWITTI = (
    _hub("Switti-1024", "diffusion_models"),
    _hub("VQVAE-Switti", "vae"),
    File("clip_l/model.safetensors", f"{_SDXL}text_encoder/model.safetensors", "text_encoders"),
    File("clip_g/model.safetensors", f"{_SDXL}text_encoder_2/model.safetensors", "text_encoders"),
)
INFINITY_2B = (
    _file(_INFINITY, "infinity_2b_reg.pth", "diffusion_models"),
    _file(_INFINITY, "infinity_vae_d32reg.pth", "vae"),
    FLAN,
)
INFINITY_8B = (
    File(BIG, _INFINITY + BIG, "diffusion_models", 4),
    _file(_INFINITY, "infinity_vae_d56_f8_14_patchify.pth", "vae"),
    FLAN,
)
EDIT_2B = (_file(_EDIT, "2B-512.pth", "diffusion_models"), *INFINITY_2B[1:])
EDIT_8B = (_file(_EDIT, "8B-1024.pth", "diffusion_models"), *INFINITY_8B[1:])
RESTORER = (_file(_RESTORE, "varestorer.pth", "diffusion_models"), INFINITY_2B[1])
EDITS = {512: "edit pictures, 512 px", 1024: "edit pictures, 1024 px"}  # tasks, as the loaders call them
