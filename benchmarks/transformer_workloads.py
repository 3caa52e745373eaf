"""Transformers that are trained: language models of transformers, pictures' of torchvision; their inputs are random.

| model | paper |
|---|---|
| BERT-large | Devlin et al. 2018, arXiv:1810.04805; masked-language modelling |
| GPT-2 medium | Radford et al. 2019 |
| Llama 1B | Dubey et al. 2024, arXiv:2407.21783: the sizes of Llama 3.2 1B; in bfloat16 as a whole |
| Llama 1B, LoRA | the same with adapters of rank 16 at all linear layers (Hu et al. 2021, arXiv:2106.09685) |
| ViT-L/16 | Dosovitskiy et al. 2020, arXiv:2010.11929 |
| Swin-T | Liu et al. 2021, arXiv:2103.14030 |
| ConvNeXt-T | Liu et al. 2022, arXiv:2201.03545 |
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def trained(model: nn.Module) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    is_cuda = parameters[0].is_cuda
    return torch.optim.AdamW(parameters, lr=1e-5, fused=is_cuda, capturable=is_cuda)


@dataclass(frozen=True)
class Words:
    """A language model of transformers, which computes its loss itself."""

    title: str
    make: Callable[[], nn.Module]
    batch: int
    length: int
    vocabulary: int
    hidden_labels: float = 0.0
    """The share of words that are not to be predicted."""
    autocast: bool = True
    """Else the whole model is bfloat16."""

    def text(self) -> str:
        return f"{self.title}, {self.batch} sequences of {self.length} words, AdamW (fused)"

    def model(self, amp: bool, device: torch.device) -> nn.Module:
        model = self.make().to(device).train()
        return model if self.autocast else model.to(torch.bfloat16)

    def inputs(self, amp: bool, device: torch.device) -> tuple[Tensor, ...]:
        words = torch.randint(self.vocabulary, (self.batch, self.length), device=device)
        return words, words.masked_fill(torch.rand(words.shape, device=device) < self.hidden_labels, -100)

    def loss(self, model: nn.Module, words: Tensor, labels: Tensor) -> Tensor:
        return model(input_ids=words, labels=labels).loss

    def optimizer(self, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
        return trained(model)


@dataclass(frozen=True)
class Pictures:
    title: str
    make: Callable[[], nn.Module]
    batch: int
    pixels: int = 224
    autocast: bool = True

    def text(self) -> str:
        return f"{self.title}, {self.batch} images of {self.pixels} x {self.pixels} pixels, AdamW (fused)"

    def model(self, amp: bool, device: torch.device) -> nn.Module:
        return self.make().to(device).train()

    def inputs(self, amp: bool, device: torch.device) -> tuple[Tensor, ...]:
        images = torch.randn(self.batch, 3, self.pixels, self.pixels, device=device)
        return images, torch.randint(10, (self.batch,), device=device)

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images), labels)

    def optimizer(self, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
        return trained(model)


def bert_large(smoke: bool, batch: int) -> Words:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    words, length = 30522, 512
    if smoke:
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
        words, length = 96, 64
    config = BertConfig(vocab_size=words, max_position_embeddings=length, **sizes)
    return Words("BERT-large", lambda: BertForMaskedLM(config), batch, length, words, hidden_labels=0.85)


def gpt2_medium(smoke: bool, batch: int) -> Words:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes, words, length = {"n_embd": 1024, "n_layer": 24, "n_head": 16}, 50257, 1024
    if smoke:
        sizes, words, length = {"n_embd": 64, "n_layer": 2, "n_head": 2}, 96, 64
    config = GPT2Config(vocab_size=words, n_positions=length, use_cache=False, **sizes)
    return Words("GPT-2 medium", lambda: GPT2LMHeadModel(config), batch, length, words)


def llama_1b(smoke: bool, batch: int) -> Words:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192}
    heads, words, length = {"num_attention_heads": 32, "num_key_value_heads": 8}, 128256, 2048
    if smoke:
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
        heads, words, length = {"num_attention_heads": 4, "num_key_value_heads": 2}, 96, 64
    config = LlamaConfig(vocab_size=words, tie_word_embeddings=True, use_cache=False, **sizes, **heads)
    return Words("Llama 1B", lambda: LlamaForCausalLM(config), batch, length, words, autocast=False)


def llama_1b_lora(smoke: bool, batch: int) -> Words:
    from peft import LoraConfig, get_peft_model

    plain = llama_1b(smoke, batch)

    def make() -> nn.Module:
        return get_peft_model(plain.make(), LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))

    return replace(plain, title="Llama 1B, LoRA", make=make)


def llama_1b_text(smoke: bool, words: int) -> Words:
    """One text, however long."""
    return replace(llama_1b(smoke, 1), title="Llama 1B, one text", length=words)


def vit_l_16(smoke: bool, batch: int) -> Pictures:
    from torchvision.models import VisionTransformer

    if smoke:
        return Pictures("ViT-L/16", lambda: VisionTransformer(32, 16, 2, 2, 64, 128), batch, 32)
    return Pictures("ViT-L/16", lambda: VisionTransformer(224, 16, 24, 16, 1024, 4096), batch)


def swin_t(smoke: bool, batch: int) -> Pictures:
    from torchvision.models import SwinTransformer, swin_t

    if smoke:
        return Pictures("Swin-T", lambda: SwinTransformer([4, 4], 16, [1, 1], [1, 2], [4, 4]), batch, 32)
    return Pictures("Swin-T", swin_t, batch)


def convnext_t(smoke: bool, batch: int) -> Pictures:
    from torchvision.models import convnext_tiny
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    if smoke:
        stages = [CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)]
        return Pictures("ConvNeXt-T", lambda: ConvNeXt(stages), batch, 32)
    return Pictures("ConvNeXt-T", convnext_tiny, batch)


@dataclass(frozen=True)
class Transformer:
    title: str
    batch: int
    """Of the comparison."""
    make: Callable[[bool, int], Words | Pictures]
    """Of whether tiny sizes will do, and the samples of a step."""
    multiple: int = 1
    """That the largest batch is to be one of."""


TRANSFORMERS = {
    "bert-large": Transformer("BERT-large", 32, bert_large),
    "gpt2-medium": Transformer("GPT-2 medium", 8, gpt2_medium),
    "llama-1b": Transformer("Llama 1B", 4, llama_1b),
    "llama-1b-lora": Transformer("Llama 1B, LoRA", 4, llama_1b_lora),
    "llama-1b-text": Transformer("Llama 1B, words of a text", 8192, llama_1b_text, multiple=512),
    "vit-l": Transformer("ViT-L/16", 64, vit_l_16),
    "swin-t": Transformer("Swin-T", 64, swin_t),
    "convnext-t": Transformer("ConvNeXt-T", 64, convnext_t),
}
