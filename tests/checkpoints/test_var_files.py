"""VAR's files: recognised from their tensors, loaded strictly, paired, and used through the pipeline."""

import json

import pytest
import torch

from stagevar_core.autoencoders.vq import VQTokenizerConfig
from stagevar_core.checkpoints import CheckpointError, build, check_pairing, prepare, read, save
from stagevar_core.checkpoints.header import KEY, dump
from stagevar_core.conditioning.labels import class_index, imagenet_names
from stagevar_core.models.var import VAR_D16, VAR_D20, VAR_D24, VAR_D30, VAR_D36, VARConfig
from stagevar_core.pipeline import Pipeline
from tests.support import official_files
from tests.support import official_var as official
from tests.support.tiny_var import CLASSES, DIM, SIDES, VOCAB, tiny_var, tiny_vq

SMALL = VARConfig(2, 128, 2, 512, SIDES, classes=10, vocab=24, dim=4)
SMALL_TOKENIZER = VQTokenizerConfig(24, 4, width=32, multipliers=(1, 1, 2), blocks=1)
RELEASED = {
    "d16": (VAR_D16, 310, 256),
    "d20": (VAR_D20, 601, 256),
    "d24": (VAR_D24, 1033, 256),
    "d30": (VAR_D30, 2010, 256),
    "d36": (VAR_D36, 2354, 512),
}


def small(**options) -> official_files.Layout:
    """A small transformer file with real numbers."""
    return official.transformer(VARConfig(**{**vars(SMALL), **options}), device="cpu")


# ------------------------------------------------------------------------------------------------ detection


@pytest.mark.parametrize("name", RELEASED)
def test_released_transformer(name: str) -> None:
    config, millions, pixels = RELEASED[name]
    layout = official.transformer(config)
    assert round(layout.parameters / 1e6) == millions
    checkpoint = prepare(dict(layout), None, f"var_{name}.pth")
    assert (checkpoint.kind, checkpoint.family, checkpoint.config) == ("transformer", "var", config)
    assert not checkpoint.notes
    table = checkpoint.trained
    assert table.image_size(table.snap(pixels, pixels)) == (pixels, pixels)
    assert table.snap(1024, 1024).grids == config.schedule.grids
    assert checkpoint.defaults == {"cfg": 4.0, "temperature": 1.0, "top_k": 900, "top_p": 0.95}
    assert build(checkpoint).position_embed.shape == (config.schedule.tokens, config.width)


def test_released_tokenizer() -> None:
    layout = official.tokenizer(VQTokenizerConfig())
    assert len(layout) == 324 and round(layout.parameters / 1e6) == 109
    checkpoint = prepare(dict(layout), None, "vae_ch160v4096z32.pth")
    assert (checkpoint.kind, checkpoint.family) == ("tokenizer", "var")
    assert checkpoint.config == VQTokenizerConfig() and not checkpoint.notes
    check_pairing(prepare(official.transformer(VAR_D16), None, "d16"), checkpoint)
    assert build(checkpoint).quantizer().codebook.shape == (4096, 32)


@pytest.mark.parametrize(("phi", "phis"), [("qresi_ls.{}.", 3), ("qresi.", 1), ("{}.", 5)])
def test_tokenizers_share_phi_in_several_ways(phi: str, phis: int) -> None:
    config = VQTokenizerConfig(24, 4, width=32, multipliers=(1, 2), blocks=1, phis=phis)
    checkpoint = prepare(official.tokenizer(config, phi=phi, device="cpu"), None, "vae")
    assert checkpoint.config == config and len(build(checkpoint).quantizer().phi) == phis


@pytest.mark.parametrize("options", [{}, {"shared": True}, {"cosine": False}, {"sides": (1, 2, 5)}], ids=str)
def test_options_are_seen_in_the_tensors(options: dict) -> None:
    raw = small(**options)
    checkpoint = prepare(raw, None, "small")
    assert checkpoint.config == VARConfig(**{**vars(SMALL), **options})
    q, k, v = checkpoint.tensors["blocks.1.self_attn.qkv.bias"].chunk(3)
    assert torch.equal(q, raw["blocks.1.attn.q_bias"]) and torch.equal(v, raw["blocks.1.attn.v_bias"])
    assert not k.any()
    assert build(checkpoint).config.sides == checkpoint.config.sides


WRAPPED = {
    "training": lambda raw: {
        "epoch": 1,
        "trainer": {"config": {}, "var_wo_ddp": raw, "var_opt": {"state": {}}},
    },
    "ddp": lambda raw: {f"module.{key}": tensor for key, tensor in raw.items()},
    "compiled": lambda raw: {f"_orig_mod.{key}": tensor for key, tensor in raw.items()},
    "half": lambda raw: {key: t.half() if t.is_floating_point() else t for key, t in raw.items()},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_files(name: str) -> None:
    assert prepare(WRAPPED[name](dict(small())), None, name, kind="transformer").config == SMALL


def test_a_training_checkpoint_holds_both() -> None:
    vae = official.tokenizer(SMALL_TOKENIZER, device="cpu")
    raw = {"trainer": {"var_wo_ddp": dict(small()), "vae_local": dict(vae)}}
    model, codes = (
        prepare(raw, None, "ar-ckpt-last.pth", kind=kind) for kind in ("transformer", "tokenizer")
    )
    assert (model.config, codes.config) == (SMALL, SMALL_TOKENIZER)


def test_the_schedule_is_known_without_its_buffers() -> None:
    layout = official.transformer(VAR_D36)
    bare = {key: value for key, value in layout.items() if key not in layout.buffers}
    assert prepare(bare, None, "bare").config == VAR_D36


@pytest.mark.parametrize("spoil", ["missing", "not a number", "no square"])
def test_a_schedule_that_nothing_tells_is_refused(spoil: str) -> None:
    raw = dict(small())
    if spoil == "missing":
        del raw["lvl_1L"]
    elif spoil == "not a number":
        raw["lvl_1L"] = torch.full((1, 66), float("nan"))
    else:
        raw["lvl_1L"] = torch.cat((raw["lvl_1L"][:, 1:], raw["lvl_1L"][:, -1:]), dim=1)
    with pytest.raises(CheckpointError, match="the side lengths of its scales are not known"):
        prepare(raw, None, "odd.pth")


def test_our_own_files_keep_what_the_tensors_do_not_say(tmp_path) -> None:
    checkpoint = prepare(small(), None, "small")
    metadata = dump(checkpoint.header())
    assert "trained" not in json.loads(metadata[KEY])
    path = tmp_path / "var.safetensors"
    save(path, checkpoint.tensors, checkpoint.header())
    again = prepare(*read(path))
    assert (again.config, again.trained, again.defaults) == (SMALL, checkpoint.trained, checkpoint.defaults)
    said = json.loads(metadata[KEY])
    said["config"]["sides"] = [1, 2, 3, 4, 7]
    with pytest.raises(CheckpointError, match=r"position_embed: found \[66, 128\], expected \[79, 128\]"):
        prepare(read(path).tensors, {KEY: json.dumps(said)}, "other.safetensors")
    said["config"] |= {"sides": list(SIDES), "shared": 1}
    with pytest.raises(CheckpointError, match="shared: found 1, expected true or false"):
        prepare(read(path).tensors, {KEY: json.dumps(said)}, "other.safetensors")


def test_incomplete_files_are_refused() -> None:
    raw = dict(small())
    del raw["blocks.1.ffn.fc2.weight"]
    with pytest.raises(CheckpointError, match=r"1 tensors are missing: blocks\.1\.ffn\.fc2\.weight"):
        prepare(raw, None, "cut.pth")
    half = {k: v for k, v in official.tokenizer(SMALL_TOKENIZER, device="cpu").items() if "decoder" not in k}
    with pytest.raises(CheckpointError, match="looks like a VAR image tokenizer of which parts are missing"):
        prepare(half, None, "half.pth")


def test_models_that_do_not_belong_together_are_refused() -> None:
    model = prepare(small(), None, "var")
    codes = prepare(official.tokenizer(SMALL_TOKENIZER, device="cpu"), None, "vae")
    with pytest.raises(CheckpointError, match="a token covers 4 pixels per side, .* trained with 16"):
        check_pairing(model, codes)
    with pytest.raises(CheckpointError, match="it has 24 codes, the transformer predicts 30"):
        check_pairing(prepare(small(vocab=30), None, "var"), codes)
    infinity = prepare(official_files.small_transformer(), None, "infinity")
    with pytest.raises(CheckpointError, match="it is of the family var, expected infinity"):
        check_pairing(infinity, codes)
    bits = prepare(official_files.small_tokenizer(), None, "bits")
    with pytest.raises(CheckpointError, match="it is of the family infinity, expected var"):
        check_pairing(model, bits)
    with pytest.raises(CheckpointError, match="this is a VAR transformer, expected an image tokenizer"):
        prepare(small(), None, "var", kind="tokenizer")


# ------------------------------------------------------------------------------------- labels and pipeline


def test_classes_have_numbers_and_names() -> None:
    names = imagenet_names()
    assert len(names) == len({name.lower() for name in names}) == 1000
    assert [class_index(label) for label in ("Golden Retriever", " 207", 207, "macaw", "", "-1")] == [
        *(207, 207, 207, 88),
        *(-1, -1),
    ]
    assert all(class_index(name) == index for index, name in enumerate(names))


@pytest.mark.parametrize(
    ("label", "classes", "message"),
    [
        ("1000", 1000, "the class is 1000; this model knows the numbers 0 to 999"),
        ("-2", 10, "0 to 9, and -1 for no class"),
        ("golden retreiver", 1000, "not known; .* for example golden retriever"),
        ("terrier", 1000, "a part of several names; .* for example toy terrier"),
        ("macaw", 10, "no names for its classes, give a number from 0 to 9"),
    ],
)
def test_unknown_classes_are_refused(label: str, classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_index(label, classes)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A transformer and a tokenizer of stride 16 in the official layout."""
    folder = tmp_path_factory.mktemp("var")
    config = VARConfig(2, 128, 2, 512, (1, 2, 3), CLASSES, VOCAB, DIM)
    codes = VQTokenizerConfig(VOCAB, DIM, width=32, multipliers=(1, 1, 1, 1, 1), blocks=1)
    torch.save(dict(official.transformer(config, device="cpu")), folder / "var.pth")
    torch.save(dict(official.tokenizer(codes, device="cpu")), folder / "vae.pth")
    return folder / "var.pth", folder / "vae.pth"


def test_the_pipeline_draws_classes(files) -> None:
    pipeline = Pipeline.load(*files, device="cpu")
    assert pipeline.settings().top_k == 900 and pipeline.settings(cfg=1.5).cfg_scale == 1.5
    pictures = pipeline(["3", "5"], batch=2, seed=4)
    assert pictures.images.shape == (4, 48, 48, 3) and pictures.size == (48, 48)
    alone = pipeline("5", seed=6)
    latents = zip(pictures.generation.codes, alone.generation.codes, strict=True)
    assert all(torch.equal(a[2], b[0]) for a, b in latents)
    assert pipeline.encode(["", "2"], "1").labels == (-1, 2)
    assert pipeline.encode(["", "2"], "1").negative == (1, 1)
    with pytest.raises(ValueError, match="knows the numbers 0 to 6"):
        pipeline("7")
    with pytest.raises(ValueError, match="no names for its classes"):
        pipeline("a red circle")


def test_a_text_encoder_is_for_models_that_read(files) -> None:
    class Text:
        width, device = 24, torch.device("cpu")

    parts = (tiny_var(), tiny_vq(), Text(), Pipeline.load(*files, device="cpu").trained)
    with pytest.raises(ValueError, match="takes class labels, but a text encoder is given"):
        Pipeline(*parts)
