"""Networks of the kinds that people write themselves, in a few lines each, for :mod:`benchmarks.zoo`.

Several pictures, pictures among other inputs, rows that are not images, signals in every axis order, heads whose
outputs look like a grid and are none.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 3


def trunk(channels: int = 3, width: int = 16) -> nn.Sequential:
    """Three convolutions of stride 2: 64 x 64 pixels to 8 x 8 cells."""
    layers: list[nn.Module] = []
    for before, after in ((channels, width), (width, width), (width, 2 * width)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def pooled(features: Tensor) -> Tensor:
    """The mean over places."""
    return features.flatten(2).mean(2)


class TwoTrunks(nn.Module):
    """Late fusion of a list of two pictures, such as a frontal and a lateral radiograph."""

    def __init__(self) -> None:
        super().__init__()
        self.frontal, self.lateral, self.head = trunk(), trunk(), nn.Linear(64, CLASSES)

    def forward(self, views: list[Tensor]) -> Tensor:
        """Scores (N, classes)."""
        frontal, lateral = views
        both = [pooled(self.frontal(frontal)), pooled(self.lateral(lateral))]
        out: Tensor = self.head(torch.cat(both, 1))
        return out


class Siamese(nn.Module):
    """One trunk for both pictures of a list, and a score of their difference."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = trunk(), nn.Linear(32, CLASSES)

    def forward(self, pair: list[Tensor]) -> Tensor:
        """Scores (N, classes)."""
        first, second = (pooled(self.trunk(one)) for one in pair)
        out: Tensor = self.head((first - second).abs())
        return out


class Stacked(nn.Module):
    """One trunk on several pictures as one batch: frames, slices, instances or views (N, T, 3, H, W), then joined."""

    def __init__(self, join: str) -> None:
        super().__init__()
        self.cnn, self.head, self.join = trunk(), nn.Linear(32, CLASSES), join
        self.lstm = nn.LSTM(32, 32, batch_first=True) if join == "lstm" else None
        self.attention = nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 1)) if join == "attention" else None

    def forward(self, pictures: Tensor) -> Tensor:
        """Scores (N, classes)."""
        features = pooled(self.cnn(pictures.flatten(0, 1))).unflatten(0, pictures.shape[:2])
        if self.lstm is not None:
            features = self.lstm(features)[0][:, -1]
        elif self.attention is not None:
            features = (features * self.attention(features).softmax(1)).sum(1)
        else:
            features = features.amax(1) if self.join == "max" else features.mean(1)
        out: Tensor = self.head(features)
        return out


class XrayAndVitals(nn.Module):
    """A radiograph and hours of vital signs in a dictionary; the vital signs are read first, as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.vitals, self.xray, self.head = nn.LSTM(8, 16, batch_first=True), trunk(1), nn.Linear(48, CLASSES)

    def forward(self, patient: dict[str, Tensor]) -> Tensor:
        """Scores (N, classes)."""
        hours = self.vitals(patient["vitals"])[0].mean(1)
        out: Tensor = self.head(torch.cat([hours, pooled(self.xray(patient["xray"]))], 1))
        return out


class Question(nn.Module):
    """A picture and words in a dictionary: features times the question's state."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.state = nn.Embedding(20, 32), nn.LSTM(32, 32, batch_first=True)
        self.cnn, self.head = trunk(), nn.Linear(32, CLASSES)

    def forward(self, asked: dict[str, Tensor]) -> Tensor:
        """Scores (N, classes)."""
        state = self.state(self.words(asked["words"]))[0][:, -1]
        out: Tensor = self.head(state * pooled(self.cnn(asked["picture"])))
        return out


class Captioner(nn.Module):
    """A GRU that starts from a picture's features and gives scores of words at every step (N, steps, words)."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn, self.decoder, self.head = trunk(), nn.GRU(32, 32, batch_first=True), nn.Linear(32, 20)

    def forward(self, picture: Tensor) -> Tensor:
        """Scores of words."""
        state = pooled(self.cnn(picture))
        out: Tensor = self.head(self.decoder(state[:, None].expand(-1, 8, -1))[0])
        return out


class TextLine(nn.Module):
    """CRNN: the columns of a line of text are the steps of a GRU; scores (N, steps, letters)."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn, self.steps, self.head = (
            trunk(1),
            nn.GRU(32, 16, batch_first=True, bidirectional=True),
            nn.Linear(32, 9),
        )

    def forward(self, line: Tensor) -> Tensor:
        """Scores of letters."""
        out: Tensor = self.head(self.steps(self.cnn(line).mean(2).mT)[0])
        return out


class Spectrogram(nn.Module):
    """A CNN on a spectrogram (N, time, mel), or on (N, mel, time) if it is transposed."""

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.cnn, self.head, self.transposed = trunk(1), nn.Linear(32, CLASSES), transposed

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Scores (N, classes)."""
        spectrogram = spectrogram.mT if self.transposed else spectrogram
        out: Tensor = self.head(pooled(self.cnn(spectrogram[:, None])))
        return out


class Audio(nn.Module):
    """Raw audio (N, samples): the spectrogram is made inside the network, frequencies by time."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn, self.head = trunk(1), nn.Linear(32, CLASSES)

    def forward(self, audio: Tensor) -> Tensor:
        """Scores (N, classes)."""
        window = torch.hann_window(128, dtype=audio.dtype, device=audio.device)
        spectrum = torch.stft(audio, 128, 64, window=window, return_complex=True).abs().square()
        out: Tensor = self.head(pooled(self.cnn((spectrum[:, None, :64] + 1e-3).log())))
        return out


class Waveform(nn.Module):
    """Convolutions over raw audio (N, samples)."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv1d(channels, 16, 9, 4, 4), nn.ReLU(), nn.Conv1d(16, 32, 9, 4, 4), nn.ReLU()
        )
        self.head = nn.Linear(32, CLASSES)

    def forward(self, audio: Tensor) -> Tensor:
        """Scores (N, classes)."""
        out: Tensor = self.head(self.convolutions(audio[:, None] if audio.dim() == 2 else audio).mean(2))
        return out


class Series(Waveform):
    """Convolutions over a series (N, steps, features) that the network turns round."""

    def __init__(self) -> None:
        super().__init__(6)

    def forward(self, series: Tensor) -> Tensor:
        """Scores (N, classes)."""
        return super().forward(series.mT)


class SeriesTransformer(nn.Module):
    """A transformer with a class token on patches of a signal (N, 2, L), where L may be any length."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv1d(2, 32, 8, 8), nn.Parameter(torch.randn(1, 1, 32))
        self.position = nn.Parameter(torch.randn(1, 32, 32) / 10)
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True)
        self.blocks, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, CLASSES)

    def forward(self, signal: Tensor) -> Tensor:
        """Scores (N, classes)."""
        patches = self.patch(signal).mT
        tokens = torch.cat([self.token.expand(len(signal), -1, -1), patches], 1)
        out: Tensor = self.head(self.blocks(tokens + self.position[:, : tokens.shape[1]])[:, 0])
        return out


class ChannelsLast(nn.Module):
    """Frames of a game (N, H, W, 4), as their environments give them."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn, self.head = trunk(4), nn.Linear(32, CLASSES)

    def forward(self, frames: Tensor) -> Tensor:
        """Values (N, actions)."""
        out: Tensor = self.head(pooled(self.cnn(frames.permute(0, 3, 1, 2))))
        return out


class Experts(nn.Module):
    """Branches that are stacked and summed: a merge, no pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU())
        self.merged = Merged()
        self.head = nn.Linear(16, CLASSES)

    def forward(self, picture: Tensor) -> Tensor:
        """Scores (N, classes)."""
        out: Tensor = self.head(pooled(self.merged(self.stem(picture))))
        return out


class Merged(nn.Module):
    """The sum of a stack of three convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Conv2d(16, 16, 3, 2, 1) for _ in range(3)])

    def forward(self, features: Tensor) -> Tensor:
        """(N, 16, h, w)."""
        return torch.stack([expert(features).relu() for expert in self.experts]).sum(0)


class Average(nn.Module):
    """The mean of two networks' scores."""

    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, picture: Tensor) -> Tensor:
        """Scores (N, classes)."""
        return torch.stack([member(picture) for member in self.members]).mean(0)


class SlowFast(nn.Module):
    """A video (N, 3, T, H, W) through a slow pathway of few frames and a fast one of all."""

    def __init__(self) -> None:
        super().__init__()
        self.slow, self.fast = self.pathway(16), self.pathway(4)
        self.head = nn.Linear(20, CLASSES)

    @staticmethod
    def pathway(width: int) -> nn.Sequential:
        """Two convolutions that keep the frames."""
        return nn.Sequential(
            nn.Conv3d(3, width, 3, (1, 4, 4), 1), nn.ReLU(), nn.Conv3d(width, width, 3, (1, 2, 2), 1), nn.ReLU()
        )

    def forward(self, video: Tensor) -> Tensor:
        """Scores (N, classes)."""
        slow, fast = pooled(self.slow(video[:, :, ::4])), pooled(self.fast(video))
        out: Tensor = self.head(torch.cat([slow, fast], 1))
        return out


class Detector(nn.Module):
    """Two levels whose rows of 4 box and 80 class scores stand side by side: (N, 84, anchors)."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 16, 3, 8, 1), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.head = Rows()

    def forward(self, picture: Tensor) -> Tensor:
        """Rows of all anchors."""
        fine = self.fine(picture)
        out: Tensor = self.head(fine, self.coarse(fine))
        return out


class Rows(nn.Module):
    """A detector's head."""

    def __init__(self) -> None:
        super().__init__()
        self.of_fine, self.of_coarse = nn.Conv2d(16, 84, 1), nn.Conv2d(16, 84, 1)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """(N, 84, anchors)."""
        return torch.cat([self.of_fine(fine).flatten(2), self.of_coarse(coarse).flatten(2)], 2).sigmoid()


class Depth(nn.Module):
    """A depth map (N, H, W) without an axis of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn, self.depth = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()), nn.Conv2d(8, 1, 3, 1, 1)

    def forward(self, picture: Tensor) -> Tensor:
        """Metres."""
        out: Tensor = self.depth(F.interpolate(self.cnn(picture), scale_factor=2.0)).sigmoid().squeeze(1) * 10
        return out


class Autoencoder(nn.Module):
    """Features become a vector and a grid again: the grid is not the picture's."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bottleneck = trunk(), nn.Sequential(nn.Flatten(), nn.Linear(2048, 16), nn.Linear(16, 2048))
        self.decoder = nn.Sequential(nn.Unflatten(1, (32, 8, 8)), nn.ConvTranspose2d(32, 3, 8, 8))

    def forward(self, picture: Tensor) -> Tensor:
        """A picture."""
        out: Tensor = self.decoder(self.bottleneck(self.encoder(picture)))
        return out


class Sampled(nn.Module):
    """A transformer that keeps the half of its tokens with the largest norms: they are no longer in place."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 32, 8, 8), nn.Linear(32, CLASSES)
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True)
        self.before, self.after = (nn.TransformerEncoder(layer, 1, enable_nested_tensor=False) for _ in range(2))

    def forward(self, picture: Tensor) -> Tensor:
        """Scores (N, classes)."""
        tokens = self.before(self.patch(picture).flatten(2).mT)
        chosen = tokens.norm(dim=2).topk(tokens.shape[1] // 4).indices
        out: Tensor = self.head(self.after(tokens.gather(1, chosen[:, :, None].expand(-1, -1, 32))).mean(1))
        return out


class TimeFirst(nn.Module):
    """Tokens of a video (N, 3, T, H, W) that run patch by patch, and in a patch frame by frame, as in TimeSformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv3d(3, 32, (1, 16, 16), (1, 16, 16)), nn.Linear(32, CLASSES)
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, video: Tensor) -> Tensor:
        """Scores (N, classes)."""
        tokens = self.patch(video).permute(0, 3, 4, 2, 1).flatten(1, 3)
        out: Tensor = self.head(self.blocks(tokens).mean(1))
        return out


class MaskUnits(nn.Module):
    """Tokens that run by windows of 4 x 4 patches, as in Hiera, to the end."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 32, 4, 4), nn.Linear(32, CLASSES)
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, picture: Tensor) -> Tensor:
        """Scores (N, classes)."""
        units = self.patch(picture).unflatten(3, (-1, 4)).unflatten(2, (-1, 4))
        out: Tensor = self.head(self.blocks(units.permute(0, 2, 4, 3, 5, 1).flatten(1, 4)).mean(1))
        return out

    @staticmethod
    def in_order(tokens: Tensor) -> Tensor:
        """The tokens on the grid of patches, (N, 16, 16, C)."""
        units = tokens.view(-1, 4, 4, 4, 4, tokens.shape[-1])
        return units.transpose(2, 3).reshape(-1, 16, 16, tokens.shape[-1])


def wrapped(model: Any, inputs: Any) -> Any:
    """Call a model with a dictionary's entries by name."""
    return model(**inputs)
