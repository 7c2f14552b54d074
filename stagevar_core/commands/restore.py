"""The command ``restore``: a small or damaged picture, large and clean."""

import argparse
import logging
import time
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from ..autoencoders.tiles import MAX_OVERLAP, enlarged, in_tiles, restored_size, tile_count
from ..checkpoints.files import read
from ..checkpoints.load import build, check_pairing, load_text_encoder, prepare
from ..checkpoints.restoring import check_restores
from ..checks import whole
from ..conditioning.t5 import MAX_TOKENS
from ..conditioning.types import TextConditioning
from ..devices import DTYPES, default_device, default_dtype
from ..models.companions import Tokenizer, check_text
from ..models.contract import Noise, signed
from ..models.restoring import RestoringLayout
from ..network.packing import pack
from ..sampling.noise import SeededNoise
from ..sampling.restoring import Restorer
from .options import Commands, add_device_options, check_seed, device_of
from .output import output_file, save

_LOG = logging.getLogger(__name__)


class Models(NamedTuple):
    """What restores tiles of ``side`` pixels."""

    restorer: Restorer
    tokenizer: Tokenizer
    side: int

    @torch.inference_mode()
    def tile(self, pixels: Tensor, noise: Noise) -> Tensor:
        """One tile (1, side, side, 3) in 0..1."""
        parameter = next(self.tokenizer.parameters())
        image = (pixels.movedim(-1, 1) * 2.0 - 1.0).to(parameter.device, parameter.dtype)
        f_hat = self.restorer(self.tokenizer.encode(image).float(), noise).f_hat
        return (self.tokenizer.decode(f_hat.to(parameter.dtype)).float().movedim(1, -1) + 1.0) / 2.0


def add_parser(commands: Commands) -> None:
    """Register the command."""
    restore = commands.add_parser("restore", help="make a small or damaged picture large and clean")
    restore.add_argument("picture", type=Path, metavar="PICTURE", help="an image file")
    restore.add_argument("--out", type=Path, required=True, metavar="FILE", help="the restored picture")
    restore.add_argument("--scale", type=float, default=4.0, help="times larger, 1 to 8 (default: 4)")
    restore.add_argument("--overlap", type=int, default=128, help="of tiles, in pixels (default: 128)")
    restore.add_argument("--seed", type=int, default=0, help="of the details, which are drawn")
    restore.add_argument("--prompt", help="what it shows; needs --text-encoder (default: the null text)")
    group = restore.add_argument_group("models")
    group.add_argument("--transformer", type=Path, required=True, metavar="FILE", help="VARestorer")
    group.add_argument("--tokenizer", type=Path, required=True, metavar="FILE")
    group.add_argument("--text-encoder", type=Path, metavar="FILE")
    add_device_options(group)
    restore.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Restore and save a picture."""
    check_seed(arguments.seed)
    whole("--overlap", arguments.overlap, 0, MAX_OVERLAP, f"0 to {MAX_OVERLAP} pixels")
    output_file(arguments.out)
    picture = read_picture(arguments.picture)
    size = restored_size(picture.shape[:2], arguments.scale)
    started = time.perf_counter()
    models = load(arguments)
    overlap = min(arguments.overlap, models.side // 2)
    out, noise = torch.empty(*size, 3), SeededNoise(arguments.seed, 1)
    with tqdm(total=tile_count(size, models.side, overlap), unit="tile") as bar:

        def change(tile: Tensor) -> Tensor:
            changed = models.tile(tile, noise)
            bar.update()
            return changed

        in_tiles(enlarged(picture, size), models.side, overlap, change, out)
    image = out.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8).numpy()
    path = save(image, arguments.out, seed=arguments.seed)
    print(f"{path}  {size[1]} x {size[0]}, {time.perf_counter() - started:.1f} s")


def read_picture(path: Path) -> np.ndarray:
    """The colours of an image file, upright, (H, W, 3) uint8; ``ValueError`` for what is no picture."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if "A" in upright.getbands():
                _LOG.warning("%s: its alpha is left out", path)
            return np.asarray(upright.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path}: not a picture that can be read ({error}); expected a PNG or JPEG"
        ) from error


def load(arguments: argparse.Namespace) -> Models:
    """The models that the options name; ``ValueError`` for files that do not restore or do not fit."""
    device = device_of(arguments) or default_device()
    transformer = prepare(*read(arguments.transformer), kind="transformer")
    codes = prepare(*read(arguments.tokenizer), kind="tokenizer")
    check_restores(transformer, True)
    check_pairing(transformer, codes)
    assert transformer.trained is not None, "a restoring file has its sizes"
    trained, chosen = transformer.trained, DTYPES.get(arguments.dtype)
    dtypes = [chosen or default_dtype(device, part.parameters) for part in (transformer, codes)]
    model = signed(pack(build(transformer, dtype=dtypes[0], device=device, weights=arguments.weights)))
    conditioning = None
    if arguments.prompt is not None:
        if arguments.text_encoder is None:
            raise ValueError("--prompt needs the text encoder that belongs to the model; pass --text-encoder")
        encoder = load_text_encoder(arguments.text_encoder, device=device)
        check_text(model, encoder)
        limit = min(MAX_TOKENS, model.longest_text or MAX_TOKENS)
        conditioning = TextConditioning(encoder.encode([arguments.prompt], max_tokens=limit))
    tokenizer = cast(Tokenizer, build(codes, dtype=dtypes[1], device=device))
    layout = RestoringLayout.of(trained)
    quantizer = tokenizer.quantizer(model.config.patch)
    restorer = Restorer(model, layout, quantizer, conditioning, device=device)
    return Models(restorer, tokenizer, trained.image_size(layout.schedule)[0])
