"""Checks of what is refused or said instead of a wrong picture; `test_guards.py` starts it.

python inside_guards.py COMFYUI PACK          prints one line per check that passed
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

from checking import run_checks
from pack_loader import load_pack

COMFYUI, PACK = sys.argv[1:3]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)


def refused(call: Any, *arguments: Any, **options: Any) -> str:
    """The message of the ``ValueError`` with which a call is refused: one line."""
    try:
        call(*arguments, **options)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 500, error
        return str(error)
    raise AssertionError(f"{call} took {arguments} {options}")


def check_sockets() -> None:
    """A value in place of a link is refused by the input's name, and what belongs there passes."""
    import torch
    from pack.nodes.editing import EditNode
    from pack.nodes.host import sockets
    from pack.stagevar_core.acceleration.schedule_file import StageSchedule

    kinds = ("image", "mask", "conditioning", "latent", "vae", "model", "schedule", "report", "edit", "clip")
    literals = (None, 5, 1.5, True, "a red ball", "x" * 10_000, [], [1, 2, 3], {}, {"samples": 5}, object())
    for kind in kinds:
        for value in literals:
            said = refused(getattr(sockets, kind), "there", value)
            assert said.startswith("there: found ") and "; expected " in said and "; connect " in said, said
    tensor, whole = torch.zeros(1, 4, 4, 3), torch.zeros(4, 4)
    for kind, value in (
        ("image", tensor),
        ("mask", whole),
        ("mask", whole[None]),
        ("conditioning", [[tensor, {}]]),
        ("latent", {"samples": tensor}),
        ("schedule", StageSchedule()),
    ):
        assert getattr(sockets, kind)("there", value) is value
    for value in (tensor[0], tensor[..., :1], tensor[:0], tensor.byte(), torch.zeros(1, 0, 4, 3)):
        assert "shape" in refused(sockets.image, "image", value)
    model, vae = loaded()
    right = {"model": model, "vae": vae, "image": tensor, "mask": whole}
    for name in right:
        for value in literals:
            assert refused(EditNode.execute, **{**right, name: value}).startswith(f"{name}: found")


def check_tiles() -> None:
    """Without overlap tiles lie side by side, as in core; one that leaves nothing of a tile is refused."""
    import comfy.sd
    import torch

    _, vae = loaded()
    stride, draw = vae.config.stride, torch.Generator().manual_seed(0)
    latent = torch.randn(1, vae.latent_channels, 16, 12, generator=draw)
    core = comfy.sd.VAE.decode_tiled_(vae, latent, 4, 4, 0)
    assert torch.equal(vae.decode_tiled(latent, tile_x=4, tile_y=4, overlap=0), core.movedim(1, -1))
    whole, odd = vae.decode(latent), []
    for tile, overlap in ((4, 0), (5, 1), (3, 0), (1, 0), (0, 0), (2, None), (None, None), (64, 1), (7, 2)):
        options = {"tile_x": tile, "tile_y": tile, "overlap": overlap, "tile_t": 8, "overlap_t": 4}
        odd.append(
            vae.decode_tiled(latent, **{name: value for name, value in options.items() if value is not None})
        )
        assert odd[-1].shape == whole.shape and odd[-1].isfinite().all()
    assert torch.allclose(odd[-2], whole, atol=1e-5)
    assert "overlap is 2 with tiles of 4" in refused(vae.decode_tiled, latent, tile_x=4, tile_y=4, overlap=2)

    pixels = torch.rand(1, 16 * stride, 12 * stride, 3, generator=draw)
    features = vae.features(pixels)
    for tile, overlap in ((64, 0), (64, 16), (70, 20), (100, 5), (1, 0), (None, None), (4096, 4096)):
        options = {"tile_x": tile, "tile_y": tile, "overlap": overlap, "tile_t": 8, "overlap_t": 4}
        found = vae.encode_tiled(
            pixels, **{name: value for name, value in options.items() if value is not None}
        )
        assert found.shape == features.shape and found.isfinite().all(), (tile, overlap)
    for overlap in (32, 64, 96, 4096):
        assert "overlap is" in refused(vae.encode_tiled, pixels, tile_x=64, tile_y=64, overlap=overlap)


def check_numbers() -> None:
    """NaN or infinity in weights, features, latents and pictures is said, by whose it is."""
    import torch
    from pack.nodes.host import files
    from pack.nodes.loaders import LoadTextEncoder

    model, vae = loaded()
    clip = LoadTextEncoder.execute(files.EMBEDDED).args[0]
    text = clip.encode_from_tokens_scheduled(clip.tokenize("a red circle"))
    broken = clip.encode_from_tokens_scheduled(clip.tokenize("a (red:nan) circle"))
    assert "features of prompt 1 hold NaN" in refused(sample, model, vae, broken)
    assert "features of negative prompt 1 hold NaN" in refused(sample, model, vae, text, negative=broken)
    latent, _ = sample(model, vae, text)
    picture = vae.decode(latent)
    for value in (torch.nan, torch.inf, -torch.inf):
        for weight, call, words in (
            (model.model.blocks[0].ffn.fc1.weight, lambda: sample(model, vae, text), "transformer"),
            (tokenizer(vae).decoder.conv_in.weight, lambda: vae.decode(latent), "vae: the tokenizer "),
            (tokenizer(vae).decoder.conv_out.bias, lambda: vae.decode(latent), "vae: the tokenizer "),
            (tokenizer(vae).decoder.conv_out.bias, lambda: vae.decode_tiled(latent), "vae: the tokenizer "),
            (tokenizer(vae).encoder.conv_in.weight, lambda: vae.encode(picture), "vae: the encoder"),
            (tokenizer(vae).encoder.conv_out.bias, lambda: vae.encode_tiled(picture), "vae: the encoder"),
        ):
            before, weight.data.view(-1)[0] = weight.data.view(-1)[0].item(), value
            assert words in refused(call)
            weight.data.view(-1)[0] = before
        spoiled, pixels = latent.clone(), picture.clone()
        spoiled[0, 0, 2, 2] = pixels[0, 3, 3, 0] = value
        assert refused(vae.decode, spoiled).startswith("samples: the latent holds NaN")
        assert refused(vae.encode, pixels).startswith("pixels: the image holds NaN")
        mask = torch.ones(1, 8, 8)
        assert refused(edited, model, vae, pixels, mask).startswith("image: found NaN")
        mask[0, 0, 0] = value
        assert refused(edited, model, vae, picture, mask).startswith("mask: found NaN")
    assert torch.equal(vae.decode(latent), picture) and torch.equal(sample(model, vae, text)[0], latent)
    assert "samples" in refused(vae.decode, latent[:0]) and "pixels" in refused(vae.encode, picture[:0])
    assert "pixels" in refused(vae.encode, picture[..., :1])


def check_pictures() -> None:
    """Pictures of any shape are edited; an empty mask is said on the sampler; foreign sizes are said."""
    import logging

    import torch
    from pack.nodes.host import files
    from pack.nodes.loaders import LoadTextEncoder

    model, vae = loaded()
    clip = LoadTextEncoder.execute(files.EMBEDDED).args[0]
    text = clip.encode_from_tokens_scheduled(clip.tokenize("a red circle"))
    for height, width, channels in ((1, 16384, 3), (128, 1, 3), (1, 1, 4), (16384, 1, 3), (130, 90, 4)):
        picture = torch.full((2, height, width, channels), 0.5)
        for mask in (torch.full((13, 128), 0.6), torch.ones(3, height, width), torch.ones(1, 1)):
            edit = edited(model, vae, picture, mask)
            assert all("anew, all but its tone" in note for note in edit.notes) and edit.notes
            assert len(edit.codes[0]) == 2
    assert "image: its width is 16385; expected 1 to 16384" in refused(
        edited, model, vae, torch.zeros(1, 1, 16385, 3), torch.ones(1, 1)
    )
    picture = torch.full((1, 128, 128, 3), 0.5)
    edit = edited(model, vae, picture, torch.zeros(1, 64, 64))
    assert edit.notes == ("the mask selects nothing; the picture stays as it is",)
    _, report = sample(model, vae, text, edit=edit)
    assert report["notes"][0] == edit.notes[0]
    some = torch.zeros(2, 128, 128)
    some[0, :64] = 1.0
    assert "picture 1" in edited(model, vae, picture.repeat(2, 1, 1, 1), some).notes[0]

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    vae.checkpoint.trained = model.model.checkpoint.trained
    codes = vae.quantizer().accumulate(edit.codes, edit.schedule)
    assert torch.allclose(vae.encode(picture), codes, atol=1e-5) and not said
    vae.encode(torch.full((1, 160, 144, 3), 0.5))
    logging.getLogger().removeHandler(handler)
    assert any("144x160 is no size of" in line and "128x128" in line for line in said), said


def check_steering() -> None:
    """What this model cannot follow is said on the sampler, by what the artist connected."""
    import torch
    from pack.nodes.host import files
    from pack.nodes.loaders import LoadTextEncoder

    import nodes as core

    model, vae = loaded()
    clip = LoadTextEncoder.execute(files.EMBEDDED).args[0]

    def encode(text: str) -> list:
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    def notes(positive: list, **inputs: Any) -> list[str]:
        return sample(model, vae, positive, **inputs)[1]["notes"]

    text, mask = encode("a red circle"), torch.ones(8, 8)
    assert notes(text) == [] and notes(core.ConditioningSetAreaStrength().append(text, 1.0)[0]) == []
    assert notes(core.ConditioningSetMask().append(text, mask, "default", 1.0)[0]) == []
    for steered, words in (
        (core.ConditioningSetAreaStrength().append(text, 0.3)[0], "the strength of an area"),
        ([[text[0][0], {**text[0][1], "control": object(), "hooks": object()}]], "ControlNet, hooks"),
    ):
        (said,) = notes(steered)
        assert said == f"positive: {words} ignored, which this model cannot follow", said
    (said,) = notes(encode("red " * 600))
    assert said == "the positive prompt has 602 tokens; this model reads 64, the rest is ignored", said


def check_regions() -> None:
    """Core areas and masks become regions of the texts; what covers nothing is said."""
    import torch
    from pack.nodes.host import files
    from pack.nodes.host.conditioning import scheduled_of
    from pack.nodes.host.steering import Frame
    from pack.nodes.loaders import LoadTextEncoder

    import nodes as core

    model, vae = loaded()
    schedule = model.model.checkpoint.trained.snap(128, 128)
    clip = LoadTextEncoder.execute(files.EMBEDDED).args[0]
    one, two = (
        clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("two red circles", "a blue ring")
    )

    def read(positive: list, batch: int = 1) -> Any:
        return scheduled_of(model.model, positive, None, batch, Frame(schedule, (128, 128)))

    def mask_of(found: Any, prompt: int, image: int = 0) -> Any:
        return found.conditioning.regions[image][prompt].mask

    left = core.ConditioningSetArea().append(one, 64, 128, 0, 0, 1.0)[0]
    right = core.ConditioningSetAreaPercentage().append(two, 0.5, 1.0, 0.5, 0, 0.5)[0]
    both = read(core.ConditioningCombine().combine(left, right)[0])
    assert both.notes == () and [r.tokens for r in both.conditioning.regions[0]] == [
        one[0][0].shape[1],
        two[0][0].shape[1],
    ]
    assert mask_of(both, 0)[:, :8].eq(1).all() and mask_of(both, 0)[:, 8:].eq(0).all()
    assert torch.equal(mask_of(both, 1), 1 - mask_of(both, 0))
    assert [region.strength for region in both.conditioning.regions[0]] == [1.0, 0.5]
    together = read(core.ConditioningCombine().combine(one, two)[0])  # both everywhere
    assert together.notes == () and [r.mask for r in together.conditioning.regions[0]] == [None, None]

    masks = torch.zeros(2, 50, 30)
    masks[0, :, :15], masks[1, :, 15:] = 1.0, 1.0
    masked = core.ConditioningSetMask().append(two, masks, "default", 1.0)[0]
    found = read(core.ConditioningCombine().combine(one, masked)[0], batch=3)
    assert [float(mask_of(found, 1, index)[:, :15].mean()) for index in range(3)] == [1.0, 0.0, 1.0]
    nothing = core.ConditioningSetMask().append(two, masks * 0, "default", 1.0)[0]
    (said,) = read(core.ConditioningCombine().combine(one, nothing)[0]).notes
    assert said == "positive: the area or mask of prompt 2 covers nothing of the picture"
    (said,) = read(left).notes
    assert said.startswith("positive: no prompt holds in 50% of the picture; all of them count there"), said
    outside = core.ConditioningSetArea().append(one, 64, 64, 512, 0, 1.0)[0]
    assert len(read(outside).notes) == 2
    for bad in (torch.full((4, 4), float("nan")), torch.zeros(2, 0, 4), "a mask", torch.zeros(1, 2, 3, 4)):
        said = refused(read, [[one[0][0], {**one[0][1], "mask": bad}]])
        assert said.startswith("positive: the mask of a prompt"), said
    for bad in ((1, 2), ("percentage", 1, 2, 3), "all", (1, 2, 3, None)):
        assert "the area of a prompt is" in refused(read, [[one[0][0], {**one[0][1], "area": bad}]])
    latent, report = sample(model, vae, core.ConditioningCombine().combine(left, right)[0], negative=right)
    assert torch.isfinite(latent).all()
    assert report["notes"][0] == "negative: the strength of an area ignored, which this model cannot follow"
    assert "negative: no prompt holds in 50%" in report["notes"][1] and len(report["notes"]) == 2


def check_ranges() -> None:
    """Set Timestep Range: shares of the final area, so that stages are hit; scales without a prompt."""
    from types import SimpleNamespace as Namespace

    import torch
    from pack.nodes.host import files
    from pack.nodes.host.conditioning import CLASS_LABEL, scheduled_of
    from pack.nodes.host.steering import Frame
    from pack.nodes.loaders import LoadTextEncoder
    from pack.stagevar_core.schedule import ScaleSchedule

    import nodes as core

    model, vae = loaded()
    clip = LoadTextEncoder.execute(files.EMBEDDED).args[0]
    one, two = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a red ring", "blue"))
    schedule = ScaleSchedule.of([(side, side) for side in (1, 2, 4, 6, 8, 12, 16)])

    def between(text: list, start: float, end: float) -> list:
        return core.ConditioningSetTimestepRange().set_range(text, start, end)[0]

    def read(positive: list, negative: list | None = None, network: Any = model.model) -> Any:
        return scheduled_of(network, positive, negative, 2, Frame(schedule, (128, 128)))

    for end, turns in (
        (0.063, "1112222"),
        (0.062, "1112222"),
        (0.25, "1111122"),
        (0.5, "1111122"),
        (0.9, "1111112"),
    ):
        both = core.ConditioningCombine().combine(between(one, 0.0, end), between(two, end, 1.0))[0]
        found = read(both)
        lengths = [found.conditioning.at(scale).tokens for scale in range(7)]
        expected = {"1": one[0][0].shape[1], "2": two[0][0].shape[1]}
        assert lengths == [expected[turn] for turn in turns] and found.notes == (), (end, lengths)
    early = read(between(one, 0.0, 0.25))
    assert early.conditioning.tokens == one[0][0].shape[1] and early.conditioning.at(6) is early.conditioning
    assert early.notes[0].startswith("positive: no prompt holds at 2 of 7 scales; the nearest one does there")
    against = read(one, between(two, 0.25, 1.0)).conditioning
    assert [against.at(scale).negative is None for scale in range(7)] == [True] * 5 + [False] * 2
    latent, report = sample(model, vae, between(one, 0.0, 0.25) + between(two, 0.25, 1.0))
    assert report["notes"] == [] and torch.isfinite(latent).all()
    same, _ = sample(model, vae, between(one, 0.0, 0.25) + between(one, 0.25, 1.0))
    assert torch.equal(same, sample(model, vae, one)[0])
    assert not torch.equal(same, latent)

    var = Namespace(classes=10, family="var")
    label = [[[torch.zeros(1, 1, 1), {CLASS_LABEL: number}]] for number in (3, 4)]
    found = read(between(label[0], 0.0, 0.25) + between(label[1], 0.25, 1.0), None, var).conditioning
    assert [found.at(scale).labels for scale in (0, 4, 5, 6)] == [(3, 3), (3, 3), (4, 4), (4, 4)]
    area = core.ConditioningSetArea().append(label[0], 64, 64, 0, 0, 1.0)[0]
    assert read(area, None, var).notes == ("positive: Set Area ignored, which this model cannot follow",)
    (said,) = read(label[0] + label[1], None, var).notes
    assert said.startswith("positive: 2 classes hold at once; this model draws one, the first"), said
    assert "found a text" in refused(read, between(label[0], 0.0, 0.25) + between(one, 0.25, 1.0), None, var)


def check_weights() -> None:
    """A weight in the prompt scales how far the features of its word are from those of the empty prompt."""
    import torch
    from pack.nodes.host import files
    from pack.nodes.loaders import LoadTextEncoder

    clip = LoadTextEncoder.execute(files.EMBEDDED).args[0]

    def features(text: str) -> torch.Tensor:
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0][0]

    from pack.stagevar_core.pipeline import Pipeline

    for text in ("a red ring", "two blue crosses", "red"):  # as without the host
        (expected,) = Pipeline.embedded().encode([text]).features
        assert features(text).shape == expected.shape, text
        assert torch.allclose(features(text), expected, atol=1e-4), text
    plain, strong = features("a red ring"), features("(a red ring:1.5)")
    weak = features("(a red ring:0.5)")
    assert plain.shape == strong.shape == weak.shape
    assert torch.allclose(strong - plain, plain - weak, atol=1e-4) and not torch.allclose(strong, plain)
    assert torch.allclose(strong[-1], plain[-1], atol=1e-4)  # the end token has no weight
    model, vae = loaded()
    pictures = [
        sample(model, vae, clip.encode_from_tokens_scheduled(clip.tokenize(text)))[0]
        for text in ("a red ring", "(a red ring:1.5)")
    ]
    assert not torch.equal(*pictures)


def check_joined() -> None:
    """Joined and mixed texts: the rows with text of both, none of padding."""
    from types import SimpleNamespace as Namespace

    import torch
    from pack.nodes.host import files
    from pack.nodes.host.conditioning import NULL_TEXT, conditioning_of, length_of
    from pack.nodes.loaders import LoadTextEncoder

    import nodes as core

    model, _ = loaded()
    clip = LoadTextEncoder.execute(files.EMBEDDED).args[0]

    def read(network: Any, conditioning: list) -> Any:
        return conditioning_of(network, conditioning, None, 1).conditioning.features[0]

    short, long = (
        clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("red", "a red circle left")
    )
    first, second = short[0][0][0], long[0][0][0]
    concat = core.ConditioningConcat().concat(short, long)[0]
    assert torch.equal(read(model.model, concat), torch.cat((first, second)))
    average = core.ConditioningAverage().addWeighted(long, short, 0.0)[0]
    assert torch.equal(read(model.model, average), first)
    zeroed = core.ConditioningZeroOut().zero_out(long)[0]
    assert torch.equal(read(model.model, zeroed), torch.zeros_like(second))

    star = Namespace(
        classes=None, learned_null=False, longest_text=None, family="star", config=Namespace(text_width=6)
    )
    null = torch.ones(1, 2, 6)

    def padded(rows: int) -> list:
        """As our CLIP gives it: text, then rows of 0, and a mask."""
        features = torch.zeros(1, 9, 6)
        features[:, :rows] = torch.randn(1, rows, 6)
        mask = torch.arange(9)[None] < rows
        return [[features, {"attention_mask": mask.long(), NULL_TEXT: null, "pooled_output": None}]]

    for rows in ((3, 7), (7, 3)):
        one, two = map(padded, rows)
        concat = read(star, core.ConditioningConcat().concat(one, two)[0])
        assert torch.equal(concat, torch.cat((one[0][0][0, : rows[0]], two[0][0][0, : rows[1]])))
        average = read(star, core.ConditioningAverage().addWeighted(one, two, 0.5)[0])
        assert torch.allclose(average, (one[0][0][0, :7] + two[0][0][0, :7]) / 2)
        assert len(read(star, core.ConditioningZeroOut().zero_out(one)[0])) == rows[0]
        assert torch.equal(read(star, one), one[0][0][0, : rows[0]])
        foreign = [[torch.randn(1, 9, 6), {"attention_mask": one[0][1]["attention_mask"]}]]
        assert len(read(Namespace(**{**vars(star), "learned_null": True}), foreign)) == rows[0]
    assert length_of([[(1, 1.0)]]) == {}


def tokenizer(vae: Any) -> Any:
    return vae.first_stage_model.tokenizer


def edited(model: Any, vae: Any, picture: Any, mask: Any) -> Any:
    """What StageVAR Edit makes."""
    from pack.nodes.editing import EditNode

    return EditNode.execute(model, vae, picture, mask).args[0]


def sample(model: Any, vae: Any, positive: list, **inputs: Any) -> tuple[Any, Any]:
    """The sampler's latent and report."""
    from pack.nodes.sampling import Sampler

    class Node(Sampler):
        hidden = SimpleNamespace(unique_id=None)

    chosen = {"cfg": 2.0, "temperature": 0.7, "top_k": 900, "top_p": 0.97, "width": 128, "height": 128}
    chosen |= {"seed": 1, "batch_size": 1, **inputs}
    latent, report = Node.execute(model=model, vae=vae, positive=positive, **chosen).args[:2]
    return latent["samples"][:, : vae.latent_channels], report


def loaded() -> tuple[Any, Any]:
    """The embedded model and its tokenizer."""
    from pack.nodes.host import files
    from pack.nodes.host.bridge import load_transformer
    from pack.nodes.host.vae import TokenizerVAE

    model = load_transformer(files.load(files.TRANSFORMER, files.EMBEDDED), "default")
    return model, TokenizerVAE(files.load(files.TOKENIZER, files.EMBEDDED))


def main() -> None:
    load_pack(PACK)
    import torch

    with torch.inference_mode():
        run_checks(globals())


main()
