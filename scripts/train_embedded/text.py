"""Training of the text encoder on captions alone: every token learns the complete scene, then it is frozen.

Trained jointly with the image model a small T5 stays a bag of words; taught from text it binds words at once.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import Log, finished, resume, save_checkpoint
from optim import Optimizer, split_parameters
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from stagevar_core.scenes import SceneSpec, canonical, sample_caption
from stagevar_core.scenes.grammar import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, SIZES, TASKS

PAD, EOS, UNK = 0, 1, 2
SPECIALS = ["<pad>", "</s>", "<unk>"]
FILLERS = {"a", "an", "of", "picture", "image", "drawing", "there", "is", "are", "the", "group", "background"}
# Number of classes per predicted attribute; the last class of an optional one means 'not there'.
_OBJECT = (len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1, len(PATTERNS) + 1)
CLASSES = (len(TASKS), 4, *_OBJECT, *_OBJECT, 3, len(BACKGROUNDS) + 1, len(PATTERNS) + 1)


@dataclass(frozen=True)
class TextTraining:
    """Settings of this phase."""

    steps: int = 480
    batch: int = 256
    lr: float = 4e-3
    pairs: float = 0.5  # share of additional pairs: only they need to know which word belongs to which
    corrupt: float = 0.2  # share of captions that lose or repeat filler words
    corpus: int = 20_000
    vocabulary: int = 512
    seed: int = 2


def encoder_config() -> T5Config:
    """A small T5 encoder of the flan-t5 kind."""
    return T5Config(
        vocab_size=512,
        d_model=256,
        d_ff=512,
        d_kv=32,
        num_layers=3,
        num_heads=8,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=PAD,
        eos_token_id=EOS,
        is_encoder_decoder=False,
        use_cache=False,
    )


def build_tokenizer(s: TextTraining) -> Tokenizer:
    """Byte-level BPE over captions: lower-cases, encodes any text, appends the end token."""
    rng = np.random.default_rng([s.seed, 0])
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=s.vocabulary,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((sample_caption(rng)[1] for _ in range(s.corpus)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    return tokenizer


def labels(spec: SceneSpec) -> list[int]:
    """Class index per attribute; pairs are told as left or above, so the first slot is a place as well."""
    spec = canonical(spec)
    slots = []
    for index in range(2):
        if index < spec.count and (index == 0 or spec.task == "pair"):
            o = spec.objects[index]
            size = len(SIZES) if o.size is None else SIZES.index(o.size)
            slots += [SHAPES.index(o.shape), COLOURS.index(o.colour), size, PATTERNS.index(o.pattern)]
        else:
            slots += [n - 1 for n in _OBJECT]
    relation = ("left", "above", None).index(spec.relation)
    named = spec.background is not None
    background = BACKGROUNDS.index(spec.background) if named else len(BACKGROUNDS)
    pattern = PATTERNS.index(spec.background_pattern) if named else len(PATTERNS)
    return [TASKS.index(spec.task), spec.count - 1, *slots, relation, background, pattern]


def corrupt(text: str, rng: np.random.Generator) -> str:
    """Lose or repeat some of the words that carry no meaning here."""
    words = []
    for word in text.split():
        draw = rng.random() if word in FILLERS else 1.0
        words += [word] * (0 if draw < 0.3 else 2 if draw < 0.35 else 1)
    return " ".join(words)


def slots(text: str, spec: SceneSpec) -> np.ndarray:
    """Per character: 0, or 1 plus the slot of the object that the colour or shape word there belongs to.

    Every object is told as a colour and then its shape, and the two colours of a pair differ.
    """
    spec, marks, slot = canonical(spec), np.zeros(len(text), np.int64), 0
    colours = {spec.objects[i].colour: i for i in range(2 if spec.task == "pair" else 1)}
    for match in re.finditer(r"[a-z]+", text):
        word = match.group()
        if word in colours:
            slot = 1 + colours[word]
        if word in colours or word.startswith(SHAPES):
            marks[match.start() : match.end()] = slot
    return marks


def slot_targets(tokenizer: Tokenizer, texts: list[str], marks: list[np.ndarray], length: int) -> Tensor:
    """The marks of each text at its tokens, (N, length)."""
    targets = torch.zeros(len(texts), length, dtype=torch.long)
    for row, (encoding, mark) in enumerate(zip(tokenizer.encode_batch(texts), marks, strict=True)):
        for column, (start, stop) in enumerate(encoding.offsets):
            if stop > start:
                targets[row, column] = int(mark[start:stop].max())
    return targets


def encode_texts(tokenizer: Tokenizer, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids (N, L), padded to the longest, and the mask (N, L) of real tokens."""
    rows = [torch.tensor(e.ids) for e in tokenizer.encode_batch(texts)]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    return ids, ids != PAD


def caption_batch(
    s: TextTraining, step: int, size: int, split: str, noise: float
) -> tuple[list[str], Tensor, list[np.ndarray]]:
    """Captions, their labels (N, attributes) and the slots of their words."""
    rng = np.random.default_rng([s.seed, 1, step])
    texts, targets, marks = [], [], []
    for _ in range(size):
        spec, text = sample_caption(rng, split, "pair" if rng.random() < s.pairs else None)
        texts.append(corrupt(text, rng) if rng.random() < noise else text)
        targets.append(labels(spec))
        marks.append(slots(texts[-1], spec))
    return texts, torch.tensor(targets), marks


class SceneHeads(nn.Module):
    """Linear readouts of the scene from every token (training only)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, sum(CLASSES))
        self.slot = nn.Linear(width, 2)

    def forward(self, hidden: Tensor) -> list[Tensor]:
        """Logits of every attribute, (..., its classes), of hidden states (..., width)."""
        return list(self.out(hidden).split(CLASSES, dim=-1))


def scene_loss(logits: list[Tensor], targets: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy over attributes and real tokens."""
    rows = torch.arange(len(targets)).unsqueeze(1).expand_as(mask)[mask]
    total = sum(F.cross_entropy(z[mask].float(), targets[rows, i]) for i, z in enumerate(logits))
    return total / len(logits)


@torch.no_grad()
def accuracy(
    encoder: nn.Module, heads: SceneHeads, tokenizer: Tokenizer, s: TextTraining
) -> dict[str, float]:
    """On unseen captions: share of (token, attribute) pairs and of whole captions read without any error."""
    texts, targets, _ = caption_batch(s, 10_000_000, 1000, "test", 0.0)
    ids, mask = encode_texts(tokenizer, texts)
    logits = heads(encoder(input_ids=ids, attention_mask=mask).last_hidden_state)
    right = torch.stack([z.argmax(-1) == targets[:, i : i + 1] for i, z in enumerate(logits)], dim=-1)
    perfect = (right.all(-1) | ~mask).all(-1)
    return {
        "token_accuracy": float(right[mask].float().mean()),
        "caption_accuracy": float(perfect.float().mean()),
    }


def load_text(out: Path) -> tuple[T5EncoderModel, Tokenizer]:
    """The trained encoder (frozen, float32) and its tokenizer."""
    state = finished(out / "text.pt")
    encoder = T5EncoderModel(encoder_config())
    encoder.load_state_dict(state["encoder"])
    return encoder.eval().requires_grad_(False), Tokenizer.from_str(state["tokenizer"])


def train_text(out: Path, s: TextTraining | None = None) -> None:
    """Train, or resume from the last checkpoint."""
    s = s or TextTraining()
    torch.manual_seed(s.seed)
    path, log = out / "text.pt", Log(out / "text.jsonl")
    tokenizer, encoder = build_tokenizer(s), T5EncoderModel(encoder_config())
    heads = SceneHeads(encoder.config.d_model)
    parameters = [*encoder.parameters(), *heads.parameters()]
    matrices, others = split_parameters(encoder, excluded=("shared", "embed", "relative"))
    optimizer = Optimizer(matrices, [*others, *heads.parameters()], s.lr, s.steps)
    last_time = time.time()
    first = resume(path, encoder=encoder, heads=heads, optimizer=optimizer)
    for step in range(first, s.steps):
        texts, targets, marks = caption_batch(s, step, s.batch, "train", s.corrupt)
        ids, mask = encode_texts(tokenizer, texts)
        with torch.autocast("cpu", torch.bfloat16):
            output = encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            logits = heads(output.last_hidden_state)
            # Which object a word belongs to must be known before the last layer can spread it.
            hidden = output.hidden_states[-2]
            slot = heads.slot(F.layer_norm(hidden, hidden.shape[-1:]))
        slot_target = slot_targets(tokenizer, texts, marks, ids.shape[1])
        loss = scene_loss(logits, targets, mask)
        loss = loss + F.cross_entropy(slot[slot_target > 0].float(), slot_target[slot_target > 0] - 1)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step(step)
        if step % 50 == 49:
            rate, last_time = 50 * s.batch / (time.time() - last_time), time.time()
            log(step=step + 1, loss=float(loss.detach()), rate=rate)
        if step % 300 == 299 or step + 1 == s.steps:
            save_checkpoint(
                path,
                step=step + 1,
                encoder=encoder.state_dict(),
                heads=heads.state_dict(),
                optimizer=optimizer.state_dict(),
                tokenizer=tokenizer.to_str(),
            )
            log(step=step + 1, **accuracy(encoder, heads, tokenizer, s))
