"""Models that other packages publish, for bench.real_models: built of the packages' own classes in their
default sizes, with what goes into them drawn at random.

A function per model imports its package, so that one that is missing matters to its own models only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["MODELS", "Built", "Published"]


class Built(NamedTuple):
    """A model, what inference returns (a tensor, or several in lists, tuples and dicts), and what training
    minimises."""

    model: torch.nn.Module
    infer: Callable[[], Any]
    loss: Callable[[], Tensor]


@dataclass(frozen=True)
class Published:
    package: str
    name: str
    build: Callable[[], Built]

    def __str__(self) -> str:
        return f"{self.package} {self.name}"


def _ctc(scores: Tensor) -> Tensor:
    """CTC loss of scores [T, B, classes] and ten labels a sequence; 0 is the blank."""
    steps, batch, classes = scores.shape
    labels = torch.arange(10 * batch).view(batch, 10) % (classes - 1) + 1
    return functional.ctc_loss(scores.log_softmax(-1), labels, (steps,) * batch, (10,) * batch)


def deep_speech() -> Built:
    from torchaudio.models import DeepSpeech

    model, x = DeepSpeech(n_feature=494), torch.randn(4, 1, 150, 494)
    return Built(model, lambda: model(x), lambda: _ctc(model(x).transpose(0, 1)))


def wave_rnn() -> Built:
    from torchaudio.models import WaveRNN

    model = WaveRNN([5, 5, 11], n_classes=256, hop_length=275)
    wave, mels = torch.rand(4, 1, 1375) * 2 - 1, torch.randn(4, 1, 128, 9)
    target = torch.randint(256, (4 * 1375,))

    def run() -> Tensor:
        return model(wave, mels)

    return Built(model, run, lambda: functional.cross_entropy(run().view(-1, 256), target))


def tacotron() -> Built:
    from torchaudio.models import Tacotron2

    model = Tacotron2()
    batch, symbols, frames = 8, 60, 50
    tokens, lengths = torch.randint(148, (batch, symbols)), torch.arange(symbols, symbols - 4 * batch, -4)
    mels, ends = torch.randn(batch, 80, frames), torch.zeros(batch, frames)

    def run() -> tuple[Tensor, ...]:
        return model(tokens, lengths, mels, torch.full((batch,), frames))[:3]

    def loss() -> Tensor:
        before, after, stop = run()
        ending = functional.binary_cross_entropy_with_logits(stop, ends)
        return functional.mse_loss(before, mels) + functional.mse_loss(after, mels) + ending

    return Built(model, run, loss)


def forecasting(name: str, **sampled: int) -> Built:
    import pytorch_forecasting
    from pytorch_forecasting.data.examples import generate_ar_data

    data = generate_ar_data(n_series=100, timesteps=200, seed=0)
    data["series"] = data["series"].astype(str)
    dataset = pytorch_forecasting.TimeSeriesDataSet(
        data,
        time_idx="time_idx",
        target="value",
        group_ids=["series"],
        static_categoricals=["series"],
        time_varying_unknown_reals=["value"],
        min_encoder_length=30,
        max_encoder_length=60,
        max_prediction_length=20,
    )
    model = getattr(pytorch_forecasting, name).from_dataset(dataset)
    x, y = next(iter(dataset.to_dataloader(train=True, batch_size=64, num_workers=0)))
    return Built(
        model,
        lambda: model(x, **sampled)["prediction"],
        lambda: model.loss(model(x)["prediction"], y),
    )


def recurrent_policy() -> Built:
    """The policy alone, on a batch as training cuts it: 128 frames, every sequence from an episode's start.
    bench.recurrent_ppo learns with it."""
    from gymnasium.spaces import Box, Discrete
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    model = RecurrentActorCriticPolicy(Box(-1, 1, (4,)), Discrete(2), lambda _: 3e-4)
    sequences, steps = 8, 16
    observations, actions = torch.rand(sequences * steps, 4), torch.randint(2, (sequences * steps,))
    starts = (torch.arange(sequences * steps) % steps == 0).float()
    states = (torch.zeros(1, sequences, 256),) * 2

    def run() -> tuple[Tensor, Tensor, Tensor]:
        return model.evaluate_actions(observations, actions, RNNStates(states, states), starts)

    def loss() -> Tensor:
        values, likelihood, entropy = run()
        return values.square().mean() - likelihood.mean() - 0.01 * entropy.mean()

    return Built(model, run, loss)


def text_recognition() -> Built:
    from kraken.configs import VGSLRecognitionTrainingConfig
    from kraken.lib.vgsl import TorchVGSLModel

    model = TorchVGSLModel(vgsl=f"{VGSLRecognitionTrainingConfig().spec[:-1]} O1c100]")
    lines, widths = torch.rand(8, 1, 120, 800), torch.arange(800, 400, -50)

    def run() -> Tensor:
        return model(lines, widths)[0]

    return Built(model, run, lambda: _ctc(run().squeeze(2).permute(2, 0, 1)))


def neural_forecast(name: str) -> Built:
    import neuralforecast.models

    model = getattr(neuralforecast.models, name)(h=24, input_size=72)
    y = torch.randn(128, 24, 1)
    windows = {"insample_y": torch.randn(128, 72, 1), "insample_mask": torch.ones(128, 72, 1)}
    windows |= dict.fromkeys(("futr_exog", "hist_exog", "stat_exog"))

    def run() -> Tensor:
        return model(windows)

    return Built(model, run, lambda: model.loss(y=y, y_hat=run(), mask=torch.ones_like(y)))


def interest_evolution() -> Built:
    from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
    from deepctr_torch.models import DIEN

    batch, steps = 128, 100
    sizes = {"item": 10001, "category": 101}
    columns = [SparseFeat(name, size, 18) for name, size in sizes.items()]
    columns += [
        VarLenSparseFeat(
            SparseFeat(f"hist_{name}", size, 18, embedding_name=name), steps, length_name="seq_length"
        )
        for name, size in sizes.items()
    ]
    # The package draws weights so small that no output would depend on the sequence.
    model = DIEN(columns, list(sizes), init_std=0.1)
    x = torch.zeros(batch, max(end for _, end in model.feature_index.values()))
    for name, (start, end) in model.feature_index.items():
        limit = sizes.get(name.removeprefix("hist_"), steps + 1)
        x[:, start:end] = torch.randint(1, limit, (batch, end - start)).float()
    clicked = torch.randint(2, (batch, 1)).float()
    return Built(model, lambda: model(x), lambda: functional.binary_cross_entropy(model(x), clicked))


def tagger() -> Built:
    from stanza.models import tagger
    from stanza.models.pos.model import Tagger

    vocabulary = {"word": 20000, "char": 200, "upos": 20, "xpos": 50, "feats": 100}
    model = Tagger(
        tagger.parse_args([]),
        {name: range(size) for name, size in vocabulary.items()},
        emb_matrix=torch.randn(10000, 100),
    )
    for weight in model.parameters():
        if not weight.any() and weight.dim() == 2:  # such classifiers let no gradient through
            torch.nn.init.xavier_uniform_(weight)

    def lengths(low: int, high: int, count: int) -> list[int]:
        return sorted(torch.randint(low, high, (count,)).tolist(), reverse=True)

    def filled(name: str, *shape: int) -> Tensor:
        return torch.randint(1, vocabulary.get(name, 10000), shape)

    sentences = lengths(5, 41, 32)
    words = lengths(2, 13, sum(sentences))
    order = torch.randperm(len(words)).tolist()
    known, pretrained = filled("word", 32, sentences[0]), filled("pretrained", 32, sentences[0])
    letters = filled("char", len(words), words[0])
    tags = [filled(name, 32, sentences[0]) for name in ("upos", "xpos", "feats")]

    def run() -> Tensor:
        masks = known == 0, letters == 0
        return model(
            known, masks[0], letters, masks[1], tags, pretrained, order, sentences, words, text=None
        )[0]

    return Built(model, run, run)


def character_model() -> Built:
    from stanza.models import charlm
    from stanza.models.common.char_model import CharacterLanguageModel

    model = CharacterLanguageModel(vars(charlm.build_argparse().parse_args([])), {"char": range(300)})
    text = torch.randint(300, (8, 250))

    def run() -> Tensor:
        return model(text, [250] * 8)[2]

    return Built(
        model, run, lambda: functional.cross_entropy(run().flatten(0, 1), text.roll(-1, 1).flatten())
    )


def voice_encoder() -> Built:
    from resemblyzer import VoiceEncoder

    model = VoiceEncoder("cpu", verbose=False)
    for part in (model.lstm, model.linear):  # the package comes with weights
        part.reset_parameters()
    mels, speakers = torch.rand(32, 160, 40), torch.arange(32)

    def loss() -> Tensor:
        embedded = model(mels)
        return functional.cross_entropy(10 * embedded @ embedded.t(), speakers)

    return Built(model, lambda: model(mels), loss)


def separation(name: str, samples: int) -> Built:
    import asteroid.models
    from asteroid.losses import PITLossWrapper, pairwise_neg_sisdr

    model, criterion = getattr(asteroid.models, name)(n_src=2), PITLossWrapper(pairwise_neg_sisdr)
    mixture, sources = torch.randn(2, 1, samples), torch.randn(2, 2, samples)
    return Built(model, lambda: model(mixture), lambda: criterion(model(mixture), sources))


def gluonts_deep_ar() -> Built:
    from gluonts.torch.model.deepar import DeepAREstimator

    model = DeepAREstimator("h", prediction_length=24).create_lightning_module().model
    x = model.describe_inputs(32).zeros()
    for values in (values for values in x.values() if values.is_floating_point()):
        values.uniform_()
    future = torch.rand(32, 24)
    given = {"future_target": future, "future_observed_values": torch.ones_like(future)}
    return Built(model, lambda: model(**x), lambda: model.loss(**x, **given).mean())


def brits() -> Built:
    from pypots.nn.modules.brits import BackboneBRITS

    model = BackboneBRITS(n_steps=48, n_features=37, rnn_hidden_size=128)
    mask = (torch.rand(32, 48, 37) < 0.8).float()
    series = {"X": torch.randn(32, 48, 37) * mask, "missing_mask": mask, "deltas": torch.rand(32, 48, 37)}
    data = {"forward": series, "backward": {name: values.flip(1) for name, values in series.items()}}

    def loss() -> Tensor:
        *_, consistency, reconstruction = model(data)
        return consistency + reconstruction

    return Built(model, lambda: model(data)[0], loss)


def crdnn() -> Built:
    from speechbrain.lobes.models.CRDNN import CRDNN
    from speechbrain.nnet.RNN import LSTM

    x = torch.randn(4, 100, 40)
    model = CRDNN(input_shape=x.shape, rnn_class=LSTM)
    return Built(model, lambda: model(x), lambda: _ctc(model(x).transpose(0, 1)))


def torchrl_lstm() -> Built:
    from tensordict import TensorDict
    from torchrl.modules import LSTMModule, set_recurrent_mode

    model = LSTMModule(input_size=128, hidden_size=128, in_key="x", out_key="y")
    batch, steps = 32, 64
    state = torch.zeros(batch, steps, 1, 128)
    data = {"x": torch.randn(batch, steps, 128), "is_init": torch.rand(batch, steps, 1) < 0.02}
    data |= {"recurrent_state_h": state, "recurrent_state_c": state}

    def run() -> Tensor:
        with set_recurrent_mode(True):
            return model(TensorDict(data, [batch, steps]))["y"]

    return Built(model, run, lambda: run().square().mean())


def rsl_rl_actor() -> Built:
    """Inference steps through a rollout, training takes its episodes as padded sequences."""
    from rsl_rl.models import RNNModel
    from rsl_rl.utils import split_and_pad_trajectories
    from tensordict import TensorDict

    steps, batch = 24, 64
    rollout = TensorDict({"policy": torch.randn(steps, batch, 48)}, [steps, batch])
    model = RNNModel(rollout[0], {"actor": ["policy"]}, "actor", output_dim=12)
    padded, masks = split_and_pad_trajectories(rollout, torch.rand(steps, batch, 1) < 0.02)
    states = (torch.zeros(1, masks.shape[1], 256),) * 2

    def infer() -> list[Tensor]:
        model.reset()
        return [model(observation) for observation in rollout]

    return Built(model, infer, lambda: model(padded, masks, states).square().mean())


def open_unmix() -> Built:
    from openunmix.model import OpenUnmix

    model = OpenUnmix(nb_bins=2049, max_bin=1487)
    x, y = torch.rand(2, 4, 2, 2049, 255)
    return Built(model, lambda: model(x), lambda: functional.mse_loss(model(x), y))


def easy_ocr() -> Built:
    from easyocr.model.vgg_model import Model

    model = Model(input_channel=1, output_channel=256, hidden_size=256, num_class=97)
    x = torch.rand(8, 1, 64, 256)
    return Built(model, lambda: model(x, None), lambda: _ctc(model(x, None).transpose(0, 1)))


def doctr_crnn() -> Built:
    from doctr.models import crnn_vgg16_bn

    model = crnn_vgg16_bn(pretrained=False, pretrained_backbone=False)
    x, words = torch.rand(8, 3, 32, 128), ["recurrent"] * 8
    return Built(
        model,
        lambda: model(x, return_model_output=True)["out_map"],
        lambda: model(x, words)["loss"],
    )


def hybrid_demucs() -> Built:
    from demucs.hdemucs import HDemucs

    model = HDemucs(["drums", "bass", "other", "vocals"])
    mixture, sources = torch.randn(1, 2, 44100), torch.randn(1, 4, 2, 44100)
    return Built(model, lambda: model(mixture), lambda: functional.l1_loss(model(mixture), sources))


def diarization() -> Built:
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.segmentation import PyanNet

    model = PyanNet()
    model.specifications = Specifications(
        Problem.MULTI_LABEL_CLASSIFICATION, Resolution.FRAME, duration=10.0, classes=["A", "B", "C"]
    )
    model.build()
    wave = torch.randn(8, 1, 160000)

    def loss() -> Tensor:
        speaking = model(wave)
        return functional.binary_cross_entropy(speaking, torch.zeros_like(speaking))

    return Built(model, lambda: model(wave), loss)


def attentive_fp() -> Built:
    """Of chains of atoms in place of molecules."""
    from torch_geometric.nn import AttentiveFP

    model = AttentiveFP(39, 200, 1, edge_dim=10, num_layers=2, num_timesteps=2, dropout=0.2)
    atoms = torch.arange(200 * 13).view(200, 13)
    bonds = torch.stack((atoms[:, :-1].flatten(), atoms[:, 1:].flatten()))
    edges = torch.cat((bonds, bonds.flip(0)), 1)
    x, properties, y = torch.randn(200 * 13, 39), torch.randn(edges.shape[1], 10), torch.randn(200, 1)

    def run() -> Tensor:
        return model(x, edges, properties, torch.arange(200).repeat_interleave(13))

    return Built(model, run, lambda: functional.mse_loss(run(), y))


MODELS = (
    Published("torchaudio", "DeepSpeech", deep_speech),
    Published("torchaudio", "WaveRNN", wave_rnn),
    Published("torchaudio", "Tacotron2", tacotron),
    Published("speechbrain", "CRDNN", crdnn),
    Published("asteroid", "DPRNNTasNet", functools.partial(separation, "DPRNNTasNet", 8000)),
    Published("asteroid", "LSTMTasNet", functools.partial(separation, "LSTMTasNet", 4000)),
    Published("openunmix", "OpenUnmix", open_unmix),
    Published("demucs", "HDemucs", hybrid_demucs),
    Published("pyannote-audio", "PyanNet", diarization),
    Published("resemblyzer", "VoiceEncoder", voice_encoder),
    Published("kraken", "recognition", text_recognition),
    Published("easyocr", "CRNN", easy_ocr),
    Published("python-doctr", "CRNN", doctr_crnn),
    Published("stanza", "tagger", tagger),
    Published("stanza", "character language model", character_model),
    Published(
        "pytorch-forecasting",
        "TemporalFusionTransformer",
        functools.partial(forecasting, "TemporalFusionTransformer"),
    ),
    Published("pytorch-forecasting", "DeepAR", functools.partial(forecasting, "DeepAR", n_samples=100)),
    Published("pytorch-forecasting", "RecurrentNetwork", functools.partial(forecasting, "RecurrentNetwork")),
    Published("gluonts", "DeepAR", gluonts_deep_ar),
    Published("neuralforecast", "LSTM", functools.partial(neural_forecast, "LSTM")),
    Published("neuralforecast", "GRU", functools.partial(neural_forecast, "GRU")),
    Published("pypots", "BRITS", brits),
    Published("deepctr-torch", "DIEN", interest_evolution),
    Published("torch-geometric", "AttentiveFP", attentive_fp),
    Published("sb3-contrib", "recurrent policy", recurrent_policy),
    Published("torchrl", "LSTMModule", torchrl_lstm),
    Published("rsl-rl-lib", "RNNModel", rsl_rl_actor),
)
