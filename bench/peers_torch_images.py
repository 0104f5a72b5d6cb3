"""The workloads' image models in plain PyTorch: as `peers_torch`, which has those for text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from peers_torch import Config, Dense, Layers, QueryKeyValue, attend
from torch import Tensor, nn

# ViT -----------------------------------------------------------------------------------------------------------------


class VitAttention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.attention, self.output = QueryKeyValue(c), Dense(c["hidden_size"], c["hidden_size"])

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.attention(x))


class VitLayer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        width, hidden = c["hidden_size"], c["intermediate_size"]
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(width, 1e-12), nn.LayerNorm(width, 1e-12)
        self.attention = VitAttention(c)
        self.intermediate, self.output = Dense(width, hidden), Dense(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.layernorm_before(x))
        return x + self.output(F.gelu(self.intermediate(self.layernorm_after(x))))


class Patches(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, c["hidden_size"], c["patch_size"], c["patch_size"])

    def forward(self, pixels: Tensor) -> Tensor:
        return self.projection(pixels).flatten(2).transpose(1, 2)


class VitEmbeddings(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        count = (c["image_size"] // c["patch_size"]) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c["hidden_size"]))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + count, c["hidden_size"]))
        self.patch_embeddings = Patches(c)

    def forward(self, pixels: Tensor) -> Tensor:
        token = self.cls_token.expand(pixels.size(0), -1, -1)
        return torch.cat([token, self.patch_embeddings(pixels)], 1) + self.position_embeddings


class VitTransformer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.embeddings = VitEmbeddings(c)
        self.encoder = Layers("layer", [VitLayer(c) for _ in range(c["num_hidden_layers"])])
        self.layernorm = nn.LayerNorm(c["hidden_size"], 1e-12)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layernorm(self.encoder(self.embeddings(pixels)))


class ViT(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.vit = VitTransformer(c)
        self.classifier = nn.Linear(c["hidden_size"], c["num_labels"])

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.classifier(self.vit(pixel_values)[:, 0])


# CLIP ----------------------------------------------------------------------------------------------------------------


class ClipAttention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        width, self.heads = c["hidden_size"], c["num_attention_heads"]
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        return self.out_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, causal=causal))


class ClipMLP(nn.Module):
    """With the approximation x · sigmoid(1.702 x) of GELU."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(c["hidden_size"], c["intermediate_size"])
        self.fc2 = nn.Linear(c["intermediate_size"], c["hidden_size"])

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class ClipLayer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.self_attn, self.mlp = ClipAttention(c), ClipMLP(c)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(c["hidden_size"]), nn.LayerNorm(c["hidden_size"])

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), causal)
        return x + self.mlp(self.layer_norm2(x))


def clip_encoder(c: Config) -> Layers:
    return Layers("layers", [ClipLayer(c) for _ in range(c["num_hidden_layers"])])


class ClipTextEmbeddings(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.position_embedding = nn.Embedding(c["max_position_embeddings"], c["hidden_size"])

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.size(1)]


class ClipText(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.eos = c["eos_token_id"]
        self.embeddings, self.encoder = ClipTextEmbeddings(c), clip_encoder(c)
        self.final_layer_norm = nn.LayerNorm(c["hidden_size"])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.final_layer_norm(self.encoder(self.embeddings(ids), True))
        return x[torch.arange(len(ids)), (ids == self.eos).int().argmax(-1)]


class ClipVisionEmbeddings(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        width, patch = c["hidden_size"], c["patch_size"]
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding(1 + (c["image_size"] // patch) ** 2, width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        token = self.class_embedding.expand(pixels.size(0), 1, -1)
        return torch.cat([token, patches], 1) + self.position_embedding.weight


class ClipVision(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.embeddings, self.encoder = ClipVisionEmbeddings(c), clip_encoder(c)
        self.pre_layrnorm, self.post_layernorm = nn.LayerNorm(c["hidden_size"]), nn.LayerNorm(c["hidden_size"])

    def forward(self, pixels: Tensor) -> Tensor:
        return self.post_layernorm(self.encoder(self.pre_layrnorm(self.embeddings(pixels)), False)[:, 0])


class Clip(nn.Module):
    """input_ids [B, T], pixel_values [B, 3, H, W] → the scaled similarities of texts with images [B, B]."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        text, vision, out = c["text_config"], c["vision_config"], c["projection_dim"]
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))
        self.text_model, self.vision_model = ClipText(text), ClipVision(vision)
        self.visual_projection = nn.Linear(vision["hidden_size"], out, bias=False)
        self.text_projection = nn.Linear(text["hidden_size"], out, bias=False)

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        texts = F.normalize(self.text_projection(self.text_model(input_ids)), dim=-1)
        images = F.normalize(self.visual_projection(self.vision_model(pixel_values)), dim=-1)
        return texts @ images.T * self.logit_scale.exp()


# ResNet --------------------------------------------------------------------------------------------------------------


def conv(n_in: int, n_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, size, stride, size // 2, bias=False)


class Narrow(nn.Module):
    """The shortcut without parameters: every second pixel, zeros for the new channels."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more // 2))


class BasicBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int, small: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(n_in, n_out, 3, stride), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = conv(n_out, n_out, 3), nn.BatchNorm2d(n_out)
        self.downsample: nn.Module = nn.Identity()
        if n_in != n_out:
            wide = nn.Sequential(conv(n_in, n_out, 1, stride), nn.BatchNorm2d(n_out))
            self.downsample = Narrow(n_out - n_in) if small else wide

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3 with the stride, 1 × 1 to four times as many channels."""

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(n_in, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.downsample: nn.Module = nn.Identity()
        if n_in != 4 * width:
            self.downsample = nn.Sequential(conv(n_in, 4 * width, 1, stride), nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """The networks of three stages for small images (He et al., section 4.2), or of four."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.small, self.stages = len(c["layers"]) == 3, len(c["layers"])
        width = channels = 16 if self.small else 64
        self.conv1 = conv(3, width, 3) if self.small else conv(3, width, 7, 2)
        self.bn1 = nn.BatchNorm2d(width)
        for stage, count in enumerate(c["layers"]):
            blocks: list[nn.Module] = []
            for i in range(count):
                stride = 2 if stage and not i else 1
                if c.get("bottleneck"):
                    blocks.append(Bottleneck(channels, width << stage, stride))
                    channels = 4 * width << stage
                else:
                    blocks.append(BasicBlock(channels, width << stage, stride, self.small))
                    channels = width << stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.head = "linear" if self.small else "fc"
        setattr(self, self.head, nn.Linear(channels, c["num_classes"]))

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(pixel_values)))
        if not self.small:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return getattr(self, self.head)(x.mean((2, 3)))
