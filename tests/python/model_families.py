"""Small transformers with random weights, as their libraries write them: what users convert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

WORDS, WIDTH, LENGTH = 40, 32, 8


@dataclass(frozen=True)
class Family:
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple]
    layers: str
    """The paths of the repeated layers, as a regular expression."""
    attentions: int
    """Of all repeated layers, in blocks."""
    exact: set[str] = field(default_factory=set)
    """Calls of repeated layers that are in no block, nor compressed by themselves: the path in a layer, and the
    function."""
    alone: set[str] = field(default_factory=set)
    """Modules with parameters that are in no block: the path in a layer."""


class WithLoss(nn.Module):
    """A language model, and the loss of the words that it is given."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, words, mask=None):
        return self.model(input_ids=words, attention_mask=mask, labels=words).loss


def words():
    return (torch.randint(3, WORDS, (2, LENGTH)),)


def padded_words():
    """And the mask that says which are none."""
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[1, 5:] = 0
    return (*words(), mask)


def images(size=32):
    return lambda: (torch.randn(2, 3, size, size),)


def sequences(*lengths):
    return lambda: tuple(torch.randn(2, length, WIDTH) for length in lengths)


# --- Hugging Face ----------------------------------------------------------------------------------------------------

SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 2 * WIDTH}
TEXT = {"vocab_size": WORDS, "max_position_embeddings": 2 * LENGTH, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2}  # fmt: skip
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
IMAGES = {"image_size": 32, "patch_size": 8}


def hugging_face(name, config, **options):
    def make():
        transformers = pytest.importorskip("transformers")
        return getattr(transformers, name)(getattr(transformers, config)(**options))

    return make


def language_model(name, config, **options):
    make = hugging_face(name, config, **TEXT, **options)
    return lambda: WithLoss(make())


def decoder(name, heads=1, **options):
    """One of those with rotary embeddings, with a head of keys and values for two of queries."""
    sizes = SIZES | {"num_key_value_heads": heads, "head_dim": WIDTH // 2}
    return language_model(f"{name}ForCausalLM", f"{name}Config", **sizes, **options)


def whisper_encoder():
    whisper = pytest.importorskip("transformers.models.whisper.modeling_whisper")
    return whisper.WhisperEncoder(
        whisper.WhisperConfig(
            d_model=WIDTH, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=2 * WIDTH, num_mel_bins=8,
            max_source_positions=LENGTH, dropout=0.0,
        )
    )  # fmt: skip


def with_lora(name):
    """Adapters of all linear layers of a decoder's, with weights that are not zero."""

    def make():
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, lora_alpha=3, target_modules="all-linear", init_lora_weights=False)
        model = decoder(name)()
        model.model = peft.get_peft_model(model.model, config)
        return model

    return make


class LastState(nn.Module):
    """The tensor of an encoder's output."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x):
        return self.encoder(x).last_hidden_state


GPT2 = {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 2 * LENGTH, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        "attn_pdrop": 0.0}  # fmt: skip
T5 = {"d_model": WIDTH, "d_kv": WIDTH // 2, "d_ff": 2 * WIDTH, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0,
      "decoder_start_token_id": 0, "use_cache": False}  # fmt: skip
DECODER, BERT = r"model\.model\.layers\.\d", r"model\.{}\.encoder\.layer\.\d"
T5_EXACT, T5_ALONE = {"layer.0.SelfAttention: where"}, {"layer.0.SelfAttention.relative_attention_bias"}
"""The mask of its self-attention is learned; it is made outside."""

# --- torchvision and timm --------------------------------------------------------------------------------------------


def torchvision_vit():
    vision = pytest.importorskip("torchvision")
    model = vision.models.VisionTransformer(32, 8, 2, 2, WIDTH, 2 * WIDTH, num_classes=5)
    nn.init.normal_(model.heads.head.weight)  # zeros
    return model


def torchvision_swin():
    vision = pytest.importorskip("torchvision")
    swin = vision.models.swin_transformer.SwinTransformer
    return swin([4, 4], 24, [2, 2], [2, 2], [4, 4], stochastic_depth_prob=0.0, num_classes=5)


def timm(name, **options):
    def make():
        return pytest.importorskip("timm").create_model(name, num_classes=5, **options)

    return make


SWIN_EXACT = {"attn: added_mask"}
"""The bias of its attention is learned; it and the mask are added outside."""
TORCHVISION_SWIN = SWIN_EXACT, {"attn.qkv", "attn.proj"}
"""Whose weights a function is called with, in `attn`."""
TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 2}

# --- torch and by hand -----------------------------------------------------------------------------------------------


class TorchDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(WIDTH, 2, 2 * WIDTH, 0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x, memory):
        for layer in self.layers:
            x = layer(x, memory)
        return self.head(x)


def torch_encoder():
    layers = [nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, 0.0, batch_first=True) for _ in range(2)]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 5))


class NanoLayer(nn.Module):
    """As in karpathy/nanoGPT."""

    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.fc, self.proj = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def attend(self, x):
        b, t, c = x.size()
        q, k, v = (part.view(b, t, 2, c // 2).transpose(1, 2) for part in self.c_attn(x).split(WIDTH, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))

    def forward(self, x):
        x = x + self.attend(self.ln_1(x))
        return x + self.proj(F.gelu(self.fc(self.ln_2(x))))


class NanoGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(WORDS, WIDTH), nn.Embedding(2 * LENGTH, WIDTH)
        self.h, self.ln_f = nn.ModuleList([NanoLayer(), NanoLayer()]), nn.LayerNorm(WIDTH, bias=False)
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, words):
        x = self.wte(words) + self.wpe(torch.arange(words.size(1), device=words.device))
        for layer in self.h:
            x = layer(x)
        logits = self.lm_head(self.ln_f(x))
        return F.cross_entropy(logits[:, :-1].reshape(-1, WORDS), words[:, 1:].reshape(-1))


FAMILIES = {
    "BERT": Family(
        language_model("BertForMaskedLM", "BertConfig", **SIZES, **NO_DROPOUT), words, BERT.format("bert"), 2
    ),
    "RoBERTa": Family(
        language_model("RobertaForMaskedLM", "RobertaConfig", **SIZES, **NO_DROPOUT), words, BERT.format("roberta"), 2
    ),
    "GPT-2": Family(language_model("GPT2LMHeadModel", "GPT2Config", **GPT2), words, r"model\.transformer\.h\.\d", 2),
    "Llama": Family(decoder("Llama"), words, DECODER, 2),
    "Llama without groups": Family(decoder("Llama", 2), words, DECODER, 2),
    "Qwen2": Family(decoder("Qwen2"), words, DECODER, 2),
    "Qwen3": Family(decoder("Qwen3"), words, DECODER, 2),
    "Mistral": Family(decoder("Mistral"), words, DECODER, 2),
    "Phi-3": Family(decoder("Phi3"), words, DECODER, 2),
    "Llama with LoRA": Family(with_lora("Llama"), words, r"model\.base_model\.model\.model\.layers\.\d", 2),
    "Gemma": Family(decoder("Gemma"), words, DECODER, 2),
    "T5": Family(
        language_model("T5ForConditionalGeneration", "T5Config", **T5), words, r"model\.(?:en|de)coder\.block\.\d",
        6, T5_EXACT, T5_ALONE,
    ),
    "T5 with gates": Family(
        language_model("T5ForConditionalGeneration", "T5Config", **T5, feed_forward_proj="gated-gelu"), words,
        r"model\.(?:en|de)coder\.block\.\d", 6, T5_EXACT, T5_ALONE,
    ),
    "ViT": Family(
        hugging_face("ViTForImageClassification", "ViTConfig", **SIZES, **IMAGES, **NO_DROPOUT), images(),
        r"vit\.(?:encoder\.layer|layers)\.\d", 2,
    ),
    "DINOv2": Family(
        hugging_face("Dinov2ForImageClassification", "Dinov2Config", **SIZES, **IMAGES, **NO_DROPOUT), images(),
        r"dinov2\.encoder\.layer\.\d", 2,
    ),
    "Whisper's encoder": Family(
        lambda: LastState(whisper_encoder()), lambda: (torch.randn(2, 8, 2 * LENGTH),), r"encoder\.layers\.\d", 2
    ),
    "torchvision's ViT": Family(torchvision_vit, images(), r"encoder\.layers\.encoder_layer_\d", 2),
    "torchvision's Swin": Family(torchvision_swin, images(), r"features\.[13]\.\d", 4, *TORCHVISION_SWIN),
    "timm's ViT": Family(timm("vit_tiny_patch16_224", **TIMM_VIT), images(), r"blocks\.\d", 2),
    "timm's DeiT": Family(timm("deit_tiny_patch16_224", **TIMM_VIT), images(), r"blocks\.\d", 2),
    "timm's Swin": Family(
        timm("swin_tiny_patch4_window7_224", img_size=32, embed_dim=24, depths=(2, 2), num_heads=(2, 2),
             window_size=4, drop_path_rate=0.0),
        images(), r"layers\.\d\.blocks\.\d", 4, SWIN_EXACT,
    ),
    "timm's ConvNeXt": Family(
        timm("convnext_atto", dims=(16, 24, 32, 32), depths=(1, 1, 2, 1)), images(64), r"stages\.\d\.blocks\.\d", 0
    ),
    "torch's encoder": Family(torch_encoder, sequences(LENGTH), r"[01]", 2),
    "torch's decoder": Family(TorchDecoder, sequences(LENGTH, 6), r"layers\.\d", 4),
    "nanoGPT": Family(NanoGPT, words, r"h\.\d", 2),
}  # fmt: skip

WITH_PADDING = [name for name, family in FAMILIES.items() if family.inputs is words and family.make is not NanoGPT]
"""Those that take such a mask."""
