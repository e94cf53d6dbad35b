"""The training of LEAP's convolutional network, which can be stopped and gone on with.

Shapes: S subjects, N pictures of one, F features, E numbers of an answer.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from konomi.diffusion.random import Rng
from konomi.models.start_network import ConvolutionalNetwork
from konomi.storage.tensor_file import read_header, read_tensors, write_tensors
from konomi.training.events import Prepared

BATCH = 32
"""Subjects of a step."""
MOST = 4
"""Pictures of a subject that are seen together, 1 to so many."""
SAVE_SECONDS = 20.0
_EPOCH = "konomi.epoch"


@dataclass(frozen=True, slots=True)
class Examples:
    """What is learned from."""

    pictures: Sequence[Tensor]
    """Of each subject, uint8 [N, 3, SIDE, SIDE]."""
    embeddings_SE: Tensor


def learn_convolutional(
    examples: Examples, kept: Path, *, epochs: int, rate: float, seed: int, device: torch.device
) -> Iterator[Prepared | dict[str, Tensor]]:
    """AdamW on the absolute error. `kept` is where the state of training lies; where it is there
    already, training goes on with it, to the same bits. Ends with the network's tensors on the CPU.
    """
    torch_seed = Rng.for_step(seed, 0).fork("convolutional")
    network = _new_network(examples.embeddings_SE, torch_seed).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    first = _restore(kept, network, optimizer) if kept.is_file() else 0
    saved = time.monotonic()
    yield Prepared("network", first, epochs)
    for epoch in range(first, epochs):
        _epoch(network, optimizer, examples, Rng.for_step(seed, epoch).fork("epoch"), device)
        if time.monotonic() - saved > SAVE_SECONDS and epoch + 1 < epochs:
            _save(kept, network, optimizer, epoch + 1)
            saved = time.monotonic()
        yield Prepared("network", epoch + 1, epochs)
    yield {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}


@torch.no_grad()
def guesses(tensors: dict[str, Tensor], pictures: Sequence[Tensor]) -> Tensor:
    """[S, E]: what a network says of pictures, uint8 [N, 3, SIDE, SIDE] of each subject."""
    network = ConvolutionalNetwork(len(tensors["low"]))
    network.load_state_dict(tensors)
    rows = [network.features(_floats(some)).mean(0) for some in pictures]
    return network.answer(torch.stack(rows))


def _epoch(
    network: ConvolutionalNetwork,
    optimizer: torch.optim.Optimizer,
    examples: Examples,
    rng: Rng,
    device: torch.device,
) -> None:
    order = rng.fork("order").uniform((len(examples.pictures),))[0].argsort().tolist()
    for number, start in enumerate(range(0, len(order), BATCH)):
        some, step = order[start : start + BATCH], rng.fork(f"step {number}")
        chosen = step.fork("pictures").uniform((len(some), MOST))[0]
        counts = step.fork("count").integers(1, MOST + 1, (len(some),))[0].tolist()
        shown = [
            examples.pictures[subject][(row[:count] * len(examples.pictures[subject])).long()]
            for subject, row, count in zip(some, chosen, counts, strict=True)
        ]
        features = network.features(_floats(torch.cat(shown)).to(device)).split(counts)
        features_SF = torch.stack([one.mean(0) for one in features])
        drop = step.fork("dropout").uniform(features_SF.shape)[0].to(device)
        guess_SE = network.answer(features_SF, drop)
        loss = functional.l1_loss(guess_SE, examples.embeddings_SE[some].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _floats(pictures: Tensor) -> Tensor:
    return pictures.float() / 127.5 - 1


def _new_network(embeddings_SE: Tensor, rng: Rng) -> ConvolutionalNetwork:
    """Weights of He et al. 2015; answers between the least and the largest of the embeddings."""
    network = ConvolutionalNetwork(embeddings_SE.shape[1])
    with torch.no_grad():
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                inputs = module.weight[0].numel()
                noise = rng.fork(name).normal(module.weight.shape)[0]
                module.weight.copy_(noise * (2 / inputs) ** 0.5)
                assert module.bias is not None
                module.bias.zero_()
        network.out.weight.mul_(0.1)
        network.low.copy_(embeddings_SE.min(0).values)
        network.high.copy_(embeddings_SE.max(0).values)
        # It begins with the mean embedding.
        span = (network.high - network.low).clamp_min(1e-6)
        share = ((embeddings_SE.mean(0) - network.low) / span).clamp(0.01, 0.99)
        network.out.bias.copy_(share.logit())
    return network


def _save(
    kept: Path, network: ConvolutionalNetwork, optimizer: torch.optim.Optimizer, epoch: int
) -> None:
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    write_tensors(kept, tensors, {_EPOCH: str(epoch)})


def _restore(kept: Path, network: ConvolutionalNetwork, optimizer: torch.optim.Optimizer) -> int:
    """The epochs that are done."""
    tensors = read_tensors(kept)
    network.load_state_dict({name: tensors[f"network.{name}"] for name in network.state_dict()})
    for name, parameter in network.named_parameters():
        optimizer.state[parameter] = {
            key: tensors[f"{key}.{name}"].to(parameter.device if key != "step" else "cpu")
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
    return int(read_header(kept).metadata[_EPOCH])
