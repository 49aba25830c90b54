"""
What policies see with: ResNet-18 (He et al. 2015, arXiv 1512.03385), a spatial softmax (Finn et al. 2015,
arXiv 1509.06113), crops.

    images (N, 3, H, W) in [-1, 1]  ->  ResNet18  (N, 512, H/32, W/32)  ->  SpatialSoftmax  (N, 32, 2)

GroupNorm stands where BatchNorm stood: averaged weights (EMA) and statistics of batches do not go together
(Diffusion Policy, arXiv 2303.04137). `Backbone` is the same network with torchvision's names and a norm of
one's choice, so that ImageNet's weights (`imagenet`) and those of LeRobot's policies fit.
"""
import os
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F

import checkpoint

IMAGENET = 'ResNet18_Weights.IMAGENET1K_V1'              # torchvision's word for this file
URL = 'https://download.pytorch.org/models/resnet18-f37072fd.pth'


def norm(channels):
    """Groups of 16 channels, as Diffusion Policy has them."""
    return nn.GroupNorm(channels // 16, channels)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the first may halve the picture."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), norm(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), norm(out)
        self.downsample = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), norm(out))

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """(N, 3, H, W) -> (N, 512, H/32, W/32), rounded up; without the pooling and the classifier at its end."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), norm(64)
        channels, layers = 64, []
        for out, stride in (64, 1), (128, 2), (256, 2), (512, 2):
            layers += [BasicBlock(channels, out, stride), BasicBlock(out, out, 1)]
            channels = out
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        return self.layers(F.max_pool2d(x, 3, 2, 1))


class FrozenNorm(nn.Module):
    """BatchNorm that never learns: statistics, scale and shift are buffers; as built, the identity."""

    def __init__(self, channels):
        super().__init__()
        for name, value in ('weight', 1.0), ('bias', 0.0), ('running_mean', 0.0), ('running_var', 1.0):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class BackboneBlock(nn.Module):
    """BasicBlock with torchvision's names."""

    def __init__(self, channels, out, stride, norm):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), norm(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), norm(out)
        self.downsample = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), norm(out))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)            # fewer trips to memory
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Backbone(nn.Module):
    """
    ResNet18 with torchvision's names; norm(channels) makes what follows each convolution: FrozenNorm,
    nn.BatchNorm2d or `norm`. Its children in their order are the whole network, for an nn.Sequential.
    """

    def __init__(self, norm=FrozenNorm):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), norm(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        channels = 64
        for i, out in enumerate((64, 128, 256, 512), 1):
            first = BackboneBlock(channels, out, 1 if i == 1 else 2, norm)
            self.add_module(f'layer{i}', nn.Sequential(first, BackboneBlock(out, out, 1, norm)))
            channels = out
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


def flops(height, width):
    """FLOPs of the convolutions of ResNet18 or Backbone, for one picture."""
    area = [-(-height // k) * -(-width // k) for k in (2, 4, 8, 16, 32)]
    products = area[0] * 49 * 3 * 64 + area[1] * 9 * 64 * 64 * 4
    for n, c in zip(area[2:], (128, 256, 512)):
        products += n * (9 * c * c * 3.5 + c * c / 2)
    return 2 * products


def imagenet(backbone, src):
    """
    Fill a Backbone with weights that torchvision trained on ImageNet. src: a file in its layout, .pth or
    .safetensors, or IMAGENET, which is fetched once, its sha256 compared with the digits of its name.
    """
    own, path = backbone.state_dict(), src
    if 'bn1.running_mean' not in own:
        raise ValueError(f'pretrained_backbone_weights = {src}: they go with BatchNorm, not with GroupNorm')
    if src == IMAGENET:
        path, digits = checkpoint.fetch(URL), URL.rpartition('-')[2].removesuffix('.pth')
        if not checkpoint.sha256(path).startswith(digits):
            sys.exit(f'{path} is not {URL}: its sha256 does not begin with {digits}; delete it, run again')
    weights = checkpoint.read(*os.path.split(path), advice=f'give a file of ResNet-18, or {IMAGENET}')
    # the classifier is of no use here, and only some norms count their batches
    idle = [key for key in weights if key.startswith('fc.') or key.endswith('.num_batches_tracked')]
    weights = {key: x for key, x in weights.items() if key not in idle}
    checkpoint.fill(backbone, weights, path, may_lack=[k for k in own if k.endswith('.num_batches_tracked')])


class SpatialSoftmax(nn.Module):
    """(N, C, H, W) -> (N, points, 2): where each of some maps is large, x and y in [-1, 1]."""

    def __init__(self, channels, points=32):
        super().__init__()
        self.maps = nn.Conv2d(channels, points, 1)

    def forward(self, x):
        y = self.maps(x)                                             # (N, points, H, W)
        H, W = y.shape[2:]
        p = y.flatten(2).softmax(-1).view_as(y)
        across, down = (torch.linspace(-1, 1, n, device=y.device, dtype=y.dtype) for n in (W, H))
        return torch.stack([(p.sum(2) * across).sum(-1), (p.sum(3) * down).sum(-1)], -1)


class GridSoftmax(nn.Module):
    """SpatialSoftmax by LeRobot's names, its places in a buffer: for maps of one size, H x W."""

    def __init__(self, channels, points, H, W):
        super().__init__()
        self.nets = nn.Conv2d(channels, points, 1)
        across, down = torch.linspace(-1, 1, W), torch.linspace(-1, 1, H)
        grid = torch.stack([across.expand(H, W), down[:, None].expand(H, W)], -1)
        self.register_buffer('pos_grid', grid.reshape(H * W, 2))

    def forward(self, x):
        return self.nets(x).flatten(2).softmax(-1) @ self.pos_grid   # (N, points, 2)


def crop(images, size, random):
    """(N, C, H, W) -> (N, C, h, w): from the middle, or each somewhere else. size: h = w, or (h, w)."""
    N, C, H, W = images.shape
    h, w = (size, size) if isinstance(size, int) else size
    if H < h or W < w:
        raise ValueError(f'crop = {size}: the pictures are {H} x {W}; choose a smaller one')
    if not random:
        y, x = round((H - h) / 2), round((W - w) / 2)    # as torchvision rounds
        return images[:, :, y:y + h, x:x + w]
    y = torch.randint(0, H - h + 1, (N, 1), device=images.device)
    x = torch.randint(0, W - w + 1, (N, 1), device=images.device)
    rows = y + torch.arange(h, device=images.device)                 # (N, h)
    columns = x + torch.arange(w, device=images.device)              # (N, w)
    n, c = (torch.arange(k, device=images.device) for k in (N, C))
    return images[n[:, None, None, None], c[None, :, None, None], rows[:, None, :, None],
                  columns[:, None, None, :]]
