"""The models that are trained: ResNet-50, ResNet-20 for small images, and BERT for masked-language modelling."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 to four times the channels, each normalized; added to the input.

    `widening` multiplies the channels that the 3x3 convolution sees.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, widening: int = 1):
        super().__init__()
        width, channels_out = channels * widening, 4 * channels
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels_in != channels_out:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """Layer for layer, and by name, torchvision's ResNet of bottlenecks; (3, 4, 6, 3) is its resnet50."""

    def __init__(self, blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000, widening: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels_in = width
        for stage, count in enumerate(blocks):
            channels = width * 2**stage
            layers = []
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(Bottleneck(channels_in, channels, stride, widening))
                channels_in = 4 * channels
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.stages = len(blocks)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels_in, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(self.avgpool(x).flatten(1))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each normalized; added to the input, or to its 1x1 projection where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = None
        if stride != 1 or channels_in != channels:
            projection = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))
        self.activation = nn.Sequential(nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        out += x if self.shortcut is None else self.shortcut(x)
        return self.activation(out)


def small_resnet(stages: int, blocks: int, width: int, channels: int, classes: int) -> nn.Sequential:
    """A ResNet for small images, channels_last; each stage has as many blocks, half the side and twice the channels."""
    layers = [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    before = width
    for stage in range(stages):
        after = width * 2**stage
        for block in range(blocks):
            layers.append(ResidualBlock(before, after, 2 if block == 0 and stage > 0 else 1))
            before = after
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)]
    model = nn.Sequential(*layers)
    for parameter in model.parameters():
        if parameter.dim() == 4:
            # Not to(memory_format): it would find the stem's weight, with one input channel, to be in both formats.
            parameter.data = torch.empty_like(parameter, memory_format=torch.channels_last).copy_(parameter.data)
    return model


def resnet20(width: int = 16, channels: int = 1, classes: int = 10) -> nn.Sequential:
    """The ResNet-20 of CIFAR; layer for layer, and by name, that of the program `actnn train`."""
    return small_resnet(3, 3, width, channels, classes)


def resnet18(width: int = 64, channels: int = 1, classes: int = 10) -> nn.Sequential:
    """ResNet-18 with a stem for small images: a 3x3 convolution without a stride, no pooling."""
    return small_resnet(4, 2, width, channels, classes)


NETWORKS = {"resnet20": (resnet20, 16), "resnet18": (resnet18, 64)}
"""What makes the network from the channels of its first stage, and their usual number."""


@dataclass(frozen=True)
class BertSizes:
    """The defaults are BERT-large's."""

    vocabulary: int = 30522
    hidden: int = 1024
    layers: int = 24
    heads: int = 16
    intermediate: int = 4096
    positions: int = 512
    dropout: float = 0.1


class BertLayer(nn.Module):
    """Self-attention and a feed-forward network, each added to its input and normalized."""

    def __init__(self, sizes: BertSizes):
        super().__init__()
        self.heads, self.dropout_probability = sizes.heads, sizes.dropout
        self.query, self.key, self.value, self.output = (nn.Linear(sizes.hidden, sizes.hidden) for _ in range(4))
        self.attention_norm = nn.LayerNorm(sizes.hidden, eps=1e-12)
        self.intermediate = nn.Linear(sizes.hidden, sizes.intermediate)
        self.gelu = nn.GELU()
        self.projection = nn.Linear(sizes.intermediate, sizes.hidden)
        self.norm = nn.LayerNorm(sizes.hidden, eps=1e-12)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        dropout = self.dropout_probability if self.training else 0.0
        attention = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(2)
        x = self.attention_norm(x + self.dropout(self.output(attention)))
        return self.norm(x + self.dropout(self.projection(self.gelu(self.intermediate(x)))))


class Bert(nn.Module):
    """BERT with its masked-language-modelling head, whose weight is the word embedding; returns the loss."""

    def __init__(self, sizes: BertSizes):
        super().__init__()
        self.words = nn.Embedding(sizes.vocabulary, sizes.hidden)
        self.positions = nn.Embedding(sizes.positions, sizes.hidden)
        self.types = nn.Embedding(2, sizes.hidden)
        self.norm = nn.LayerNorm(sizes.hidden, eps=1e-12)
        self.dropout = nn.Dropout(sizes.dropout)
        self.layers = nn.ModuleList(BertLayer(sizes) for _ in range(sizes.layers))
        self.transform = nn.Linear(sizes.hidden, sizes.hidden)
        self.gelu = nn.GELU()
        self.head_norm = nn.LayerNorm(sizes.hidden, eps=1e-12)
        self.decoder = nn.Linear(sizes.hidden, sizes.vocabulary)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        self.decoder.weight = self.words.weight

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.words(input_ids) + self.positions(positions) + self.types.weight[0]
        x = self.dropout(self.norm(x))
        for layer in self.layers:
            x = layer(x)
        scores = self.decoder(self.head_norm(self.gelu(self.transform(x))))
        return F.cross_entropy(scores.flatten(0, 1), labels.flatten())


class HuggingFaceBert(nn.Module):
    """transformers' BertForMaskedLM of the same sizes; returns the loss."""

    def __init__(self, sizes: BertSizes):
        super().__init__()
        from transformers import BertConfig, BertForMaskedLM

        config = BertConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.intermediate,
            max_position_embeddings=sizes.positions,
            hidden_dropout_prob=sizes.dropout,
            attention_probs_dropout_prob=sizes.dropout,
            attn_implementation="sdpa",
        )
        self.model = BertForMaskedLM(config)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, labels=labels).loss


def make_bert(sizes: BertSizes) -> nn.Module:
    """transformers' BERT, or the plain one where transformers cannot be imported. Both have layers named BertLayer."""
    try:
        return HuggingFaceBert(sizes)
    except ImportError:
        return Bert(sizes)
