"""Pictures of which a part is drawn anew, as edits: from images and masks, or from core latents."""

from typing import NamedTuple

from torch import Tensor

from ...stagevar_core.checks import inside
from ...stagevar_core.sampling.editing import scale_masks
from ...stagevar_core.sampling.state import RunState
from ...stagevar_core.schedule import ScaleSchedule
from . import latents, sockets
from .carried import carried
from .edit import Edit
from .pairing import Pair
from .pictures import fitted, fitted_mask

_NO_MASK = (
    "without a noise mask only the size of the latent counts; Set Latent Noise Mask says what is drawn anew"
)
_NO_PICTURE = "the latent is empty, so its noise mask has no effect; connect VAE Encode"
_ANEW = "is drawn anew, all but its tone"


class Start(NamedTuple):
    """What a run begins with. ``size``: wanted (height, width) in pixels. ``batch``: images."""

    size: tuple[int, int]
    batch: int
    edit: Edit | None = None
    notes: tuple[str, ...] = ()


def masked_edit(
    pair: Pair, schedule: ScaleSchedule, codes: list[Tensor], mask: Tensor, notes: tuple[str, ...] = ()
) -> Edit:
    """An edit of pictures' codes; ``mask`` (rows, height, width) is 1 where they are drawn anew."""
    masks = scale_masks(1.0 - mask, schedule, pair.network.config.patch)
    notes = (*notes, *_selected(masks[-1]))
    size = pair.trained.image_size(schedule)
    return Edit(schedule, tuple(codes), tuple(masks), size, pair.vae.checkpoint.source, notes)


def image_edit(pair: Pair, image: Tensor, mask: Tensor, notes: tuple[str, ...] = ()) -> Edit:
    """An edit of images (B, H, W, C) in 0..1 and a mask of any size, scaled and cut as the model needs."""
    with inside("image: its "):
        schedule = pair.trained.snap(*image.shape[1:3])
    size = pair.trained.image_size(schedule)
    codes = pair.vae.codes(fitted(image, size), schedule, pair.network.config.patch)
    return masked_edit(pair, schedule, codes, fitted_mask(mask, image.shape[1:3], size), notes)


def latent_start(pair: Pair, value: object, batch: int, most: int) -> Start:
    """What a core latent asks for: its size, and where it has a noise mask an edit of its pictures.

    As with core's samplers every picture of it is made; ``batch`` may be larger, ``most`` is the limit.
    Raises ``ValueError`` for a latent of another kind of model.
    """
    samples, given = latents.samples_of("latent", value), sockets.latent("latent", value)
    notes, mask = _batch_notes(len(samples), batch, most), latents.noise_mask(given)
    batch = max(batch, len(samples))
    if latents.is_empty(samples):
        unused = () if mask is None else (_NO_PICTURE,)
        return Start(latents.empty_size("latent", given), batch, None, (*notes, *unused))
    own, run = latents.accumulated("latent", samples, pair.vae), _run_of(samples, pair)
    stride = pair.vae.config.stride
    size = (own.shape[2] * stride, own.shape[3] * stride)
    if run is not None and not run.finished:
        size = pair.trained.image_size(run.schedule)  # drafts are smaller than what becomes of them
    if mask is None:
        return Start(size, batch, None, (*notes, _NO_MASK))
    drawn = None if run is None else drawn_codes(run)
    if drawn is not None:
        return Start(size, batch, masked_edit(pair, drawn[0], drawn[1], fitted_mask(mask, size, size)), notes)
    return Start(size, batch, _latent_edit(pair, own, mask, size), notes)


def drawn_codes(run: RunState) -> tuple[ScaleSchedule, list[Tensor]] | None:
    """The codes of finished runs, which encoding the picture again would change; else None.

    Scales that a preset skipped have none.
    """
    if not run.finished or not run.uniform:
        return None
    codes = [scale.drawn for scale in run.joined() if scale.drawn is not None and scale.weights is None]
    return (run.schedule, codes) if len(codes) == len(run.schedule) else None


def _run_of(samples: Tensor, pair: Pair) -> RunState | None:
    """The runs that a latent holds; None where they are not of these sizes, or it is a picture and no run.

    Of several runs, and of what other nodes made of runs, the picture still counts.
    """
    try:
        run = carried(samples, pair.vae.latent_channels)
        fits = run is not None and pair.trained.snap(*pair.trained.image_size(run.schedule)) == run.schedule
    except ValueError:
        return None
    return run if fits else None


def _latent_edit(pair: Pair, own: Tensor, mask: Tensor, size: tuple[int, int]) -> Edit:
    """The codes of a latent (B, C, h, w) for pictures of ``size``; where the model has no latent so large,
    those of its decoded pictures.
    """
    with inside("latent: its "):
        schedule = pair.trained.snap(*size)
    trained, stride = pair.trained.image_size(schedule), pair.vae.config.stride
    given = (own.shape[2] * stride, own.shape[3] * stride)
    if given == trained:
        codes, _ = pair.vae.stored(own, schedule, pair.network.config.patch)
        return masked_edit(pair, schedule, codes, fitted_mask(mask, size, size))
    found = "no size of the model" if given == size else "a draft"
    note = (
        f"the latent is {given[1]} x {given[0]}, {found}: its picture was scaled to "
        f"{trained[1]} x {trained[0]} and encoded again"
    )
    pictures = pair.vae.decode(own)
    return image_edit(pair, pictures if given == size else fitted(pictures, size), mask, (note,))


def _batch_notes(pictures: int, batch: int, most: int) -> tuple[str, ...]:
    if pictures > most:
        raise ValueError(f"latent: found {pictures} pictures; expected up to {most}; use Latent From Batch")
    if 1 < batch < pictures:
        return (f"batch_size {batch} is set aside: the latent holds {pictures} pictures",)
    return ()


def _selected(kept: Tensor) -> tuple[str, ...]:
    """That a mask selects nothing or everything, from where the last scale stays (pictures or 1, h, w)."""
    each = kept.flatten(1)
    cases = (("nothing", each.all(1), "stays as it is"), ("everything", ~each.any(1), _ANEW))
    notes = []
    for said, found, then in cases:
        numbers = [str(number) for number, hit in enumerate(found.tolist()) if hit]
        if len(numbers) == len(kept):
            notes.append(f"the mask selects {said}; the picture {then}")
        elif numbers:
            places = ", ".join(numbers)
            notes.append(f"the mask selects {said} of picture {places} (0 is the first), which {then}")
    return tuple(notes)
